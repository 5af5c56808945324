"""GPU kernels for tiled matrices, each with a reference in plain JAX."""

from kernels_pallas.decode import decode
from kernels_pallas.implementations import implementations, resolve
from kernels_pallas.matmul import matmul

__all__ = ["decode", "implementations", "matmul", "resolve"]
