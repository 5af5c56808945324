"""Predictions of int8 values against loops over their definitions, and back."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from codecjax.codecs.int8_prediction import PREDICTIONS, residuals, restore, restore_tiles


def expected(values: np.ndarray, prediction: str) -> np.ndarray:
    """int8[rows, columns], one value after another."""
    wide = np.pad(values.astype(int), ((1, 0), (1, 0)))
    found = np.zeros(values.shape, np.uint8)
    for row, column in np.ndindex(*values.shape):
        corner, top = wide[row, column], wide[row, column + 1]
        left, value = wide[row + 1, column], wide[row + 1, column + 1]
        predicted = {
            "none": 0,
            "left": left,
            "top": top,
            "avg": np.floor((left + top) / 2),
            "planar": left + top - corner,
        }[prediction]
        found[row, column] = int(value - predicted) % 256
    return found.view(np.int8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("shape", [(64, 128), (7, 3), (3, 7), (1, 9), (9, 1)])
def test_residuals_are_as_defined_and_lead_back(shape: tuple[int, int], prediction: str) -> None:
    values = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    found = residuals(jnp.asarray(values), prediction)
    chex.assert_trees_all_equal(found, expected(values, prediction))
    back = restore(found, jnp.uint8(PREDICTIONS.index(prediction)))
    chex.assert_trees_all_equal(back, values)


def test_tiles_are_predicted_each_by_itself() -> None:
    values = jnp.asarray(np.random.default_rng(0).integers(-128, 128, (2, 3, 8, 6)), jnp.int8)
    for prediction in PREDICTIONS:
        found = residuals(values, prediction)
        for place in np.ndindex(2, 3):
            chex.assert_trees_all_equal(
                found[place], expected(np.asarray(values[place]), prediction)
            )


def test_an_unknown_number_is_the_last_prediction() -> None:
    values = jnp.asarray(np.random.default_rng(0).integers(-128, 128, (8, 6)), jnp.int8)
    back = restore(residuals(values, PREDICTIONS[-1]), jnp.uint8(255))
    chex.assert_trees_all_equal(back, values)


def test_all_tiles_at_once_are_as_each_by_itself() -> None:
    residual = jnp.asarray(np.random.default_rng(0).integers(-128, 128, (7, 8, 6)), jnp.int8)
    number = jnp.asarray([0, 1, 2, 3, 4, 1, 255], jnp.uint8)
    found = restore_tiles(residual, number)
    for each, of_tile, values in zip(residual, number, found, strict=True):
        chex.assert_trees_all_equal(values, restore(each, of_tile))
