"""From a config and its sweep to the points that will run: overrides, names, checks."""

import dataclasses
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections.config_dict import ConfigDict

import kernels_pallas
from codecjax.cache import POLICIES, pool_pages
from codecjax.codecs import check_options, codec_module
from codecjax.codecs.intervals import Option
from codecjax.errors import UserError
from codecjax.tiles import check_tile, page_bytes
from experiments.records import same_config
from experiments.shapes import SHAPES
from kernels_pallas.arguments import check_codec

COSTS = ("tiles", "measured")


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: what tables call it.
      folder: name of its folder.
      config: its whole configuration.
      error: why it can't run, found before anything ran; None if nothing was found.
    """

    name: str
    folder: str
    config: ConfigDict
    error: UserError | None = None


@dataclasses.dataclass(frozen=True)
class ConfigModule:
    """A config file: its name, the first paragraph of its docstring, and its sweep.

    Attributes:
      name: the file's name without `.py`.
      about: the first paragraph of its docstring.
      sweep: flat overrides of each point, as its `get_sweep` returned them; None without one.
    """

    name: str
    about: str
    sweep: list[dict[str, Any]] | None


def load_module(path: Path) -> ConfigModule:
    """Reads what a config file holds beside `get_config`."""
    specification = importlib.util.spec_from_file_location("config_file", path)
    if specification is None or specification.loader is None:
        raise UserError(f"config file {str(path)!r} is not a Python file: name a .py file")
    module: ModuleType = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    sweep = module.get_sweep() if hasattr(module, "get_sweep") else None
    about = (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    return ConfigModule(path.stem, about, sweep)


def resolve_points(
    config: ConfigDict, sweep: Sequence[Mapping[str, Any]] | None, overrides: Mapping[str, Any]
) -> list[Point]:
    """The points of a sweep, in order; without a sweep the config itself is the only one.

    Overrides from the command line hold for every point, also where the sweep sets the same
    field. Points that become equal by that are merged, and a point's name is then derived
    from its fields.

    Args:
      config: the base, with `overrides` already applied.
      sweep: flat dictionaries of fields; "name" names the point.
      overrides: flat; what the command line set.

    Raises:
      UserError: the config itself, or every point, is wrong.
    """
    check(config)
    points: list[Point] = []
    for changes in [{}] if sweep is None else sweep:
        point = _resolve_point(config, changes, overrides)
        # A point whose fields could not be set still has the config of another one.
        if point.error is None and any(_runs_the_same(point, other) for other in points):
            continue
        points.append(_with_free_folder(point, {other.folder for other in points}))
    if not points:
        raise UserError("the config's get_sweep() returns no points: give it at least one")
    errors = [point.error for point in points if point.error is not None]
    if len(errors) == len(points):
        raise errors[0]
    return points


def _runs_the_same(point: Point, other: Point) -> bool:
    same = same_config(point.config.to_dict(), other.config.to_dict())
    return same and other.error is None


def _resolve_point(
    base: ConfigDict, changes: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Point:
    fields = {key: value for key, value in changes.items() if key != "name"}
    config = base.copy_and_resolve_references()
    error = None
    try:
        config.update_from_flattened_dict({**fields, **overrides})
        check(config)
    except UserError as found:
        error = found
    except (KeyError, AttributeError, TypeError, ValueError) as found:
        # What ml_collections raises for unknown fields and values of another type.
        error = UserError(f"the sweep's fields {fields} do not fit the config: {found}")
        error.__cause__ = found
    renamed = any(key in overrides and overrides[key] != fields[key] for key in fields)
    name = str(changes.get("name", "")) if not renamed else ""
    name = name or derived_name(config)
    return Point(name, slug(name), config, error)


def _with_free_folder(point: Point, taken: set[str]) -> Point:
    """Gives the point a name of its own where another one has it already."""
    if point.folder not in taken:
        return point
    number = 2
    while f"{point.folder}-{number}" in taken:
        number += 1
    return dataclasses.replace(
        point, name=f"{point.name} ({number})", folder=f"{point.folder}-{number}"
    )


def derived_name(config: ConfigDict) -> str:
    """A name from the fields that sweeps usually change."""
    if config.codec.name == "bf16":
        parts = ["bf16"]
    else:
        budget = config.cache.budget_bytes
        size = f"{config.cache.budget_fraction:.1%}" if budget is None else f"{budget} bytes"
        parts = [codec_label(config), config.cache.policy, f"{size} kept"]
    if config.run.implementation:
        parts.append(config.run.implementation)
    return ", ".join(parts)


def codec_label(config: ConfigDict) -> str:
    """The config's codec and the values of its options, as tables call them."""
    # A target that is 0 is none.
    options = [
        value if isinstance(value, str) else f"{value:g}"
        for value in codec_options(config).values()
        if value
    ]
    return " ".join([config.codec.name, *options])


def slug(name: str) -> str:
    """`name` as a folder: lower case letters, digits, dots and hyphens."""
    words = name.lower().replace("%", " percent").replace("/", " of ")
    return re.sub(r"[^a-z0-9.]+", "-", words).strip("-.") or "point"


def codec_options(config: ConfigDict) -> dict[str, Option]:
    """The options that the config's codec takes."""
    return {name: config.codec[name] for name in codec_module(config.codec.name).OPTIONS}


def tile_of(config: ConfigDict) -> tuple[int, int]:
    return (config.codec.tile_rows, config.codec.tile_columns)


def check(config: ConfigDict) -> None:
    """Finds what is wrong with a config before anything runs; UserError names it."""
    check_options(config.codec.name, codec_options(config))
    check_codec(config.codec.name, kernels_pallas.resolve(config.run.implementation))
    page = page_bytes(check_tile(tile_of(config)))
    cache, run, model = config.cache, config.run, config.model
    if cache.policy not in POLICIES:
        raise UserError(f"unknown policy {cache.policy!r}: choose one of {', '.join(POLICIES)}")
    if cache.costs not in COSTS:
        raise UserError(f"unknown cache.costs {cache.costs!r}: choose one of {', '.join(COSTS)}")
    if cache.budget_bytes is None:
        if not 0 <= cache.budget_fraction <= 1:
            raise UserError(
                f"cache.budget_fraction {cache.budget_fraction} is no share: choose one from 0 to 1"
            )
    else:
        pool_pages(cache.budget_bytes, page)
    if model.path:
        if not Path(model.path).exists():
            raise UserError(
                f"model.path {model.path!r} does not exist: give a Hugging Face folder or a "
                "codecjax checkpoint"
            )
    elif model.shapes not in SHAPES:
        raise UserError(f"unknown model.shapes {model.shapes!r}: choose one of {', '.join(SHAPES)}")
    if run.new_tokens < 1:
        raise UserError(f"run.new_tokens {run.new_tokens} is too few: generate at least 1")
    if not run.prompt and run.prompt_tokens < 1:
        raise UserError(f"run.prompt_tokens {run.prompt_tokens} is too few: give at least 1")
