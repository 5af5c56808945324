"""GPU kernels for tiled matrices, each with a reference in plain JAX."""

from kernels_pallas.attention import attend, attention_implementation
from kernels_pallas.decode import decode, fill
from kernels_pallas.implementations import implementations, resolve
from kernels_pallas.inputs import Gated, Input, Mixed, Normed, value_of
from kernels_pallas.lookup import lookup, lookup_implementation
from kernels_pallas.matmul import matmul, matmul_all

__all__ = [
    "Gated",
    "Input",
    "Mixed",
    "Normed",
    "attend",
    "attention_implementation",
    "decode",
    "fill",
    "implementations",
    "lookup",
    "lookup_implementation",
    "matmul",
    "matmul_all",
    "resolve",
    "value_of",
]
