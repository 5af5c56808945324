"""Bit layout of one `window` unit: 64 x 128 weights in 22, 23 or 24 words a lane.

A unit is held by 128 lanes as GPU matrix instructions want it. *Register* j = 2*kt + half
(0..31) of lane l holds, as low and high half of a 32-bit word, the two weights

    row    16*(l // 32) + 8*half + (l % 32) // 4
    column 8*kt + 2*(l % 4) and the next one.

A weight is its sign-and-mantissa byte and a digit 0..width-1; its exponent is the row's base
plus the digit. `words` of a lane:

    width 11   0..15  signs and mantissas: register 2q's where a bf16 has them, register 2q+1's
                      with the bytes of each half swapped, which is between those
               16..22 base-11 fractions: f = ceil(128 * (11*d_even + d_odd) / 121) holds the
                      digits of two neighbouring registers in 7 bits; f_2k at bits 0..6 and
                      f_2k+1 at bits 9..15 of each half; bits 7..8 hold f_14 and f_15
    width 8    0..15  as above
               16..21 3-bit digits, five to a 16-bit half; every sixteenth register's digit
                      lies in the spare top bits of three words
    width 16   0..23  registers (of each sixteen, the first twelve) with the digit in the low
                      exponent bits; the four spare exponent bits of three words hold one of
                      the remaining four registers

A unit's words are stored so that a lane loads four at once: words 4g to 4g + 3 of lane l are next
to one another, from word 512*g + 4*l on; the last 2 or 3 words of all lanes stand at 128*w + l.

`unpack` runs inside the kernels, register by register; they replace the two byte operations by
single instructions. `unpack_all` is the reference: the same bits from whole arrays.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

REGISTERS = 32
LANES = 128
# Words that a lane loads at once.
VECTOR = 4
WORDS = {8: 22, 11: 23, 16: 24}
# While a unit is encoded, the digit of weights whose exponents are outside of the window.
ESCAPED = 128


def _u32(value: int) -> jax.Array:
    return jnp.uint32(value)


def swap_bytes(word: jax.Array) -> jax.Array:
    """Swaps the bytes of each half (PRMT 0x2301)."""
    return ((word & _u32(0x00FF00FF)) << _u32(8)) | ((word >> _u32(8)) & _u32(0x00FF00FF))


def merge_exponent(mantissas: jax.Array, exponents: jax.Array) -> jax.Array:
    """Sign and mantissa bits of `mantissas`, exponent bits of `exponents`, for both halves."""
    return (mantissas & _u32(0x807F807F)) | (exponents & _u32(0x7F807F80))


def _shift(word: jax.Array, left: int) -> jax.Array:
    if left == 0:
        return word
    return word << _u32(left) if left > 0 else word >> _u32(-left)


def in_fours(count: int) -> int:
    """How many of a lane's `count` words are stored in fours: the first so many."""
    return count // VECTOR * VECTOR


def _fours_swapped(words: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Words uint32[..., n, 128], the two axes of those in fours, [..., *axes], swapped."""
    *units, count, lanes = words.shape
    split = in_fours(count)
    fours = words[..., :split, :].reshape(*units, -1, *axes).swapaxes(-1, -2)
    return jnp.concatenate([fours.reshape(*units, split, lanes), words[..., split:, :]], axis=-2)


def stored(words: jax.Array) -> jax.Array:
    """Words uint32[..., n, 128] in the order in which they are stored, of the same shape."""
    return _fours_swapped(words, (VECTOR, words.shape[-1]))


def place_of_word(word: jax.Array, lane: jax.Array, count: int) -> jax.Array:
    """Where a lane's word is among the words of its unit as they are stored, of `count` a lane."""
    in_four = VECTOR * (LANES * (word // VECTOR) + lane) + word % VECTOR
    return jnp.where(word < in_fours(count), in_four, LANES * word + lane)


def by_lane(words: jax.Array) -> jax.Array:
    """What `stored` was given: words uint32[..., n, 128], of which each column is a lane's."""
    return _fours_swapped(words, (words.shape[-1], VECTOR))


def fragment_order(block: jax.Array, tile: tuple[int, int]) -> jax.Array:
    """uint16[tile rows * rows, K] -> registers uint32[tile rows, tiles across, R, Q, 32, 128]."""
    rows, columns = tile
    words = block.astype(jnp.uint32)
    pairs = words[:, 0::2] | (words[:, 1::2] << _u32(16))
    split = pairs.reshape(-1, rows // 64, 4, 2, 8, block.shape[1] // columns, columns // 128, 16, 4)
    ordered = split.transpose(0, 5, 1, 6, 7, 3, 2, 4, 8)
    return ordered.reshape(*ordered.shape[:4], REGISTERS, LANES)


def row_order(registers: jax.Array) -> jax.Array:
    """Puts the registers of one tile in order.

    Args:
      registers: [R, Q, 32, 128] pairs of weights, or [R, Q, 32, 128, 2] weights; or, of the first
        columns of units, 2 for each 8 columns.

    Returns:
      [rows, columns // 2] pairs or [rows, columns] weights.
    """
    down, across = registers.shape[:2]
    split = registers.reshape(down, across, registers.shape[2] // 2, 2, 4, 8, 4, -1)
    return split.transpose(0, 4, 3, 5, 1, 2, 6, 7).reshape(down * 64, -1)


def row_of(lane: jax.Array, register: jax.Array) -> jax.Array:
    """The row of its unit in which a lane's register is."""
    return 16 * (lane // 32) + 8 * (register % 2) + lane % 32 // 4


def column_of(lane: jax.Array, register: jax.Array, half: jax.Array) -> jax.Array:
    """The column of its unit in which half (0 or 1) of a lane's register is."""
    return 8 * (register // 2) + 2 * (lane % 4) + half


def _rows(*values: int) -> jax.Array:
    """uint32[n, 1]: one value for each of n words or registers, whatever the lane."""
    return jnp.array(values, jnp.uint32)[:, None]


def pack_mantissas(registers: jax.Array) -> jax.Array:
    """Signs and mantissas uint32[..., 16, 128] of registers uint32[..., 32, 128]."""
    return merge_exponent(registers[..., 0::2, :], swap_bytes(registers[..., 1::2, :]))


def _pack_3_bits(digits: jax.Array) -> jax.Array:
    code = digits.reshape(*digits.shape[:-2], 2, 16, LANES)
    fives = code[..., :15, :].reshape(*code.shape[:-2], 3, 5, LANES)
    last = (code[..., 15:, :] >> _rows(0, 1, 2)) & _u32(0x00010001)
    words = last << _u32(15)
    for j in range(5):
        words |= fives[..., j, :] << _u32(3 * j)
    return words.reshape(*code.shape[:-3], 6, LANES)


def _pack_base_11(digits: jax.Array) -> jax.Array:
    number = digits[..., 0::2, :] * _u32(11) + digits[..., 1::2, :]
    # ceil(128 * number / 121) = number + ceil(7 * number / 121), and 474 / 2**13 is a little more
    # than 7 / 121: as exact for numbers up to 120, and a half's products do not reach the other.
    rounded_up = number * _u32(474) + _u32(0x1FFF1FFF)
    f = number + ((rounded_up >> _u32(13)) & _u32(0x00070007))
    last, top = f[..., 14:, :], (f[..., 14:, :] >> _u32(6)) & _u32(0x00010001)
    spare = [
        ((last[..., :1, :] >> _rows(0, 2, 4)) & _u32(0x00030003)) << _u32(7),
        (top[..., :1, :] << _u32(7)) | (top[..., 1:, :] << _u32(8)),
        ((last[..., 1:, :] >> _rows(0, 2, 4)) & _u32(0x00030003)) << _u32(7),
    ]
    return f[..., 0:14:2, :] | (f[..., 1:14:2, :] << _u32(9)) | jnp.concatenate(spare, axis=-2)


def _pack_in_place(registers: jax.Array) -> jax.Array:
    full = registers.reshape(*registers.shape[:-2], 2, 16, LANES)
    threes = full[..., :12, :].reshape(*full.shape[:-2], 4, 3, LANES)
    spread = full[..., 12:, :]
    parts = [
        (spread & _u32(0x000F000F)) << _u32(11),
        (spread & _u32(0x00F000F0)) << _u32(7),
        ((spread & _u32(0x07000700)) << _u32(3)) | ((spread & _u32(0x80008000)) >> _u32(1)),
    ]
    words = threes | jnp.stack(parts, axis=-2)
    return words.reshape(*registers.shape[:-2], 24, LANES)


def pack(registers: jax.Array, width: int) -> jax.Array:
    """Packs registers into words.

    Args:
      registers: uint32[..., 32, 128], bit patterns of bf16 with digits for exponents, ESCAPED
        for any that are outside of the window.
      width: 8, 11 or 16.

    Returns:
      uint32[..., WORDS[width], 128], where digits of escapes are 0.
    """
    inside = registers & _u32(0xBFFFBFFF)
    if width == 16:
        return _pack_in_place(inside)
    digits = (inside >> _u32(7)) & _u32(0x000F000F)
    pack_digits = _pack_3_bits if width == 8 else _pack_base_11
    return jnp.concatenate([pack_mantissas(inside), pack_digits(digits)], axis=-2)


def escape_flags(registers: jax.Array) -> jax.Array:
    """uint32[..., 2, 128]: bit 2 * (register % 16) + half, word register // 16: is it ESCAPED?"""
    halves = registers.reshape(*registers.shape[:-2], 2, 16, LANES)
    both = ((halves >> _u32(14)) & _u32(1)) | ((halves >> _u32(29)) & _u32(2))
    return (both << _rows(*range(0, 32, 2))).sum(axis=-2, dtype=jnp.uint32)


def _exponents_3_bits(words: Sequence[jax.Array], bias: Sequence[jax.Array]) -> list[jax.Array]:
    exponents = []
    for register in range(REGISTERS):
        group, j = divmod(register, 16)
        w = words[16 + 3 * group : 19 + 3 * group]
        if j < 15:
            digit = _shift(w[j // 5], 7 - 3 * (j % 5)) & _u32(0x03800380)
        else:
            digit = (w[0] >> _u32(8)) & _u32(0x00800080)
            digit |= (w[1] >> _u32(7)) & _u32(0x01000100)
            digit |= (w[2] >> _u32(6)) & _u32(0x02000200)
        exponents.append(digit + bias[register % 2])
    return exponents


def _exponents_base_11(words: Sequence[jax.Array], bias: Sequence[jax.Array]) -> list[jax.Array]:
    c = words[16:23]
    seven, two = _u32(0x007F007F), _u32(0x00030003)
    fractions = []
    for word in c:
        fractions += [word & seven, (word >> _u32(9)) & seven]
    for first, top in ((0, 1), (4, 2)):
        fraction = (c[first] >> _u32(7)) & two
        fraction |= (c[first + 1] >> _u32(5)) & _u32(0x000C000C)
        fraction |= (c[first + 2] >> _u32(3)) & _u32(0x00300030)
        fraction |= (c[3] >> _u32(top)) & _u32(0x00400040)
        fractions.append(fraction)
    exponents = []
    for fraction in fractions:
        even = fraction * _u32(11) + bias[0]
        # The low 7 bits of each half are what 11 * f left over: the next digit's fraction.
        odd = (even & seven) * _u32(11) + bias[1]
        exponents += [even, odd]
    return exponents


def _unpack_in_place(words: Sequence[jax.Array], bias: Sequence[jax.Array]) -> list[jax.Array]:
    registers = []
    for first in range(0, 24, 12):
        w = words[first : first + 12]
        group = [word & _u32(0x87FF87FF) for word in w]
        for k in range(4):
            a, b, c = w[3 * k : 3 * k + 3]
            spread = ((a >> _u32(11)) & _u32(0x000F000F)) | ((b >> _u32(7)) & _u32(0x00F000F0))
            spread |= ((c >> _u32(3)) & _u32(0x07000700)) | ((c << _u32(1)) & _u32(0x80008000))
            group.append(spread)
        registers += group
    return [register + bias[j % 2] for j, register in enumerate(registers)]


def unpack(
    words: Sequence[jax.Array],
    bias: Sequence[jax.Array],
    width: int,
    swap: Callable[[jax.Array], jax.Array] = swap_bytes,
    merge: Callable[[jax.Array, jax.Array], jax.Array] = merge_exponent,
) -> list[jax.Array]:
    """Decodes a lane's words into its 32 registers of two bf16 each.

    Args:
      words: WORDS[width] arrays uint32[..., 128].
      bias: two arrays uint32[..., 128]: the row bases of the lane's even and odd registers
        (rows l//4 and l//4 + 8 of the warp), as `base << 7 | base << 23`.
      width: 8, 11 or 16.
      swap: `swap_bytes` or a kernel's instruction for it.
      merge: `merge_exponent` or a kernel's instruction for it.

    Returns:
      32 arrays uint32[..., 128].
    """
    if width == 16:
        return _unpack_in_place(words, bias)
    exponents = (_exponents_3_bits if width == 8 else _exponents_base_11)(words, bias)
    odd = [swap(word) for word in words[: REGISTERS // 2]]
    return [merge((odd if j % 2 else words)[j // 2], exponents[j]) for j in range(REGISTERS)]


def _interleave(even: jax.Array, odd: jax.Array) -> jax.Array:
    """uint32[..., n, lanes] twice -> [..., 2n, lanes], taken in turn."""
    both = jnp.stack([even, odd], axis=-2)
    return both.reshape(*even.shape[:-2], 2 * even.shape[-2], even.shape[-1])


def unpack_mantissas(words: jax.Array) -> jax.Array:
    """uint32[..., 32, lanes]: what `pack_mantissas` packed, and anything for exponents."""
    return _interleave(words, swap_bytes(words))


def _all_exponents_3_bits(words: jax.Array, bias: jax.Array) -> jax.Array:
    w = words[..., 16:, :].reshape(*words.shape[:-2], 2, 3, words.shape[-1])
    fives = [_shift(w, 7 - 3 * j) & _u32(0x03800380) for j in range(5)]
    first = jnp.stack(fives, axis=-2).reshape(*words.shape[:-2], 2, 15, words.shape[-1])
    last = (w >> _rows(8, 7, 6)) & _rows(0x00800080, 0x01000100, 0x02000200)
    digits = jnp.concatenate([first, last.sum(axis=-2, keepdims=True, dtype=jnp.uint32)], axis=-2)
    return digits.reshape(*words.shape[:-2], REGISTERS, words.shape[-1]) + bias


def _all_exponents_base_11(words: jax.Array, bias: jax.Array) -> jax.Array:
    c = words[..., 16:, :]
    seven = _u32(0x007F007F)
    fractions = [_interleave(c & seven, (c >> _u32(9)) & seven)]
    for first, top in ((0, 1), (4, 2)):
        parts = (c[..., first : first + 3, :] >> _rows(7, 5, 3)) & _rows(
            0x00030003, 0x000C000C, 0x00300030
        )
        low = parts.sum(axis=-2, keepdims=True, dtype=jnp.uint32)
        fractions.append(low | ((c[..., 3:4, :] >> _u32(top)) & _u32(0x00400040)))
    even = jnp.concatenate(fractions, axis=-2) * _u32(11) + bias[..., 0::2, :]
    return _interleave(even, (even & seven) * _u32(11) + bias[..., 1::2, :])


def _unpack_all_in_place(words: jax.Array, bias: jax.Array) -> jax.Array:
    w = words.reshape(*words.shape[:-2], 2, 4, 3, words.shape[-1])
    a, b, c = (w[..., i, :] for i in range(3))
    spread = ((a >> _u32(11)) & _u32(0x000F000F)) | ((b >> _u32(7)) & _u32(0x00F000F0))
    spread |= ((c >> _u32(3)) & _u32(0x07000700)) | ((c << _u32(1)) & _u32(0x80008000))
    threes = (w & _u32(0x87FF87FF)).reshape(*words.shape[:-2], 2, 12, words.shape[-1])
    full = jnp.concatenate([threes, spread], axis=-2)
    return full.reshape(*words.shape[:-2], REGISTERS, words.shape[-1]) + bias


def unpack_all(words: jax.Array, bias: jax.Array, width: int) -> jax.Array:
    """`unpack` by few operations on whole arrays, which XLA compiles several times faster.

    Args:
      words: uint32[..., WORDS[width], lanes], of all of a unit's lanes or of some.
      bias: uint32[..., 32, lanes], the row base of each register, as `unpack` takes them.
      width: 8, 11 or 16.

    Returns:
      uint32[..., 32, lanes].
    """
    if width == 16:
        return _unpack_all_in_place(words, bias)
    exponents = (_all_exponents_3_bits if width == 8 else _all_exponents_base_11)(words, bias)
    return merge_exponent(unpack_mantissas(words[..., :16, :]), exponents)
