"""Access traces: the order in which a model's steps touch its objects."""

import numpy as np

from codecjax.errors import UserError


def cyclic_trace(objects: int, steps: int) -> np.ndarray:
    """A dense model: every step touches all objects in order.

    Returns:
      int64[steps * objects]: 0, 1, ..., objects - 1, repeated `steps` times.

    Raises:
      UserError: a negative count.
    """
    if objects < 0 or steps < 0:
        raise UserError(
            f"a cyclic trace of {objects} objects and {steps} steps is impossible: "
            "give counts of at least 0"
        )
    return np.tile(np.arange(objects, dtype=np.int64), steps)


def zipf_trace(
    layers: int, experts: int, top: int, steps: int, *, exponent: float = 1.0, seed: int = 0
) -> np.ndarray:
    """A mixture of experts: each step draws `top` different experts in each layer.

    Expert popularity is Zipf with `exponent`, in an order of its own in each layer.

    Returns:
      int64[steps * layers * top]; expert `e` of layer `l` is object `l * experts + e`.

    Raises:
      UserError: a count below 1, or more experts drawn than there are.
    """
    if min(layers, experts, top, steps) < 1 or top > experts:
        raise UserError(
            f"cannot draw {top} of {experts} experts in {layers} layers for {steps} steps: "
            "give counts of at least 1 and no more drawn than there are experts"
        )
    random = np.random.default_rng(seed)
    popularity = np.arange(1, experts + 1, dtype=np.float64) ** -exponent
    popularity /= popularity.sum()
    ranking = [random.permutation(experts) for _ in range(layers)]
    draws = [
        layer * experts + ranking[layer][random.choice(experts, top, False, popularity)]
        for _ in range(steps)
        for layer in range(layers)
    ]
    return np.concatenate(draws).astype(np.int64)
