"""Quality of a model as a codec stores it, measured once a codec and recorded.

Leaves `quality/<codec>.json` in the run's folder; one that answers the same question is read
instead of measured again.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections.config_dict import ConfigDict

from codecjax.io.huggingface import HuggingFaceFolder
from codecjax.operations import decode
from experiments import environment
from experiments.configuration import codec_label, codec_options, slug, tile_of
from experiments.quality import measure
from experiments.quality_candidates import stored_by
from experiments.records import plain, read_json, write_json
from experiments.stdlib_corpus import read_corpus


def held_out_texts(characters: int) -> dict[str, str]:
    """The first so many characters of each held-out module, by its path."""
    return {name: text[:characters] for name, text in read_corpus().held_out.items()}


def quality_of(
    config: ConfigDict,
    folder: HuggingFaceFolder,
    texts: Mapping[str, str],
    workdir: Path,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The fields of `experiments.quality.Quality` for the codec of a point.

    Args:
      config: of the point; its codec, tile and model count.
      folder: the model, in bf16.
      texts: by name.
      workdir: folder of the run.
      say: told of progress.

    Raises:
      UserError: the codec cannot store the model, or the model has no tokenizer.
    """
    label = codec_label(config)
    path = workdir / "quality" / f"{slug(label)}.json"
    asked = plain(
        {
            "model": config.model.path,
            "codec": config.codec.name,
            "options": codec_options(config),
            "tile": tile_of(config),
            "texts": {
                "sha256": _digest(texts),
                "bytes": sum(len(text.encode()) for text in texts.values()),
            },
        }
    )
    if path.is_file():
        earlier = read_json(path)
        if earlier["asked"] == asked:
            say(f"[{label}] quality measured before, skipped")
            return dict(earlier["quality"])
    say(f"[{label}] measures the quality")
    stored = stored_by(folder, config.codec.name, tile_of(config), codec_options(config))
    decoded = {name: decode(t) for name, t in stored.items()}
    del stored
    found = dataclasses.asdict(measure(folder, {label: decoded}, texts)[label])
    described = environment.describe({"decode": "xla"})
    write_json(path, {"asked": asked, "environment": described, "quality": found})
    return found


def _digest(texts: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for name, text in texts.items():
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()
