"""GPU kernels for tiled matrices, each with a reference in plain JAX."""

from kernels_pallas.decode import decode, fill
from kernels_pallas.implementations import implementations, resolve
from kernels_pallas.lookup import lookup
from kernels_pallas.matmul import matmul, matmul_all

__all__ = ["decode", "fill", "implementations", "lookup", "matmul", "matmul_all", "resolve"]
