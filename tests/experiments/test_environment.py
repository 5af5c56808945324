"""What is recorded of where a run happened."""

import subprocess
from pathlib import Path

import jax

from experiments import environment


def test_versions_device_and_implementations() -> None:
    described = environment.describe({"matmul": "xla"})
    assert described["jax"] == jax.__version__
    assert described["device"] == environment.device_name()
    assert described["implementations"] == {"matmul": "xla"}
    assert described["time_utc"].endswith("+00:00")
    assert environment.package_version("no-such-package") is None


def test_the_state_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    assert environment.git_state(tmp_path) is None
    git("init")
    git("commit", "--allow-empty", "-m", "first")
    state = environment.git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "new").write_text("")
    assert environment.git_state(tmp_path) == {**state, "dirty": True}
    # A folder inside somebody else's checkout is no checkout of its own.
    (tmp_path / "inside").mkdir()
    assert environment.git_state(tmp_path / "inside") is None
