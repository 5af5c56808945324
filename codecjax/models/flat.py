"""Parameters as few arrays: every array costs the host two or three microseconds a step, which
for hundreds of matrices is more than the step takes a GPU.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Structure:
    """What `flat` took from a tree.

    Attributes:
      tree: its structure.
      leaf: of each of its leaves, the number of the array that it is.
    """

    tree: Any
    leaf: tuple[int, ...]


def flat(tree: Any) -> tuple[list[jax.Array], Structure]:
    """The arrays of a tree, each once, and what makes the tree of them again."""
    leaves, structure = jax.tree.flatten(tree)
    distinct = {id(array): array for array in leaves}
    number = {key: index for index, key in enumerate(distinct)}
    return list(distinct.values()), Structure(structure, tuple(number[id(each)] for each in leaves))


def on_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of parameters that takes them as `flat` gives them: arrays and `structure`."""

    def with_arrays(
        arrays: list[jax.Array], *inputs: Any, structure: Structure, **options: Any
    ) -> Any:
        # A leaf is one object wherever it comes, which tells that matrices share arrays.
        leaves = [arrays[number] for number in structure.leaf]
        return function(jax.tree.unflatten(structure.tree, leaves), *inputs, **options)

    return with_arrays
