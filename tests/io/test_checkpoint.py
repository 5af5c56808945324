"""Checkpoints: bit for bit what was saved, or one sentence that says what is wrong."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from small_model import CONFIG, byte_tokenizer, random_weights

import codecjax
from codecjax.codecs import own_arrays
from codecjax.errors import UserError
from codecjax.io import checkpoint
from codecjax.io.checkpoint import ARRAYS, MANIFEST, read_checkpoint, save
from codecjax.io.checksums import tile_checksums
from codecjax.models.config import LlamaConfig
from codecjax.models.encoding import encode_weights
from codecjax.models.parameters import parameters, walk
from codecjax.models.random_weights import random_model
from codecjax.tiles import TiledMatrix

TILE = (64, 128)

# Large enough for the window codec to compress: two tiles a matrix.
WIDE = dataclasses.replace(
    CONFIG,
    vocab_size=128,
    hidden_size=128,
    intermediate_size=128,
    layers=1,
    heads=4,
    kv_heads=4,
    head_dim=32,
)


def make_model(kind):
    if kind == "bf16":
        return random_model(WIDE, 0, "bf16", TILE, {})
    if kind == "dense window":
        # Every bit pattern is equally likely: no tile is worth compressing.
        return encode_weights(CONFIG, random_weights(CONFIG), "window", TILE, {}, byte_tokenizer())
    codec, options = ("window", {"width": 8})
    if kind == "int8_rans":
        return random_model(WIDE, 0, kind, TILE, {"prediction": "best", "probability_bits": 10})
    if "rans" in kind:
        codec, options = "rans", {"probability_bits": 10}
    if kind == "ecsq":
        return random_model(WIDE, 0, "ecsq", TILE, {"bits_per_weight": 4.5, "mse": 0.0})
    model = random_model(WIDE, 0, codec, TILE, options)
    if kind in ("window", "rans"):
        return model
    weights = {}
    for parameter, weight in walk(WIDE, model.parameters):
        plain = codecjax.decode(weight) if isinstance(weight, TiledMatrix) else weight
        weights[parameter.huggingface] = np.array(plain)
    noise = np.random.default_rng(0).integers(0, 2**16, (64, 128), np.uint16)
    weights["model.layers.0.mlp.up_proj.weight"][64:] = noise.view(ml_dtypes.bfloat16)
    return encode_weights(WIDE, weights, codec, TILE, options)


@pytest.fixture(scope="module")
def window():
    return make_model("window")


@pytest.fixture(scope="module")
def saved(window, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "checkpoint"
    save(window, path)
    return path


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the saved checkpoint to damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def rewrite_manifest(folder, change, vouch=True):
    """Changes the manifest, its own checksum too unless that is to give the change away."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    if vouch:
        manifest["checksum"] = checkpoint._manifest_checksum(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def rewrite_arrays(folder, change):
    """Stores other arrays under the old manifest."""
    found = ocp.metadata(folder / ARRAYS).metadata
    arrays = ocp.load(
        folder / ARRAYS, jax.tree.map(lambda each: np.empty(each.shape, each.dtype), found)
    )
    change(arrays)
    shutil.rmtree(folder / ARRAYS)
    ocp.save(folder / ARRAYS, arrays)


def assert_same(one, other):
    assert one.config == other.config
    assert (one.codec, one.options, one.tile) == (other.codec, other.options, other.tile)
    assert one.cast == other.cast
    assert jax.tree.structure(one.parameters) == jax.tree.structure(other.parameters)
    for left, right in zip(
        jax.tree.leaves(one.parameters), jax.tree.leaves(other.parameters), strict=True
    ):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


@pytest.mark.parametrize(
    "kind",
    ["bf16", "window", "dense window", "verbatim", "rans", "verbatim rans", "int8_rans", "ecsq"],
)
def test_a_model_survives_saving_and_reading(kind, tmp_path):
    model = make_model(kind)
    stored = {name for t in model.matrices.values() for name in t.arrays}
    assert ("dense" in stored) == (kind in ("bf16", "dense window"))
    if kind.startswith("verbatim"):
        assert model.matrices["layers.0.mlp.up"].arrays["verbatim"].shape[0] == 1
    codecjax.save(model, tmp_path / "checkpoint")
    read = read_checkpoint(tmp_path / "checkpoint")
    assert_same(read, model)
    if model.tokenizer is not None:
        assert read.tokenizer.to_str() == model.tokenizer.to_str()
        assert sorted(os.listdir(tmp_path / "checkpoint")) == [ARRAYS, MANIFEST, "tokenizer.json"]
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("codec", ["window", "int8_rans"])
def test_a_tied_model_survives(codec, tmp_path):
    model = random_model(dataclasses.replace(WIDE, tied=True), 0, codec, TILE, {})
    save(model, tmp_path / "checkpoint")
    read = read_checkpoint(tmp_path / "checkpoint")
    assert_same(read, model)
    assert read.matrices["embedding"] is read.parameters["embedding"]


def test_the_report_of_a_cast_survives(tmp_path):
    weights = {
        each.huggingface: np.random.default_rng(0).normal(size=each.shape).astype(np.float32)
        for each in parameters(CONFIG)
    }
    model = encode_weights(CONFIG, weights, "bf16", TILE, {})
    assert model.cast.changed > 0
    save(model, tmp_path / "checkpoint")
    assert read_checkpoint(tmp_path / "checkpoint").cast == model.cast


def test_saving_again_replaces_the_checkpoint(window, copied):
    other = random_model(WIDE, 1, "bf16", TILE, {})
    save(other, copied)
    assert_same(read_checkpoint(copied), other)


def test_other_folders_are_not_overwritten(window, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="other files"):
        save(window, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def flip_a_bit_of_the_gate(checkpoint, array, place):
    def flip(arrays):
        arrays["layers.0.mlp.gate"][array][place] ^= 1

    rewrite_arrays(checkpoint, flip)


@pytest.mark.parametrize(
    ("array", "place", "tile"),
    [
        ("words", (1, 0, 0, 3, 77), 1),
        ("escapes", (0, 0, 0, 5), 0),
        ("base", (1, 13), 1),
    ],
)
def test_a_flipped_bit_names_the_matrix_and_the_tile(copied, array, place, tile):
    flip_a_bit_of_the_gate(copied, array, place)
    with pytest.raises(UserError, match=rf"tile {tile} of layers\.0\.mlp\.gate in .*checksum"):
        read_checkpoint(copied)


@pytest.mark.parametrize(
    ("array", "place", "tile"),
    [
        ("states", (1, 0, 77), 1),
        ("starts", (0, 0, 3), 0),
        ("stream", (40,), 0),
        ("stream", (-1,), 1),
        ("table", (0, 500), 0),
    ],
)
def test_a_flipped_bit_of_coded_symbols_is_found(array, place, tile, tmp_path):
    save(make_model("rans"), tmp_path / "checkpoint")
    flip_a_bit_of_the_gate(tmp_path / "checkpoint", array, place)
    with pytest.raises(UserError, match=rf"tile {tile} of layers\.0\.mlp\.gate in .*checksum"):
        read_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("array", ["words", "escapes", "lane_escapes", "base"])
def test_a_flipped_bit_of_the_embedding_is_found(copied, array):
    def flip(arrays):
        arrays["embedding"][array].reshape(-1)[-1] ^= 1

    rewrite_arrays(copied, flip)
    with pytest.raises(UserError, match=r"tile 1 of embedding in .*checksum"):
        read_checkpoint(copied)


@pytest.mark.parametrize("slot", [0, 2**30])
def test_a_slot_that_points_elsewhere_is_found(slot, tmp_path):
    save(make_model("verbatim"), tmp_path / "checkpoint")

    def point(arrays):
        assert arrays["layers.0.mlp.up"]["slot"][1] == -1
        arrays["layers.0.mlp.up"]["slot"][1] = slot

    rewrite_arrays(tmp_path / "checkpoint", point)
    with pytest.raises(UserError, match=r"tile 1 of layers\.0\.mlp\.up"):
        read_checkpoint(tmp_path / "checkpoint")


def test_a_flipped_bit_in_a_dense_tile_is_found(tmp_path):
    save(make_model("bf16"), tmp_path / "checkpoint")

    def flip(arrays):
        arrays["head"]["dense"].view(np.uint16)[64, 127] ^= 1

    rewrite_arrays(tmp_path / "checkpoint", flip)
    with pytest.raises(UserError, match="tile 1 of head"):
        read_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["layers.0.attention.norm", "final_norm"])
def test_a_flipped_bit_of_a_norm_is_found(copied, name):
    def flip(arrays):
        arrays[name]["array"].view(np.uint16)[..., 5] ^= 0x8000

    rewrite_arrays(copied, flip)
    with pytest.raises(UserError, match=rf"{name} in .*checksum"):
        read_checkpoint(copied)


def test_every_byte_of_every_array_counts_for_a_checksum():
    """Flips each byte in turn in a small matrix with compressed and verbatim tiles."""
    t = make_model("verbatim").matrices["layers.0.mlp.up"]
    arrays = {name: np.array(array) for name, array in own_arrays(t).items()}
    before = tile_checksums(t, arrays)
    assert len(set(before)) == t.tiles
    generator = np.random.default_rng(0)
    for array in arrays.values():
        data = array.view(np.uint8).reshape(-1)
        for place in generator.choice(data.size, min(data.size, 60), replace=False):
            data[place] ^= 1
            assert tile_checksums(t, arrays) != before
            data[place] ^= 1
    assert tile_checksums(t, arrays) == before


def data_files(folder):
    files = [file for file in (folder / ARRAYS).rglob("*") if file.is_file()]
    return sorted((file for file in files if file.stat().st_size), key=lambda file: str(file))


def complaint(folder, model):
    """What reading says; None where it reads the model, bit for bit."""
    try:
        read = read_checkpoint(folder)
    except UserError as error:
        return str(error)
    assert_same(read, model)
    return None


def test_a_flip_anywhere_in_the_files_is_found_or_harmless(copied, window):
    """What is read is what was saved, or nothing, wherever in its files a bit is flipped."""
    generator = np.random.default_rng(0)
    complaints = []
    for file in [*data_files(copied), copied / MANIFEST]:
        whole = file.read_bytes()
        for place in generator.integers(0, len(whole), 3):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(generator.integers(8))
            file.write_bytes(damaged)
            complaints.append(complaint(copied, window))
        file.write_bytes(whole)
    assert sum(each is not None for each in complaints) > 5
    assert not any("\n" in each for each in complaints if each)
    assert complaint(copied, window) is None


def test_a_truncated_file_anywhere_is_found_or_harmless(copied, window):
    complaints = []
    for file in [*data_files(copied), copied / MANIFEST]:
        whole = file.read_bytes()
        for length in (0, len(whole) // 2):
            file.write_bytes(whole[:length])
            complaints.append(complaint(copied, window))
        file.write_bytes(whole)
    assert sum(each is not None for each in complaints) > 5
    assert not any("\n" in each for each in complaints if each)


def test_a_truncated_data_file_names_a_weight(copied):
    largest = max(data_files(copied), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    with pytest.raises(UserError, match=r"(layers\.0\.|embedding|head|norm).*truncated"):
        read_checkpoint(copied)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda manifest: manifest.update(version=1), "format version 1.*version 3: make"),
        (lambda manifest: manifest.update(format="zip"), "not of a codecjax checkpoint"),
        (lambda manifest: manifest["codec"].update(version=7), "version 7 of codec 'window'"),
        (
            lambda manifest: manifest["embedding_codec"].update(version=2),
            "version 2 of codec 'window'",
        ),
        (lambda manifest: manifest["codec"].update(name="zip"), "unknown codec 'zip'"),
        (lambda manifest: manifest["codec"].update(options={"width": 9}), "width 9"),
        (lambda manifest: manifest["config"].update(intermediate_size=120), r"gate .*\[120, 128\]"),
        (lambda manifest: manifest["config"].update(num_hidden_layers=2), r"layers\.1\..*missing"),
        (lambda manifest: manifest["weights"].pop("head"), "head is missing"),
        (lambda manifest: manifest["weights"]["head"]["tiles"].reverse(), "tile 0 of head"),
        (
            lambda manifest: manifest["weights"]["head"]["arrays"]["base"].__setitem__(1, [2, 65]),
            r"base of head .*uint8\[2, 64\].*uint8\[2, 65\]",
        ),
        (
            lambda manifest: manifest["weights"]["final_norm"]["arrays"]["array"].__setitem__(
                0, "uint16"
            ),
            r"array of final_norm .*bfloat16.*uint16",
        ),
    ],
)
def test_what_does_not_fit_is_named(copied, change, named):
    rewrite_manifest(copied, change)
    with pytest.raises(UserError, match=named) as caught:
        read_checkpoint(copied)
    assert "\n" not in str(caught.value)


def test_a_changed_manifest_is_found(copied):
    rewrite_manifest(copied, lambda manifest: manifest["tile"].reverse(), vouch=False)
    with pytest.raises(UserError, match=r"manifest\.json differs from its checksum"):
        read_checkpoint(copied)


def test_arrays_of_another_shape_are_named(copied):
    def cut(arrays):
        arrays["head"]["words"] = arrays["head"]["words"][:1]

    rewrite_arrays(copied, cut)
    with pytest.raises(UserError, match="words of head"):
        read_checkpoint(copied)


def test_missing_parts_are_named(copied, tmp_path):
    rewrite_arrays(copied, lambda arrays: arrays.pop("final_norm"))
    with pytest.raises(UserError, match="array of final_norm is missing"):
        read_checkpoint(copied)
    shutil.rmtree(copied / ARRAYS)
    with pytest.raises(UserError, match="arrays cannot be read"):
        read_checkpoint(copied)
    (copied / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"no checkpoint.*manifest\.json"):
        read_checkpoint(copied)
    with pytest.raises(UserError, match="no checkpoint"):
        read_checkpoint(tmp_path / "nowhere")


def test_a_damaged_tokenizer_is_found(tmp_path):
    save(make_model("dense window"), tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "tokenizer.json"
    file.write_text(file.read_text().replace("endoftext", "startoftext"))
    with pytest.raises(UserError, match=r"tokenizer\.json differs"):
        read_checkpoint(tmp_path / "checkpoint")
    file.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json does not exist"):
        read_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("exists", [False, True])
def test_a_save_that_fails_leaves_the_old_checkpoint_or_none(
    window, copied, tmp_path, monkeypatch, exists
):
    path = copied if exists else tmp_path / "new"

    def half_written(folder, arrays):
        Path(folder).mkdir()
        (Path(folder) / "part").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp, "save", half_written)
    with pytest.raises(UserError, match="No space left"):
        save(random_model(WIDE, 1, "bf16", TILE, {}), path)
    monkeypatch.undo()
    assert path.exists() == exists
    assert sorted(os.listdir(tmp_path)) == ["checkpoint"]
    assert_same(read_checkpoint(copied), window)


KILLED = """
import os, signal, sys
from codecjax.io import checkpoint
from codecjax.models.config import LlamaConfig
from codecjax.models.random_weights import random_model
config = LlamaConfig(16, 16, 16, 1, 2, 2, 8, 32)
write = checkpoint.ocp.save
def killed(folder, arrays):
    write(folder, arrays)
    os.kill(os.getpid(), signal.SIGKILL)
checkpoint.ocp.save = killed
checkpoint.save(random_model(config, 0, "bf16", (64, 128), {}), sys.argv[1])
"""


def test_a_killed_save_leaves_the_old_checkpoint(window, copied, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, copied],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    assert_same(read_checkpoint(copied), window)
    # The next save tidies up what the killed one left behind.
    save(window, copied)
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_config_and_matrices_are_of_the_right_types(saved):
    model = read_checkpoint(saved)
    assert isinstance(model.config, LlamaConfig)
    assert all(isinstance(t, TiledMatrix) for t in model.matrices.values())
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.parameters))
