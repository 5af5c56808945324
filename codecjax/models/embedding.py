"""How a model's embedding is stored: a step looks rows of it up, which `window` can do fast."""

from collections.abc import Mapping

import jax

from codecjax.codecs import check_options, encode_with_report
from codecjax.codecs.intervals import Option
from codecjax.codecs.window import NARROWEST
from codecjax.codecs.window_rows import ready_for_rows
from codecjax.tiles import TiledMatrix


def embedding_codec(codec: str, options: Mapping[str, Option]) -> tuple[str, dict[str, Option]]:
    """Codec and options of the embedding of a model whose projections have these.

    It is stored like projections where their codec is `bf16` or `window`, and with the fewest
    bits of `window` elsewhere and where they are to have few: no other codec's rows can be looked
    up without decoding whole tiles. So it is lossless even where they are not.
    """
    if codec == "bf16" or (codec == "window" and not options["most_bits"]):
        return codec, dict(options)
    return "window", check_options("window", {"width": NARROWEST})


def encode_embedding(
    w: jax.Array, codec: str, tile: tuple[int, int], options: Mapping[str, Option]
) -> TiledMatrix:
    """The embedding bf16[V, D] of a model whose projections are so stored."""
    codec, options = embedding_codec(codec, options)
    t, _ = encode_with_report(w, codec, tile, **options)
    return ready_for_rows(t)
