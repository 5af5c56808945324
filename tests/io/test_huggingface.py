import hashlib
import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from small_model import CONFIG, byte_tokenizer, random_weights

from codecjax.errors import UserError
from codecjax.io.huggingface import is_folder, read_folder, write_folder
from codecjax.models.config import LlamaConfig

QUERY = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def same_bits(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def rewrite(folder, weights):
    """Replaces the weights of a folder as another program would, without checksums."""
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    safetensors.numpy.save_file(weights, folder / "model.safetensors")


def shard(folder):
    """Splits model.safetensors in two; returns the index as written."""
    weights = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "SHA256SUMS").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.numpy.save_file({name: weights[name] for name in part}, folder / file)
    index = {name: file for file, part in parts.items() for name in part}
    write_index(folder, index)
    return index


def write_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def change_config(folder, **change):
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **change}))


def refused(folder, *named):
    with pytest.raises(UserError) as caught:
        read_folder(folder)
    message = str(caught.value)
    assert "\n" not in message
    for each in named:
        assert each in message


def test_a_folder_comes_back_bit_for_bit(folder):
    read = read_folder(folder)
    assert read.config == CONFIG
    assert same_bits(read.weights, random_weights(CONFIG))
    text = "<|endoftext|>"
    assert read.tokenizer.token_to_id(text) == 0
    assert is_folder(folder)


def test_all_bf16_patterns_survive(tmp_path):
    config = LlamaConfig.from_huggingface(
        {**CONFIG.to_huggingface(), "vocab_size": 4096, "tie_word_embeddings": True}
    )
    weights = random_weights(config)
    patterns = np.arange(65536, dtype=np.uint16).reshape(4096, 16)
    weights[EMBEDDING] = patterns.view(ml_dtypes.bfloat16)
    write_folder(tmp_path / "model", config, weights)
    read = read_folder(tmp_path / "model")
    assert read.tokenizer is None
    assert HEAD not in read.weights
    np.testing.assert_array_equal(read.weights[EMBEDDING].view(np.uint16), patterns)


def test_shards_hold_the_same_model(folder):
    shard(folder)
    assert same_bits(read_folder(folder).weights, random_weights(CONFIG))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_other_float_dtypes_stay_as_they_are(folder, dtype):
    weights = random_weights(CONFIG, dtype=dtype)
    rewrite(folder, weights)
    assert same_bits(read_folder(folder).weights, weights)


def test_stored_rotary_frequencies_are_ignored(folder):
    weights = random_weights(CONFIG)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    rewrite(folder, {**weights, **extra})
    assert same_bits(read_folder(folder).weights, weights)


def test_a_head_stored_beside_a_tied_embedding(folder):
    weights = random_weights(CONFIG)
    change_config(folder, tie_word_embeddings=True)
    rewrite(folder, {**weights, HEAD: weights[EMBEDDING]})
    assert HEAD not in read_folder(folder).weights
    rewrite(folder, weights)
    refused(folder, HEAD, EMBEDDING, "tie_word_embeddings")


def truncate(file):
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 7)


DAMAGE = {
    "no folder": (shutil.rmtree, ["model", "does not exist"]),
    "no config": (lambda f: unlisted(f, "config.json").unlink(), ["config.json", "not exist"]),
    "no weights": (
        lambda f: unlisted(f, "model.safetensors").unlink(),
        ["model.safetensors", "fetch"],
    ),
    "config no JSON": (
        lambda f: unlisted(f, "config.json").write_text("{"),
        ["config.json", "JSON"],
    ),
    "config no text": (
        lambda f: unlisted(f, "config.json").write_bytes(b"\xff\xfe{}"),
        ["config.json", "JSON"],
    ),
    "config no object": (
        lambda f: unlisted(f, "config.json").write_text("[1]"),
        ["config.json", "object"],
    ),
    "tokenizer damaged": (
        lambda f: unlisted(f, "tokenizer.json").write_text('{"model": 1}'),
        ["tokenizer.json"],
    ),
    "weights truncated": (
        lambda f: truncate(unlisted(f, "model.safetensors")),
        ["model.safetensors", "truncated"],
    ),
    "weights empty": (
        lambda f: unlisted(f, "model.safetensors").write_bytes(b""),
        ["model.safetensors", "truncated"],
    ),
    "other architecture": (
        lambda f: change_config(f, model_type="mamba", architectures=["MambaForCausalLM"]),
        ["MambaForCausalLM", "LlamaForCausalLM"],
    ),
    "other vocabulary": (
        lambda f: change_config(f, vocab_size=49),
        [EMBEDDING, "[48, 16]", "[49, 16]"],
    ),
    "more layers": (
        lambda f: change_config(f, num_hidden_layers=3),
        ["model.layers.2.input_layernorm.weight", "missing", "num_hidden_layers"],
    ),
    "fewer layers": (
        lambda f: change_config(f, num_hidden_layers=1),
        ["unexpected", "model.layers.1."],
    ),
    "listed file gone": (lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json", "lists"]),
    "checksums garbled": (lambda f: (f / "SHA256SUMS").write_text("abc"), ["SHA256SUMS", "abc"]),
    "checksums point outside": (
        lambda f: (f / "SHA256SUMS").write_text(f"{'0' * 64}  ../secret"),
        ["SHA256SUMS", "../secret"],
    ),
}


def unlisted(folder, name):
    """The file, after removing the checksums that would find any change first."""
    (folder / "SHA256SUMS").unlink()
    return folder / name


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(folder, case):
    damage, named = DAMAGE[case]
    damage(folder)
    refused(folder, *named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({QUERY: None}, [QUERY, "missing"]),
        ({HEAD: None}, [HEAD, "missing", "tie_word_embeddings"]),
        ({QUERY: np.zeros((16, 32), np.float16)}, [QUERY, "[16, 32]", "[32, 16]"]),
        ({NORM: np.zeros((16, 1), np.float16)}, [NORM, "[16, 1]", "[16]"]),
        ({QUERY: np.zeros((32, 16), np.int8)}, [QUERY, "I8", "BF16"]),
        ({QUERY: np.zeros((32, 16), np.float64)}, [QUERY, "F64", "BF16"]),
        (
            {"model.layers.0.self_attn.q_proj.bias": np.zeros(32, np.float32)},
            ["unexpected", "q_proj.bias"],
        ),
    ],
)
def test_wrong_tensors_are_named(folder, change, named):
    changed = {**random_weights(CONFIG), **change}
    rewrite(folder, {name: each for name, each in changed.items() if each is not None})
    refused(folder, *named)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_flipped_bit_is_found_by_the_checksums(folder, file, place):
    data = bytearray((folder / file).read_bytes())
    data[int(place * len(data))] ^= 4
    (folder / file).write_bytes(data)
    refused(folder, file, "SHA256SUMS")


def missing_shard(folder, index):
    (folder / "b.safetensors").unlink()


def misplaced(folder, index):
    write_index(folder, {**index, QUERY: "a.safetensors", NORM: "b.safetensors"})


def duplicated(folder, index):
    safetensors.numpy.save_file(random_weights(CONFIG), folder / "a.safetensors")


def outside(folder, index):
    write_index(folder, {**index, NORM: "../b.safetensors"})


def empty(folder, index):
    write_index(folder, {})


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (missing_shard, ["b.safetensors", "does not exist"]),
        (misplaced, ["index.json"]),
        (duplicated, ["both", "a.safetensors", "b.safetensors"]),
        (outside, ["../b.safetensors"]),
        (empty, ["weight_map"]),
    ],
)
def test_wrong_shards_are_named(folder, damage, named):
    damage(folder, shard(folder))
    refused(folder, *named)


def test_checksums_are_those_of_sha256sum(folder):
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    for line in lines:
        digest, name = line.split("  ")
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_a_folder_is_replaced_and_documents_may_be_edited(folder):
    weights = random_weights(CONFIG, seed=1)
    write_folder(folder, CONFIG, weights, documents={"README.md": "a card\n"})
    assert sorted(os.listdir(folder)) == [
        "README.md",
        "SHA256SUMS",
        "config.json",
        "model.safetensors",
    ]
    (folder / "README.md").write_text("another card\n")
    assert same_bits(read_folder(folder).weights, weights)
    assert os.listdir(folder.parent) == [folder.name]


def test_a_failing_write_leaves_the_old_folder(folder):
    class Broken:
        def save(self, path):
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        write_folder(folder, CONFIG, random_weights(CONFIG, seed=1), Broken())
    assert same_bits(read_folder(folder).weights, random_weights(CONFIG))
    assert os.listdir(folder.parent) == [folder.name]


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other files"):
        write_folder(tmp_path, CONFIG, random_weights(CONFIG), byte_tokenizer())
    with pytest.raises(UserError, match="not a folder"):
        write_folder(tmp_path / "thesis.txt", CONFIG, random_weights(CONFIG))
    with pytest.raises(UserError, match="cannot be written"):
        write_folder(tmp_path / "thesis.txt" / "model", CONFIG, random_weights(CONFIG))
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_wrong_weights_are_not_written(tmp_path):
    weights = random_weights(CONFIG)
    del weights[QUERY]
    with pytest.raises(UserError, match=QUERY):
        write_folder(tmp_path / "model", CONFIG, weights)
    assert not os.listdir(tmp_path)
