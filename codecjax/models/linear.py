"""The one linear layer: projections stored as tiles, or as plain arrays while they are trained."""

from collections.abc import Sequence

import jax
from flax import nnx

import kernels_pallas
from codecjax.tiles import Residency, TiledMatrix
from kernels_pallas import reference_xla
from kernels_pallas.inputs import Input, value_of


class TiledLinear(nnx.Module):
    """y[N, OUT] = x[N, K] times the transpose of a weight [OUT, K], for weights that share x.

    Attributes:
      weights: TiledMatrices, or arrays [OUT, K], which XLA multiplies whatever the
        implementation.
      first_tile: number of the first weight's first tile among the model's TILES; the tiles of
        the others follow.
      implementation: of `kernels_pallas.matmul_all`.
    """

    def __init__(
        self,
        weights: Sequence[TiledMatrix | jax.Array],
        first_tile: int,
        implementation: str | None,
    ) -> None:
        self.weights = nnx.List(nnx.Param(weight) for weight in weights)
        self.first_tile = first_tile
        self.implementation = implementation

    @property
    def tiled(self) -> tuple[TiledMatrix, ...]:
        """Those of the weights that are tiled."""
        weights = [weight.get_value() for weight in self.weights]
        return tuple(weight for weight in weights if isinstance(weight, TiledMatrix))

    def __call__(
        self,
        x: Input,
        residency: Residency | None,
        added: jax.Array | None = None,
        following: Sequence[TiledMatrix | jax.Array] = (),
    ) -> tuple[tuple[jax.Array, ...], Residency | None]:
        """float32[N, OUT] of x[N, K] for each weight, and the residency afterwards.

        Args:
          x: of the activations' dtype, or what it is made of.
          residency: of the weights' tiles.
          added: float32[N, OUT] that is added to the product, of which there is one then.
          following: what is read next: matrices, and other arrays.
        """
        weights = [weight.get_value() for weight in self.weights]
        if isinstance(weights[0], TiledMatrix):
            return kernels_pallas.matmul_all(
                x,
                weights,
                residency,
                self.first_tile,
                added=added,
                following=following,
                implementation=self.implementation,
            )
        multiplied = value_of(x)
        products = [reference_xla.multiply(multiplied, weight) for weight in weights]
        return tuple(y if added is None else added + y for y in products), residency
