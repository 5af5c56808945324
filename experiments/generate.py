"""Generates text with a Hugging Face folder or a codecjax checkpoint, under a cache budget.

python -m experiments.generate --model=experiments/embedded_model --prompt="def _check("
python -m experiments.generate --model=FOLDER --prompt=Hello --budget_bytes=500000000
"""

import sys
import time
from collections.abc import Callable

import tokenizers
from absl import flags

import codecjax
from codecjax.cache import POLICIES
from codecjax.codecs import CODECS, check_options
from codecjax.errors import UserError
from codecjax.generate import generate
from experiments import cli, formats

_REPLACEMENT = "\ufffd"


def define_flags() -> None:
    flags.DEFINE_string("model", "", "Hugging Face folder or codecjax checkpoint.")
    flags.DEFINE_string("prompt", "", "Text to go on from.")
    flags.DEFINE_integer("max_new_tokens", 64, "Stop after so many tokens.")
    flags.DEFINE_string(
        "codec",
        None,
        f"How weights are stored: {', '.join(CODECS)}; by default window, or as a checkpoint has.",
    )
    cli.define_codec_options()
    flags.DEFINE_integer("budget_bytes", 0, "Device memory that may hold decoded weights.")
    flags.DEFINE_string("policy", "pinned", f"What stays decoded: {', '.join(POLICIES)}.")
    flags.DEFINE_string("implementation", None, "xla, mosaic_gpu, or unset for the fastest.")
    flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token, more draws.")
    flags.DEFINE_integer("seed", 0, "Of the draws.")


def text_stream(tokenizer: tokenizers.Tokenizer) -> Callable[[int], str]:
    """A function that takes token after token and returns the text that each completes.

    A character may be spread over several tokens; it comes with the last of them.
    """
    tokens: list[int] = []
    shown = 0

    def complete(token: int) -> str:
        nonlocal shown
        tokens.append(token)
        text = tokenizer.decode(tokens)
        if text.endswith(_REPLACEMENT):
            return ""
        start, shown = shown, len(text)
        return text[start:]

    return complete


def main(argv: list[str]) -> int:
    values = flags.FLAGS
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: give the text as --prompt")
    if not values.model:
        raise UserError("no model was named: give --model=FOLDER")
    if not values.prompt:
        raise UserError("there is no prompt to go on from: give --prompt=TEXT")
    options = cli.codec_options()
    check_options(values.codec or "window", options)
    if sys.stderr.isatty():
        print(f"loads {values.model}", file=sys.stderr, flush=True)
    model = codecjax.load(values.model, codec=values.codec, **options)
    if model.tokenizer is None:
        raise UserError(f"{values.model} has no tokenizer.json: add the one of the model")
    print(
        f"{formats.number(model.bits_per_weight, 4)} bits a weight, "
        f"{formats.size(model.nbytes)} of weights on the device",
        file=sys.stderr,
        flush=True,
    )
    tokens = generate(
        model,
        values.prompt,
        max_new_tokens=values.max_new_tokens,
        budget_bytes=values.budget_bytes,
        policy=values.policy,
        implementation=values.implementation,
        temperature=values.temperature,
        seed=values.seed,
    )
    complete = text_stream(model.tokenizer)
    times: list[float] = []
    for token in tokens:
        if not times:
            print(values.prompt, end="")
        times.append(time.perf_counter())
        print(complete(token), end="", flush=True)
    print()
    if len(times) > 1:
        speed = (len(times) - 1) / (times[-1] - times[0])
        print(
            f"{len(times)} tokens, {formats.number(speed)} tokens/s after the first",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
