"""Ways to store a model whose quality is compared: by `ecsq`, and by quantisers of one matrix."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.codecs import distortion
from codecjax.codecs.distortion import Distortion, gaussian_bound
from codecjax.codecs.intervals import Option
from codecjax.io.huggingface import HuggingFaceFolder
from codecjax.models.encoding import encode_weights
from codecjax.models.parameters import parameters
from codecjax.operations import decode
from codecjax.tiles import TiledMatrix
from experiments.round_to_nearest import Rounded


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to store a model: the weights that it gives, and what they cost."""

    weights: dict[str, jax.Array]
    distortion: Distortion


def projections(folder: HuggingFaceFolder) -> dict[str, jax.Array]:
    """The weights that codecs store, bf16[OUT, K] by Hugging Face tensor name."""
    names = [each.huggingface for each in parameters(folder.config) if each.projection]
    return {name: jnp.asarray(folder.weights[name]) for name in names}


def stored_by(
    folder: HuggingFaceFolder,
    codec: str,
    tile: tuple[int, int],
    options: Mapping[str, Option],
    importance: Mapping[str, np.ndarray] | None = None,
) -> dict[str, TiledMatrix]:
    """The projections stored by a codec, all of the model together, by Hugging Face tensor name."""
    model = encode_weights(
        folder.config, folder.weights, codec, tile, options, importance=importance
    )
    return {
        each.huggingface: model.matrices[each.name]
        for each in parameters(folder.config)
        if each.projection
    }


def stored_by_ecsq(
    folder: HuggingFaceFolder,
    bits_per_weight: float,
    tile: tuple[int, int],
    importance: Mapping[str, np.ndarray] | None = None,
) -> Candidate:
    """The model stored by `ecsq` at a rate."""
    stored = stored_by(folder, "ecsq", tile, {"bits_per_weight": bits_per_weight}, importance)
    plain = projections(folder)
    found = distortion.measure([(plain[name], t) for name, t in stored.items()])
    return Candidate({name: decode(t) for name, t in stored.items()}, found)


def rounded(folder: HuggingFaceFolder, quantise: Callable[[jax.Array], Rounded]) -> Candidate:
    """The model quantised matrix by matrix."""
    plain = projections(folder)
    quantised = {name: quantise(w) for name, w in plain.items()}
    weights = {name: each.weights for name, each in quantised.items()}
    bits = sum(each.bits_per_weight * each.weights.size for each in quantised.values())
    return Candidate(weights, _distortion(plain, weights, bits))


def _distortion(
    plain: Mapping[str, jax.Array], weights: Mapping[str, jax.Array], bits: float
) -> Distortion:
    """That of weights which no codec stores, by float64 on the host."""
    total = sum(w.size for w in plain.values())
    variances, counts, error, square = [], [], 0.0, 0.0
    for name, w in plain.items():
        wide = np.asarray(w, np.float64)
        variances.append(np.square(wide).mean(axis=1))
        counts.append(np.full(w.shape[0], w.shape[1]))
        error += float(np.square(wide - np.asarray(weights[name], np.float64)).sum())
        square += float(np.square(wide).sum())
    mse = error / total
    bound = gaussian_bound(np.concatenate(variances), np.concatenate(counts), mse)
    return Distortion(total, bits / total, mse, 10 * math.log10(square / error), bound)
