"""Configs and sweeps become points."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from ml_collections.config_dict import ConfigDict

from codecjax.errors import UserError
from configs import base
from experiments.configuration import check, codec_options, load_module, resolve_points, slug

CONFIGS = Path(__file__).parents[2] / "configs"
SWEEPS = ("codec_frontier", "embedded_cache_sweep", "embedded_policies", "tinyllama_cache_sweep")


def config_of(**fields: Any) -> ConfigDict:
    config = base.get_config()
    config.lock()
    config.update_from_flattened_dict({"model.path": "", "model.shapes": "tiny", **fields})
    return config


def test_a_config_without_a_sweep_is_one_point() -> None:
    (point,) = resolve_points(config_of(), None, {})
    assert point.name == "window 11, pinned, 25.0% kept"
    assert point.folder == "window-11-pinned-25.0-percent-kept"
    assert point.error is None


def test_points_may_have_any_codec_and_its_options() -> None:
    sweep = [
        {"codec.name": "rans"},
        {"codec.name": "rans", "codec.probability_bits": 10},
        {"codec.name": "int8_rans", "codec.prediction": "best"},
    ]
    points = resolve_points(config_of(), sweep, {})
    assert [point.error for point in points] == [None, None, None]
    assert [point.name for point in points] == [
        "rans 12, pinned, 25.0% kept",
        "rans 10, pinned, 25.0% kept",
        "int8_rans best 12 16, pinned, 25.0% kept",
    ]
    assert codec_options(points[1].config) == {"probability_bits": 10}


def test_points_are_named_and_differ_by_their_fields() -> None:
    sweep = [
        {"name": "plain", "codec.name": "bf16"},
        {"name": "half", "cache.budget_fraction": 0.5},
    ]
    plain, half = resolve_points(config_of(), sweep, {})
    assert (plain.name, plain.config.codec.name) == ("plain", "bf16")
    assert (half.name, half.config.cache.budget_fraction) == ("half", 0.5)
    assert half.config.codec.name == "window"


def test_the_command_line_overrides_the_sweep_and_merges_equal_points() -> None:
    overrides = {"cache.budget_fraction": 0.75}
    sweep = [{"name": f"{share}", "cache.budget_fraction": share} for share in (0.25, 0.5, 0.75)]
    config = config_of(**overrides)
    (point,) = resolve_points(config, sweep, overrides)
    assert point.name == "window 11, pinned, 75.0% kept"


def test_points_of_one_name_get_folders_of_their_own() -> None:
    sweep = [{"name": "same", "run.seed": seed} for seed in range(3)]
    points = resolve_points(config_of(), sweep, {})
    assert [point.folder for point in points] == ["same", "same-2", "same-3"]
    assert [point.name for point in points] == ["same", "same (2)", "same (3)"]


def test_a_wrong_point_is_kept_with_its_error() -> None:
    sweep = [{"name": "good"}, {"name": "bad", "cache.policy": "mru"}, {"codec.widht": 8}]
    good, bad, typo = resolve_points(config_of(), sweep, {})
    assert good.error is None
    assert "unknown policy 'mru'" in str(bad.error)
    assert "codec.widht" in str(typo.error)


def test_a_config_that_is_wrong_itself_is_refused() -> None:
    overrides = {"cache.budget_bytes": -1}
    with pytest.raises(UserError, match="-1"):
        resolve_points(config_of(**overrides), [{"codec.name": "bf16"}], overrides)
    with pytest.raises(UserError, match="unknown policy 'mru'"):
        resolve_points(config_of(), [{"cache.policy": "mru"}], {})
    with pytest.raises(UserError, match="no points"):
        resolve_points(config_of(), [], {})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codec.name": "zip"}, ["'zip'", "window"]),
        ({"codec.width": 9}, ["width 9", "8, 11, 16"]),
        ({"codec.name": "int8_rans", "codec.prediction": "paeth"}, ["'paeth'", "planar, best"]),
        ({"codec.tile_rows": 100}, ["100x256", "64x128"]),
        ({"cache.policy": "mru"}, ["'mru'", "pinned"]),
        ({"cache.costs": "guessed"}, ["'guessed'", "measured"]),
        ({"cache.budget_fraction": 1.5}, ["1.5", "0 to 1"]),
        ({"cache.budget_fraction": -0.5}, ["-0.5", "0 to 1"]),
        ({"cache.budget_bytes": -5}, ["-5", "negative", "0 or more"]),
        ({"cache.budget_bytes": 1000}, ["1000", "131072", "one page"]),
        ({"model.path": "no/such/folder"}, ["no/such/folder", "does not exist"]),
        ({"model.shapes": "huge"}, ["'huge'", "tinyllama"]),
        ({"run.new_tokens": 0}, ["new_tokens 0", "at least 1"]),
        ({"run.prompt": "", "run.prompt_tokens": 0}, ["prompt_tokens 0", "at least 1"]),
        ({"run.implementation": "cuda"}, ["'cuda'", "xla"]),
    ],
)
def test_wrong_fields_are_named_with_the_remedy(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        check(config_of(**fields))
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SWEEPS)
def test_the_committed_configs_make_points(name: str) -> None:
    module = load_module(CONFIGS / f"{name}.py")
    config = importlib.import_module(f"configs.{name}").get_config()
    # The trained model is replaced by shapes: this is about the points.
    overrides = {"model.path": "", "model.shapes": "tiny"}
    config.update_from_flattened_dict(overrides)
    points = resolve_points(config, module.sweep, overrides)
    assert module.sweep is not None
    assert [point.name for point in points] == [changes["name"] for changes in module.sweep]
    assert all(point.error is None for point in points)
    # What the others are compared with, first.
    assert points[0].config.codec.name == "bf16"
    assert f"--config=configs/{name}.py" in (CONFIGS / f"{name}.py").read_text()


def test_tinyllama_has_the_noted_cache_among_its_budgets() -> None:
    module = load_module(CONFIGS / "tinyllama_cache_sweep.py")
    fractions = {changes["cache.budget_fraction"] for changes in module.sweep or []}
    assert {0.0, 20 / 155, 1.0} < fractions


def test_about_is_the_first_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text('"""What it\nshows.\n\nCommand: ..."""\n')
    module = load_module(file)
    assert (module.name, module.about, module.sweep) == ("mine", "What it shows.", None)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("window, 12.5 % kept", "window-12.5-percent-kept"),
        ("20/155", "20-of-155"),
        ("%/", "percent-of"),
        ("...", "point"),
    ],
)
def test_slug(name: str, folder: str) -> None:
    assert slug(name) == folder
