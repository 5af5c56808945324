"""The promises of README, CI and pinned versions, as far as they can be read off the files."""

import os
import re
import tomllib
from pathlib import Path

import jax

ROOT = Path(__file__).parents[2]
COMMANDS = ("experiments/demo.sh", "tests/run.sh")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pinned}


def test_the_readme_names_two_commands_that_can_be_started() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert command in readme
        assert os.access(ROOT / command, os.X_OK)


def test_ci_runs_the_tests_as_the_readme_does() -> None:
    assert COMMANDS[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_link_and_picture_of_the_readme_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)#]+)\)", readme)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[<>=]", each)[0].lower().replace("_", "-") for each in wanted}
    assert names - {"codecjax"} <= pins().keys()
    assert pins()["jax"] == jax.__version__ == "0.11.2"


def test_pins_name_no_registry() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"https?:|index-url|find-links|\.\w+/", text)
