"""Says what is installed, which devices JAX sees, and which implementations can run on them.

python -m experiments.info
"""

import platform
from collections.abc import Iterator

import jax
from rich.console import Console

import codecjax
import kernels_pallas
from codecjax.errors import UserError
from experiments import cli, environment, formats


def lines() -> Iterator[str]:
    """The report, line by line."""
    yield f"codecjax {codecjax.__version__}"
    yield f"python {platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in environment.PACKAGES:
        yield f"{name} {environment.package_version(name) or 'not installed'}"
    yield ""
    yield f"default backend: {jax.default_backend()}"
    for device in jax.devices():
        yield f"device {device.id}: {device.device_kind}, {_memory(device)}"
    driver = environment.nvidia_driver()
    if driver is not None:
        yield f"NVIDIA driver {driver}"
    yield ""
    chosen = kernels_pallas.resolve(None)
    for name, obstacle in kernels_pallas.implementations().items():
        verdict = "can run here" if obstacle is None else f"cannot run here: {obstacle}"
        yield f"implementation {name}: {verdict}{' (the default)' if name == chosen else ''}"


def _memory(device: jax.Device) -> str:
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return "memory unknown to JAX" if limit is None else f"{formats.size(limit)} for JAX"


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: this program takes none")
    console = Console()
    for line in lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    cli.run(main)
