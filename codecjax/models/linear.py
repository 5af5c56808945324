"""The one linear layer: projections stored as tiles, or as plain arrays while they are trained."""

from collections.abc import Sequence

import jax
from flax import nnx

import kernels_pallas
from codecjax.tiles import Residency, TiledMatrix
from kernels_pallas import reference_xla


class TiledLinear(nnx.Module):
    """y[N, OUT] = x[N, K] times the transpose of a weight [OUT, K], for weights that share x.

    Attributes:
      weights: TiledMatrices, or arrays [OUT, K], which XLA multiplies whatever the
        implementation.
      first_tile: number of the first weight's first tile among the model's TILES; the tiles of
        the others follow.
      implementation: of `kernels_pallas.matmul_all`.
      activations: dtype that x is multiplied in.
    """

    def __init__(
        self,
        weights: Sequence[TiledMatrix | jax.Array],
        first_tile: int,
        implementation: str | None,
        activations: str,
    ) -> None:
        self.weights = nnx.List(nnx.Param(weight) for weight in weights)
        self.first_tile = first_tile
        self.implementation = implementation
        self.activations = activations

    def __call__(
        self, x: jax.Array, residency: Residency | None
    ) -> tuple[tuple[jax.Array, ...], Residency | None]:
        """float32[N, OUT] of x[N, K] for each weight, and the residency afterwards."""
        weights = [weight.get_value() for weight in self.weights]
        x = x.astype(self.activations)
        if isinstance(weights[0], TiledMatrix):
            return kernels_pallas.matmul_all(
                x, weights, residency, self.first_tile, implementation=self.implementation
            )
        return tuple(reference_xla.multiply(x, weight) for weight in weights), residency
