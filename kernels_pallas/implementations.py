"""Which implementations of the ops can run here, and why the others cannot."""

import jax

from codecjax.errors import UserError

XLA = "xla"
MOSAIC_GPU = "mosaic_gpu"


def _mosaic_gpu_obstacle() -> str | None:
    device = jax.devices()[0]
    if device.platform != "gpu":
        return f"it needs an NVIDIA Hopper GPU and JAX's default device is {device.device_kind!r}"
    capability = getattr(device, "compute_capability", "unknown")
    if str(capability).split(".")[0] != "9":
        return (
            "its matrix instructions (wgmma) need compute capability 9.x and "
            f"{device.device_kind!r} has {capability}"
        )
    return None


def implementations() -> dict[str, str | None]:
    """Implementation names; None where it can run here, else the reason why not."""
    return {XLA: None, MOSAIC_GPU: _mosaic_gpu_obstacle()}


def resolve(implementation: str | None) -> str:
    """The implementation to run: the one asked for, or for None the fastest that can.

    Raises:
      UserError: the name is unknown, or it cannot run here.
    """
    known = implementations()
    if implementation is None:
        return MOSAIC_GPU if known[MOSAIC_GPU] is None else XLA
    if implementation not in known:
        raise UserError(f"unknown implementation {implementation!r}: choose one of {list(known)}")
    obstacle = known[implementation]
    if obstacle is not None:
        raise UserError(f"implementation {implementation!r} cannot run here: {obstacle}")
    return implementation
