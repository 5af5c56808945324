"""The one linear layer: a projection stored as tiles, or as a plain array while it is trained."""

import jax
from flax import nnx

import kernels_pallas
from codecjax.tiles import Residency, TiledMatrix
from kernels_pallas import reference_xla


class TiledLinear(nnx.Module):
    """y[N, OUT] = x[N, K] times the transpose of a weight [OUT, K].

    Attributes:
      weight: a TiledMatrix, or an array [OUT, K], which XLA multiplies whatever the
        implementation.
      first_tile: number of the weight's first tile among the model's TILES.
      implementation: of `kernels_pallas.matmul`.
      activations: dtype that x is multiplied in.
    """

    def __init__(
        self,
        weight: TiledMatrix | jax.Array,
        first_tile: int,
        implementation: str | None,
        activations: str,
    ) -> None:
        self.weight = nnx.Param(weight)
        self.first_tile = first_tile
        self.implementation = implementation
        self.activations = activations

    def __call__(
        self, x: jax.Array, residency: Residency | None
    ) -> tuple[jax.Array, Residency | None]:
        """float32[N, OUT] of x[N, K], and the residency after the weight's tiles were used."""
        weight, x = self.weight.get_value(), x.astype(self.activations)
        if isinstance(weight, TiledMatrix):
            return kernels_pallas.matmul(
                x, weight, residency, self.first_tile, implementation=self.implementation
            )
        return reference_xla.multiply(x, weight), residency
