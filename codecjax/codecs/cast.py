"""The cast to bf16 that comes before encoding, which says what it changed."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp

from codecjax.errors import UserError


class CastWarning(UserWarning):
    """Weights were rounded to bf16 before they were encoded; `report` says how much."""

    def __init__(self, report: "CastReport"):
        super().__init__(str(report))
        self.report = report


@dataclasses.dataclass(frozen=True)
class CastReport:
    """What a cast to bf16 changed.

    Attributes:
      dtype: source dtype name.
      weights: number of weights cast.
      changed: weights whose value differs after the cast (NaN to NaN is no change).
      overflowed: finite weights that became infinite.
      max_error: largest absolute difference among weights that stayed finite.
    """

    dtype: str
    weights: int
    changed: int
    overflowed: int
    max_error: float

    def __str__(self) -> str:
        return (
            f"cast {self.weights} weights from {self.dtype} to bfloat16: {self.changed} changed, "
            f"{self.overflowed} overflowed to infinity, largest absolute error "
            f"{self.max_error:.3g}; bit-exactness holds from the bfloat16 weights on"
        )

    def merge(self, other: "CastReport") -> "CastReport":
        """The report of both casts together."""
        dtypes = sorted({*self.dtype.split("+"), *other.dtype.split("+")})
        return CastReport(
            dtype="+".join(dtypes),
            weights=self.weights + other.weights,
            changed=self.changed + other.changed,
            overflowed=self.overflowed + other.overflowed,
            max_error=max(self.max_error, other.max_error),
        )


@jax.jit
def _differences(w: jax.Array, cast: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    wide, back = w.astype(jnp.float32), cast.astype(jnp.float32)
    same = (wide == back) | (jnp.isnan(wide) & jnp.isnan(back))
    error = jnp.where(jnp.isfinite(wide) & jnp.isfinite(back), jnp.abs(wide - back), 0.0)
    overflowed = jnp.isfinite(wide) & ~jnp.isfinite(back)
    return jnp.sum(~same), jnp.sum(overflowed), jnp.max(error, initial=0.0)


def to_bf16(w: jax.Array) -> tuple[jax.Array, CastReport | None]:
    """Casts float32 or float16 weights to bfloat16; bfloat16 passes unchanged.

    Args:
      w: any shape, bfloat16, float32 or float16.

    Returns:
      The bfloat16 array, and a report where a cast took place.

    Raises:
      UserError: `w` has another dtype.
    """
    if w.dtype == jnp.bfloat16:
        return w, None
    if w.dtype not in (jnp.float32, jnp.float16):
        raise UserError(
            f"weights of dtype {w.dtype} cannot be encoded: "
            "convert them to bfloat16, float32 or float16 first"
        )
    cast = w.astype(jnp.bfloat16)
    changed, overflowed, max_error = _differences(w, cast)
    return cast, CastReport(str(w.dtype), w.size, int(changed), int(overflowed), float(max_error))


def warn_of_cast(report: CastReport, stacklevel: int = 2) -> None:
    """Issues the report as a CastWarning."""
    warnings.warn(CastWarning(report), stacklevel=stacklevel + 1)
