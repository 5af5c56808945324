"""What every Mosaic GPU kernel call shares: the device, lowering semantics, the interpreter."""

from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.experimental.pallas import mosaic_gpu as plgpu

# Multiprocessors of an H100 and an H200.
SMS = 132

# Inline lane code reads and returns arrays in layouts it names; only Lane semantics keeps them.
LANE_SEMANTICS = plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane)


def interpreter(interpret: bool) -> InterpretGPUParams | None:
    """The `interpret` argument of `plgpu.kernel`."""
    return InterpretGPUParams() if interpret else None
