"""`most_bits` of `window`: as few of a model's projections as that takes have the narrowest width.

That has the fewest bits, but more escapes, which a product of many rows has enough warps to hide.
So projections with the most rows for their columns come first. Those that multiply the same
activations are one product, and have one width.
"""

import dataclasses
from collections.abc import Callable

from codecjax.codecs import own_arrays, pooled
from codecjax.codecs.window import unmet
from codecjax.models.model import Model
from codecjax.models.parameters import Parameter, from_tree, layers, sharing_inputs, to_tree
from codecjax.tiles import TiledMatrix


def fitted(model: Model, most_bits: float, narrow: Callable[[Parameter], TiledMatrix]) -> Model:
    """The same model, whose projections together have at most so many bits a weight.

    Args:
      model: stored by `window`.
      most_bits: bits a weight.
      narrow: encodes a projection with width `window.NARROWEST`.

    Raises:
      UserError: they have more, whatever is narrow.
    """

    def columns_a_row(group: tuple[Parameter, ...]) -> float:
        return group[0].shape[1] / sum(each.shape[0] for each in group)

    groups = sorted(sharing_inputs(model.config), key=columns_a_row)
    for group in groups:
        if model.bits_per_weight <= most_bits:
            break
        narrower = _with_narrow(model, group, narrow)
        if narrower.bits_per_weight < model.bits_per_weight:
            model = narrower
    if model.bits_per_weight > most_bits:
        raise unmet(model.bits_per_weight, most_bits, f"{sum(map(len, groups))} matrices")
    return model


def _with_narrow(
    model: Model, group: tuple[Parameter, ...], narrow: Callable[[Parameter], TiledMatrix]
) -> Model:
    """The model with a group of a layer's projections encoded anew."""
    layer = next(layer for layer in layers(model.config) if group[0] in layer)
    weights = from_tree(model.config, model.parameters)
    matrices = {
        each.huggingface: dataclasses.replace(t, arrays=own_arrays(t), place=None)
        for each, t in ((each, weights[each.huggingface]) for each in layer if each.projection)
    }
    matrices |= {each.huggingface: narrow(each) for each in group}
    shared = pooled(model.codec, list(matrices.values()))
    weights |= zip(matrices, shared, strict=True)
    return dataclasses.replace(model, parameters=to_tree(model.config, weights))
