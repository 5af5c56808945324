"""Parameters as few arrays: every array costs the host two or three microseconds a step, which
for hundreds of matrices is more than the step takes a GPU.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Structure:
    """What `flat` took from a tree.

    Attributes:
      tree: its structure.
      leaf: of each of its leaves, the number of the array that it is in, and its row there, or
        None where it is the whole array.
    """

    tree: Any
    leaf: tuple[tuple[int, int | None], ...]


def flat(tree: Any) -> tuple[list[jax.Array], Structure]:
    """The arrays of a tree, few of them, and what makes the tree of them again.

    An array that the tree has several times comes once. Vectors, which are the scales of norms,
    are stacked: a copy, but a small one.
    """
    leaves, structure = jax.tree.flatten(tree)
    distinct = {id(array): array for array in leaves}
    stacks: dict[Any, list[jax.Array]] = {}
    where: dict[int, tuple[Any, int | None]] = {}
    for key, array in distinct.items():
        if array.ndim == 1 and array.dtype == jnp.bfloat16:
            alike = stacks.setdefault(array.shape, [])
            where[key] = (array.shape, len(alike))
            alike.append(array)
        else:
            stacks[key], where[key] = [array], (key, None)
    number = {key: index for index, key in enumerate(stacks)}
    leaf = tuple((number[stack], row) for stack, row in (where[id(array)] for array in leaves))
    arrays = [
        jnp.stack(alike) if isinstance(key, tuple) else alike[0] for key, alike in stacks.items()
    ]
    return arrays, Structure(structure, leaf)


def on_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of parameters that takes them as `flat` gives them: arrays and `structure`."""

    def with_arrays(
        arrays: list[jax.Array], *inputs: Any, structure: Structure, **options: Any
    ) -> Any:
        # A leaf is one object wherever it comes, which tells that matrices share arrays.
        found: dict[tuple[int, int | None], jax.Array] = {}
        for place in structure.leaf:
            number, row = place
            if place not in found:
                found[place] = arrays[number] if row is None else arrays[number][row]
        leaves = [found[place] for place in structure.leaf]
        return function(jax.tree.unflatten(structure.tree, leaves), *inputs, **options)

    return with_arrays
