"""Checkpoints: the encoded arrays as Orbax writes them, and a manifest that vouches for them.

    manifest.json    format version, codecs, tile, config, every weight's shape and options, and a
                     CRC-32 of every tile, of every other array, of the tokenizer and of the
                     manifest itself
    arrays/          an Orbax v1 checkpoint of every weight's arrays by name
    tokenizer.json   where the model has one

A checkpoint appears whole or not at all, and is read whole or not at all.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from codecjax.codecs import check_options, codec_module, own_arrays
from codecjax.codecs.cast import CastReport
from codecjax.codecs.intervals import Option
from codecjax.errors import UserError
from codecjax.io.atomic import recover, replacing_folder
from codecjax.io.checksums import checksum, tile_checksums
from codecjax.io.huggingface import TOKENIZER, read_json, read_tokenizer
from codecjax.models.config import LlamaConfig
from codecjax.models.embedding import embedding_codec
from codecjax.models.encoding import assembled
from codecjax.models.model import Model
from codecjax.models.parameters import Parameter, parameters, walk
from codecjax.tiles import TiledMatrix, check_tile

MANIFEST, ARRAYS = "manifest.json", "arrays"
FORMAT, VERSION = "codecjax checkpoint", 3

_REMEDY = "make the checkpoint again"


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder with a manifest.json, once an interrupted save is undone."""
    recover(path)
    return Path(path, MANIFEST).is_file()


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Writes a model as a checkpoint, atomically.

    Args:
      model: the model.
      path: where; a checkpoint that is there is replaced, as is an empty folder.

    Raises:
      UserError: `path` holds something else or cannot be written.
    """
    folder = Path(path)
    if folder.is_dir() and any(folder.iterdir()) and not is_checkpoint(folder):
        raise UserError(f"folder {path} holds other files: choose an empty or a new folder")
    with replacing_folder(path) as writing:
        arrays: dict[str, Any] = {}
        entries: dict[str, Any] = {}
        for parameter, weight in walk(model.config, model.parameters):
            on_host = {name: np.asarray(array) for name, array in _arrays_of(weight).items()}
            entries[parameter.name] = {
                "shape": list(parameter.shape),
                "arrays": _layout(on_host),
            }
            if isinstance(weight, TiledMatrix):
                entries[parameter.name]["options"] = weight.options_dict
                entries[parameter.name]["tiles"] = tile_checksums(weight, on_host)
            else:
                entries[parameter.name]["checksum"] = checksum(on_host["array"])
            arrays[parameter.name] = on_host
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "codec": _codec_entry(model.codec, model.options),
            "embedding_codec": _codec_entry(*embedding_codec(model.codec, model.options)),
            "tile": list(model.tile),
            "config": model.config.to_huggingface(),
            "cast": None if model.cast is None else dataclasses.asdict(model.cast),
            "weights": entries,
            "tokenizer": None,
        }
        if model.tokenizer is not None:
            model.tokenizer.save(str(writing / TOKENIZER))
            manifest["tokenizer"] = zlib.crc32((writing / TOKENIZER).read_bytes())
        ocp.save(writing / ARRAYS, arrays)
        manifest["checksum"] = _manifest_checksum(manifest)
        (writing / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def read_checkpoint(path: str | os.PathLike[str]) -> Model:
    """Reads a model and verifies the checksum of every tile and of everything else.

    Raises:
      UserError: the checkpoint is missing, damaged, truncated or of another version; the
        message names the matrix and tile, or the file.
    """
    folder = Path(path)
    if not is_checkpoint(folder):
        raise UserError(f"{path} is no checkpoint: give a folder with a {MANIFEST}")
    manifest = _read_manifest(folder)
    config = LlamaConfig.from_huggingface(manifest["config"])
    codec, tile = manifest["codec"], check_tile((manifest["tile"][0], manifest["tile"][1]))
    options = _check_codec(folder, codec)
    _check_codec(folder, manifest["embedding_codec"])
    _check_weights(folder, config, manifest["weights"])
    on_host = _read_arrays(folder, manifest["weights"])

    def stored(parameter: Parameter) -> TiledMatrix | jax.Array:
        entry, arrays = manifest["weights"][parameter.name], on_host.pop(parameter.name)
        if len(parameter.shape) == 1:
            _verify_array(folder, parameter, arrays, entry)
            return jnp.asarray(arrays["array"])
        own = codec if parameter.projection else manifest["embedding_codec"]
        shape = (parameter.shape[0], parameter.shape[1])
        mine = tuple(sorted(entry["options"].items()))
        t = TiledMatrix(arrays, own["name"], own["version"], shape, tile, mine)
        _verify_tiles(folder, parameter, t, entry)
        placed = {name: jnp.asarray(array) for name, array in arrays.items()}
        return dataclasses.replace(t, arrays=placed)

    return Model(
        config=config,
        parameters=assembled(config, codec["name"], stored),
        tokenizer=_read_tokenizer(folder, manifest["tokenizer"]),
        codec=codec["name"],
        options=options,
        tile=tile,
        cast=None if manifest["cast"] is None else CastReport(**manifest["cast"]),
    )


def _codec_entry(codec: str, options: Mapping[str, Option]) -> dict[str, Any]:
    return {"name": codec, "version": codec_module(codec).VERSION, "options": dict(options)}


def _check_codec(folder: Path, entry: Mapping[str, Any]) -> dict[str, Option]:
    """The options in a codec's entry; UserError unless that codec can read what it stored."""
    module = codec_module(entry["name"])
    if entry["version"] != module.VERSION:
        raise UserError(
            f"{folder} has version {entry['version']} of codec {entry['name']!r} and this is "
            f"version {module.VERSION}: {_REMEDY} with this version of codecjax"
        )
    return check_options(entry["name"], entry["options"])


def _arrays_of(weight: TiledMatrix | jax.Array) -> dict[str, jax.Array]:
    return own_arrays(weight) if isinstance(weight, TiledMatrix) else {"array": weight}


def _layout(arrays: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """dtype and shape by name, as the manifest has them."""
    return {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}


def _manifest_checksum(manifest: Mapping[str, Any]) -> int:
    vouched = {name: value for name, value in manifest.items() if name != "checksum"}
    return zlib.crc32(json.dumps(vouched, sort_keys=True).encode())


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    manifest = read_json(file)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{file} is not of a codecjax checkpoint: give another folder")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{file} has format version {manifest.get('version')!r} and this codecjax reads "
            f"version {VERSION}: {_REMEDY} with this version of codecjax"
        )
    if manifest.get("checksum") != _manifest_checksum(manifest):
        raise UserError(f"{file} differs from its checksum: {_REMEDY}")
    return manifest


def _check_weights(folder: Path, config: LlamaConfig, entries: Mapping[str, Any]) -> None:
    """UserError unless the manifest's weights are those of the config."""
    expected = {parameter.name: list(parameter.shape) for parameter in parameters(config)}
    for name, shape in expected.items():
        if name not in entries:
            raise UserError(f"{name} is missing in {folder / MANIFEST}: {_REMEDY}")
        if entries[name]["shape"] != shape:
            raise UserError(
                f"{name} in {folder} has shape {entries[name]['shape']}, but the config asks for "
                f"{shape}: {_REMEDY}"
            )
    for name in entries:
        if name not in expected:
            raise UserError(f"{name} in {folder / MANIFEST} is unexpected: {_REMEDY}")


def _read_arrays(folder: Path, entries: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of every weight on the host, by the weight's name and theirs."""
    expected = {
        weight: {
            name: np.empty(shape, jnp.dtype(dtype))
            for name, (dtype, shape) in entry["arrays"].items()
        }
        for weight, entry in entries.items()
    }
    try:
        found = ocp.metadata(folder / ARRAYS).metadata
    except Exception as error:  # Whatever Orbax and the storage below it raise.
        raise UserError(f"{folder / ARRAYS} cannot be read ({_brief(error)}): {_REMEDY}") from error
    _compare_layouts(folder, expected, found)
    return _load(folder, expected)


def _compare_layouts(folder: Path, expected: Mapping[str, Any], found: Any) -> None:
    """UserError unless the arrays that Orbax found are those of the manifest."""
    if not isinstance(found, Mapping):
        raise UserError(f"{folder / ARRAYS} cannot be read (it lists no arrays): {_REMEDY}")
    for weight, arrays in found.items():
        for name in arrays:
            if name not in expected.get(weight, {}):
                raise UserError(f"{name} of {weight} in {folder / ARRAYS} is unexpected: {_REMEDY}")
    for weight, arrays in expected.items():
        for name, array in arrays.items():
            label = f"{name} of {weight}"
            stored = found[weight].get(name) if weight in found else None
            if stored is None:
                raise UserError(f"{label} is missing in {folder / ARRAYS}: {_REMEDY}")
            if tuple(stored.shape) != array.shape or jnp.dtype(stored.dtype) != array.dtype:
                raise UserError(
                    f"{label} in {folder / ARRAYS} is {stored.dtype}{list(stored.shape)}, but the "
                    f"manifest asks for {array.dtype}{list(array.shape)}: {_REMEDY}"
                )


def _load(folder: Path, expected: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    try:
        return ocp.load(folder / ARRAYS, expected)
    except Exception as error:  # Whatever Orbax and the storage below it raise.
        for weight in expected:
            only = {
                each: arrays if each == weight else _skip(arrays)
                for each, arrays in expected.items()
            }
            try:
                ocp.load(folder / ARRAYS, only)
            except Exception as own:
                raise UserError(
                    f"{weight} in {folder / ARRAYS} is damaged or truncated "
                    f"({_brief(own)}): {_REMEDY}"
                ) from error
        raise UserError(f"{folder / ARRAYS} cannot be read ({_brief(error)}): {_REMEDY}") from error


def _skip(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(arrays, ocp.PLACEHOLDER)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _verify_tiles(
    folder: Path, parameter: Parameter, t: TiledMatrix, entry: Mapping[str, Any]
) -> None:
    arrays = {name: np.asarray(array) for name, array in t.arrays.items()}
    actual = tile_checksums(t, arrays)
    for index, (found, wanted) in enumerate(zip(actual, entry["tiles"], strict=True)):
        if found != wanted:
            raise UserError(
                f"tile {index} of {parameter.name} in {folder} differs from its checksum: {_REMEDY}"
            )


def _verify_array(
    folder: Path,
    parameter: Parameter,
    arrays: Mapping[str, np.ndarray],
    entry: Mapping[str, Any],
) -> None:
    if checksum(arrays["array"]) != entry["checksum"]:
        raise UserError(f"{parameter.name} in {folder} differs from its checksum: {_REMEDY}")


def _read_tokenizer(folder: Path, expected: int | None) -> Any:
    if expected is None:
        return None
    file = folder / TOKENIZER
    if not file.is_file():
        raise UserError(f"{file} does not exist, but {MANIFEST} lists it: {_REMEDY}")
    if zlib.crc32(file.read_bytes()) != expected:
        raise UserError(f"{file} differs from its checksum in {MANIFEST}: {_REMEDY}")
    return read_tokenizer(file)
