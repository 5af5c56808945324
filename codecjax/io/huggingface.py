"""Hugging Face folders: config.json, safetensors (one file or shards), tokenizer.json.

Everything is checked before the first tensor is read, so a folder loads whole or not at all.
safetensors files carry no checksum of their data: a flipped bit in a weight is found only where
the folder has a SHA256SUMS file (as `sha256sum` writes it), which `write_folder` always adds and
`read_folder` verifies when it is there.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers

from codecjax.errors import UserError
from codecjax.io.atomic import replacing_folder
from codecjax.models.config import LlamaConfig
from codecjax.models.parameters import parameters

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
INDEX = "model.safetensors.index.json"
CHECKSUMS = "SHA256SUMS"

_DTYPES = ("BF16", "F16", "F32")
# Old checkpoints store the rotary frequencies, which follow from the config.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class HuggingFaceFolder:
    """A model as it lies in a Hugging Face folder.

    Attributes:
      config: sizes and constants.
      weights: arrays by Hugging Face tensor name, bfloat16, float16 or float32 as stored; the
        names and shapes are those of `codecjax.models.parameters.parameters(config)`.
      tokenizer: None where the folder has no tokenizer.json.
    """

    config: LlamaConfig
    weights: dict[str, np.ndarray]
    tokenizer: tokenizers.Tokenizer | None


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder with a config.json."""
    return Path(path, CONFIG).is_file()


def read_folder(path: str | os.PathLike[str]) -> HuggingFaceFolder:
    """Reads a Llama-family model.

    Raises:
      UserError: the folder or a file is missing or damaged, the architecture is not supported,
        or a tensor is missing, unexpected, duplicated or of the wrong shape or dtype.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"model folder {path} does not exist: give the path of a folder")
    try:
        verify_checksums(folder)
        config = LlamaConfig.from_huggingface(read_json(folder / CONFIG))
        tokenizer = read_tokenizer(folder / TOKENIZER)
        return HuggingFaceFolder(config, _read_weights(folder, config), tokenizer)
    except OSError as error:
        raise UserError(
            f"model folder {path} cannot be read ({error}): check its files and permissions"
        ) from error


def write_folder(
    path: str | os.PathLike[str],
    config: LlamaConfig,
    weights: Mapping[str, np.ndarray],
    tokenizer: tokenizers.Tokenizer | None = None,
    documents: Mapping[str, str] | None = None,
) -> None:
    """Writes a model as a Hugging Face folder, atomically, with a SHA256SUMS of its files.

    Args:
      path: where; a folder that is there is replaced if it is empty or has a SHA256SUMS.
      config: sizes and constants.
      weights: arrays by Hugging Face tensor name, as in HuggingFaceFolder.
      tokenizer: None to write none.
      documents: further text files by name, for example README.md; not in SHA256SUMS, so that
        they may be edited.

    Raises:
      UserError: a weight is missing, unexpected or misshapen, or `path` holds something else.
    """
    folder = Path(path)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CHECKSUMS).is_file():
        raise UserError(f"folder {path} holds other files: choose an empty or a new folder")
    arrays = {name: np.ascontiguousarray(weight) for name, weight in weights.items()}
    found = {name: (_dtype_name(array), array.shape) for name, array in arrays.items()}
    _check_tensors("the weights to write", config, found)
    with replacing_folder(path) as writing:
        (writing / CONFIG).write_text(json.dumps(config.to_huggingface(), indent=2) + "\n")
        # transformers wants to know which framework's tensors these are.
        safetensors.numpy.save_file(arrays, writing / WEIGHTS, metadata={"format": "pt"})
        # The library makes it readable by its owner only.
        (writing / WEIGHTS).chmod((writing / CONFIG).stat().st_mode)
        if tokenizer is not None:
            tokenizer.save(str(writing / TOKENIZER))
        lines = [f"{_sha256(each)}  {each.name}\n" for each in sorted(writing.iterdir())]
        (writing / CHECKSUMS).write_text("".join(lines))
        for name, text in (documents or {}).items():
            (writing / name).write_text(text, encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where the file is missing or holds something else."""
    if not file.is_file():
        raise UserError(f"{file} does not exist: a model folder needs its {file.name}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): fetch it again") from error
    if not isinstance(raw, dict):
        raise UserError(f"{file} holds no JSON object: fetch it again")
    return raw


def read_tokenizer(file: Path) -> tokenizers.Tokenizer | None:
    """The tokenizer of a tokenizer.json, None where there is no file, UserError if damaged."""
    if not file.is_file():
        return None
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises bare Exception, nothing narrower.
        raise UserError(f"{file} is not a tokenizer ({error}): fetch it again") from error


def verify_checksums(folder: Path) -> None:
    """Compares the files named in the folder's SHA256SUMS with it; nothing to do without one.

    Raises:
      UserError: a file is missing or differs, or SHA256SUMS cannot be understood.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        expected, _, name = line.partition(" ")
        name = name.removeprefix(" ").removeprefix("*")
        inside = name and not Path(name).is_absolute() and ".." not in Path(name).parts
        if len(expected) != 64 or not inside:
            raise UserError(f"{sums} has the line {line!r}: write it anew with sha256sum")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} does not exist, but {CHECKSUMS} lists it: fetch it")
        if _sha256(folder / name) != expected.lower():
            raise UserError(
                f"{folder / name} differs from its checksum in {CHECKSUMS}: fetch it again"
            )


def _read_weights(folder: Path, config: LlamaConfig) -> dict[str, np.ndarray]:
    headers = {file: _header(file) for file in _weight_files(folder)}
    holder: dict[str, Path] = {}
    for file, tensors in headers.items():
        for name in tensors:
            if name in holder:
                raise UserError(
                    f"tensor {name} is in both {holder[name]} and {file}: remove one of them"
                )
            holder[name] = file
    found = {name: headers[file][name] for name, file in holder.items()}
    _check_tensors(str(folder), config, found)
    weights: dict[str, np.ndarray] = {}
    for file, tensors in headers.items():
        with safetensors.safe_open(file, framework="np") as opened:
            for name in tensors:
                if not name.endswith(_IGNORED_SUFFIX):
                    weights[name] = opened.get_tensor(name)
    if config.tied and _HEAD in weights:
        if weights[_HEAD].tobytes() != weights[_EMBEDDING].tobytes():
            raise UserError(
                f"{folder} has a {_HEAD} that differs from {_EMBEDDING} although config.json ties "
                "them: set tie_word_embeddings to false"
            )
        del weights[_HEAD]
    return weights


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, after a check of the index where they are shards."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}: fetch the model's safetensors files"
        )
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(f"{folder / INDEX} has no weight_map: fetch it again")
    for name, shard in index.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f"{folder / INDEX} puts {name} into {shard!r}: fetch it again")
    files = [folder / shard for shard in sorted(set(index.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist, but {INDEX} lists it: fetch it")
        tensors = _header(file)
        for name, shard in index.items():
            if shard == file.name and name not in tensors:
                raise UserError(
                    f"tensor {name} is not in {file}, where {INDEX} puts it: fetch both"
                )
    return files


def _header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of each tensor in a safetensors file."""
    try:
        with safetensors.safe_open(file, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()
            }
    except safetensors.SafetensorError as error:
        raise UserError(f"{file} is damaged or truncated ({error}): fetch it again") from error


def _check_tensors(
    where: str, config: LlamaConfig, found: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """UserError unless `found`, dtype and shape by name, are the tensors of `config`."""
    expected = {parameter.huggingface: parameter.shape for parameter in parameters(config)}
    for name, shape in expected.items():
        if name not in found:
            remedy = "check num_hidden_layers and tie_word_embeddings in config.json"
            raise UserError(f"tensor {name} is missing in {where}: {remedy}")
        if found[name][1] != shape:
            raise UserError(
                f"tensor {name} in {where} has shape {list(found[name][1])}, but config.json asks "
                f"for {list(shape)}: one of them belongs to another model"
            )
    if config.tied:
        expected[_HEAD] = expected[_EMBEDDING]
    for name, (dtype, shape) in found.items():
        if name.endswith(_IGNORED_SUFFIX):
            continue
        if name not in expected:
            raise UserError(
                f"unexpected tensor {name} of shape {list(shape)} in {where}: it belongs to no "
                "weight of a plain Llama with this config.json, so remove or merge it"
            )
        if dtype not in _DTYPES:
            raise UserError(
                f"tensor {name} in {where} has dtype {dtype}: "
                f"convert it to one of {', '.join(_DTYPES)}"
            )


def _dtype_name(array: np.ndarray) -> str:
    names = {np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype("f2"): "F16", np.dtype("f4"): "F32"}
    return names.get(array.dtype, str(array.dtype))


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
