"""Thousands of flipped bits in a matrix's arrays: what shows once decoded, and what is noticed."""

import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from codecjax.io.checksums import tile_checksums
from codecjax.tiles import TiledMatrix


def _flat_of(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """uint16[...]: all arrays, one after another."""
    return np.concatenate([array.reshape(-1).view(np.uint16) for array in arrays.values()])


def _rebuilt(flat: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays that `_flat_of` made flat, in the shapes of `arrays`."""
    ends = np.cumsum([array.nbytes // 2 for array in arrays.values()])[:-1]
    return {
        name: part.view(arrays[name].dtype).reshape(arrays[name].shape)
        for name, part in zip(arrays, np.split(flat, ends), strict=True)
    }


def _rebuilt_on_device(flat: jax.Array, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    ends = np.cumsum([array.nbytes // 2 for array in arrays.values()])[:-1]
    made = {}
    for (name, array), part in zip(arrays.items(), jnp.split(flat, ends), strict=True):
        if array.dtype.itemsize == 4:
            part = part.reshape(-1, 2)
        made[name] = jax.lax.bitcast_convert_type(part, array.dtype).reshape(array.shape)
    return made


def check_damage(t: TiledMatrix, module: ModuleType, mutations: int) -> dict[str, int]:
    """Flips one or two bits of a 16-bit word, `mutations` times, each time in the whole matrix.

    Fails where a tile decodes to other weights and has the checksum that it had.

    Args:
      t: not dense, arrays of an even number of bytes each.
      module: its codec.
      mutations: how many; every array has as many as the others, about.

    Returns:
      How many of those in each array made a tile decode to other weights.
    """
    arrays = {name: np.asarray(array) for name, array in t.arrays.items()}
    flat, random = _flat_of(arrays), np.random.default_rng(0)
    sizes = np.array([array.nbytes // 2 for array in arrays.values()])
    array_of = random.integers(0, len(sizes), mutations)
    at = (np.cumsum(sizes) - sizes)[array_of] + random.integers(0, 2**31, mutations) % sizes[
        array_of
    ]
    flips = (1 << random.integers(0, 16, mutations)) | (1 << random.integers(0, 16, mutations))
    flips = flips.astype(np.uint16)

    def decoded(flat: jax.Array) -> jax.Array:
        damaged = dataclasses.replace(t, arrays=_rebuilt_on_device(flat, arrays))
        tiles = jax.vmap(lambda index: module.decode_tile(damaged, index))(jnp.arange(t.tiles))
        return jax.lax.bitcast_convert_type(tiles, jnp.uint16)

    @jax.jit
    def shows(at: jax.Array, flips: jax.Array) -> jax.Array:
        """bool[mutations, T]: which decoded tiles are not as they were."""
        whole = jnp.asarray(flat)
        right = decoded(whole)

        def one(each: tuple[jax.Array, jax.Array]) -> jax.Array:
            damaged = whole.at[each[0]].set(whole[each[0]] ^ each[1])
            return jnp.any(decoded(damaged) != right, axis=(1, 2))

        return jax.lax.map(one, (at, flips), batch_size=100)

    changed = np.asarray(shows(jnp.asarray(at), jnp.asarray(flips)))
    expected = np.array(tile_checksums(t, arrays))
    for number in np.flatnonzero(changed.any(axis=1)):
        damaged = flat.copy()
        damaged[at[number]] ^= flips[number]
        found = np.array(tile_checksums(t, _rebuilt(damaged, arrays)))
        assert not (changed[number] & (found == expected)).any(), (number, at[number])
    shown = np.bincount(array_of, changed.any(axis=1), minlength=len(sizes))
    return {name: int(count) for name, count in zip(arrays, shown, strict=True)}
