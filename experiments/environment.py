"""Where a run happened: versions, device, commit and command."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")
_COMMAND_TIMEOUT = 20.0


def describe(implementations: Mapping[str, str]) -> dict[str, Any]:
    """Versions, device and provenance of a run.

    Args:
      implementations: name of the implementation that ran, by op.
    """
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "device": device_name(),
        "device_count": jax.device_count(),
        "platform_version": str(device.client.platform_version).strip(),
        "driver": nvidia_driver(),
        "cpu_count": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "implementations": dict(implementations),
        "git": git_state(Path(__file__).resolve().parent.parent),
        "command": command_line(),
        "time_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def package_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name() -> str:
    """The kind of the default device; for a CPU also the processor's name where it is known."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() != "cpu":
        return kind
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return f"{kind} ({line.split(':', 1)[1].strip()})"
    return kind


def nvidia_driver() -> str | None:
    """Version of the NVIDIA driver, or None where there is none."""
    if jax.default_backend() != "gpu" or shutil.which("nvidia-smi") is None:
        return None
    output = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return output.splitlines()[0].strip() if output else None


def git_state(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout at `root` and whether files differ from it; None if there is none."""
    if shutil.which("git") is None:
        return None
    top = _output(["git", "-C", str(root), "rev-parse", "--show-toplevel"])
    # An installed copy may lie inside somebody else's repository.
    if top is None or Path(top.strip()).resolve() != root.resolve():
        return None
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    changes = _output(["git", "-C", str(root), "status", "--porcelain"])
    if commit is None or changes is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def command_line() -> str:
    return shlex.join(["python", *sys.orig_argv[1:]])


def _output(command: Iterable[str]) -> str | None:
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, timeout=_COMMAND_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
