"""Whether the peers can be measured here."""

import importlib.util

import jax

from codecjax.errors import UserError

_MODULES = ("cupy", "dfloat11", "nvidia.nvcomp", "torch")


def check() -> None:
    """Raises UserError where a package that the peers need is missing, or there is no GPU."""
    missing = [name for name in _MODULES if not _installed(name)]
    if missing:
        raise UserError(
            f"--peers needs the packages {', '.join(missing)}, which are not installed: "
            "pip install 'codecjax[bench]'"
        )
    if jax.default_backend() != "gpu":
        raise UserError("--peers needs an NVIDIA GPU and JAX sees none: leave --peers out")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        # The parent of a dotted name is missing.
        return False
