"""Trains the embedded model: a small Llama that writes Python, on the standard library's sources.

    python -m experiments.train_embedded --output=FOLDER
    python -m experiments.train_embedded --output=FOLDER --steps=5400 --batch=4
    python -m experiments.train_embedded --evaluate=experiments/embedded_model

The first command is for a GPU, the second for two CPU cores, where it takes some twenty minutes.
The third prints the bits per byte of a model on the held-out modules of the running Python's
library.
"""

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import tokenizers
from absl import flags
from tokenizers import decoders, models, pre_tokenizers, trainers

from codecjax.errors import UserError
from codecjax.generate import generate
from codecjax.io.huggingface import read_folder, write_folder
from codecjax.models.config import LlamaConfig
from codecjax.models.encoding import encode_weights
from codecjax.models.llama import forward
from codecjax.models.parameters import from_tree, parameters, to_tree
from codecjax.tiles import DEFAULT_TILE
from experiments import cli, environment
from experiments.bits_per_byte import bits_per_byte, token_ids
from experiments.stdlib_corpus import Corpus, read_corpus, size

END = "<|end|>"
SAMPLE_PROMPT = "def _check("
SAMPLE_TOKENS = 96

CONFIG = LlamaConfig(
    vocab_size=1024,
    hidden_size=256,
    intermediate_size=768,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=64,
    context=512,
    rope_theta=10000.0,
    rms_eps=1e-5,
    tied=False,
    bos_id=0,
    eos_ids=(0,),
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
      steps: optimiser steps, a multiple of `report_every`.
      batch: sequences a step, each as long as the context.
      learning_rate: at its peak; it rises over a tenth of the steps and falls along a cosine.
      weight_decay: of matrices.
      seed: of initial weights and of the order of the data.
      report_every: steps between two looks at the validation loss.
    """

    steps: int = 900
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    seed: int = 0
    report_every: int = 60


@dataclasses.dataclass(frozen=True)
class Trained:
    """The best state of a training run, by its validation loss.

    Attributes:
      weights: bfloat16 arrays by Hugging Face tensor name.
      step: when it was reached.
      validation_loss: nats per token.
      losses: nats per token on training data, mean between two looks.
    """

    weights: dict[str, np.ndarray]
    step: int
    validation_loss: float
    losses: tuple[float, ...]


def train_tokenizer(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer, so that any text can be encoded."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def separator_of(tokenizer: tokenizers.Tokenizer) -> int:
    """The token id that stands before and after a text."""
    separator = tokenizer.token_to_id(END)
    if separator is None:
        raise UserError(f"the tokenizer has no token {END}: use a model that this program trained")
    return separator


def initial_weights(config: LlamaConfig, seed: int) -> dict[str, Any]:
    """The parameter tree in float32; what enters the residual stream starts smaller."""
    key = jax.random.key(seed)
    weights = {}
    for index, parameter in enumerate(parameters(config)):
        if len(parameter.shape) == 1:
            weights[parameter.huggingface] = jnp.ones(parameter.shape)
            continue
        scale = 0.02
        if parameter.path[-1] in ("output", "down"):
            scale /= (2 * config.layers) ** 0.5
        noise = jax.random.normal(jax.random.fold_in(key, index), parameter.shape)
        weights[parameter.huggingface] = scale * noise
    return to_tree(config, weights)


def loss_of(config: LlamaConfig, tree: Any, tokens: jax.Array) -> jax.Array:
    """Mean nats per token of int32[B, S + 1]."""
    logits = forward(tree, tokens[:, :-1], config=config, activations="bfloat16")
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def train(
    config: LlamaConfig, recipe: Recipe, train_ids: np.ndarray, validation_ids: np.ndarray
) -> Trained:
    """Trains and returns the state with the lowest validation loss, rounded to bfloat16.

    Args:
      config: sizes.
      recipe: how.
      train_ids, validation_ids: int32[n], more tokens than the context.

    Raises:
      UserError: steps that are no multiple of `report_every`, or a loss that was never finite.
    """
    if recipe.steps < 1 or recipe.steps % recipe.report_every:
        raise UserError(
            f"steps is {recipe.steps}, and progress is reported every {recipe.report_every}: "
            f"give a multiple of {recipe.report_every}"
        )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.steps // 10, recipe.steps, recipe.learning_rate / 20
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b2=0.95,
            weight_decay=recipe.weight_decay,
            mask=lambda tree: jax.tree.map(lambda weight: weight.ndim == 2, tree),
        ),
    )
    length = config.context + 1
    data = jnp.asarray(train_ids)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def advance(tree: Any, state: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
            tree, state = carry
            starts = jax.random.randint(key, (recipe.batch,), 0, len(train_ids) - length)
            tokens = data[starts[:, None] + jnp.arange(length)]
            loss, gradient = jax.value_and_grad(functools.partial(loss_of, config))(tree, tokens)
            updates, state = optimiser.update(gradient, state, tree)
            return (optax.apply_updates(tree, updates), state), loss

        keys = jax.random.split(key, recipe.report_every)
        (tree, state), losses = jax.lax.scan(step, (tree, state), keys)
        return tree, state, losses.mean()

    count = min(64, (len(validation_ids) - 1) // config.context)
    firsts = np.arange(count)[:, None] * config.context
    validation = jnp.asarray(validation_ids[firsts + np.arange(length)])
    validate = jax.jit(functools.partial(loss_of, config))

    tree = initial_weights(config, recipe.seed)
    state = optimiser.init(tree)
    key = jax.random.key(recipe.seed + 1)
    best: Trained | None = None
    losses: list[float] = []
    began = time.perf_counter()
    for done in range(0, recipe.steps, recipe.report_every):
        tree, state, loss = advance(tree, state, jax.random.fold_in(key, done))
        rounded = jax.tree.map(lambda weight: weight.astype(jnp.bfloat16), tree)
        validation_loss = float(validate(rounded, validation))
        losses.append(float(loss))
        step = done + recipe.report_every
        print(
            f"step {step}/{recipe.steps}: loss {float(loss):.3f}, validation "
            f"{validation_loss:.3f} nats/token, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        if validation_loss < (best.validation_loss if best else math.inf):
            weights = {
                name: np.asarray(weight) for name, weight in from_tree(config, rounded).items()
            }
            best = Trained(weights, step, validation_loss, ())
    if best is None:
        raise UserError("the loss was never finite: give a lower learning_rate")
    return dataclasses.replace(best, losses=tuple(losses))


def sample(config: LlamaConfig, weights: dict[str, np.ndarray], tokenizer: Any) -> str:
    """What the model writes greedily after SAMPLE_PROMPT."""
    model = encode_weights(config, weights, "bf16", DEFAULT_TILE, {}, tokenizer)
    count = min(SAMPLE_TOKENS, config.context // 2)
    tokens = generate(model, SAMPLE_PROMPT, max_new_tokens=count)
    return SAMPLE_PROMPT + str(tokenizer.decode(list(tokens)))


def card(
    config: LlamaConfig, recipe: Recipe, trained: Trained, corpus: Corpus, bits: float, text: str
) -> str:
    """The model's README."""
    where = environment.describe({})
    count = sum(weight.size for weight in trained.weights.values())
    held_out = ", ".join(f"`{name}`" for name in corpus.held_out)
    return f"""# The embedded model

A Llama of {count:,} weights in bfloat16 ({2 * count / 1e6:.2f} MB) that writes Python: hidden size
{config.hidden_size}, {config.layers} layers, {config.heads} query heads and {config.kv_heads} \
key/value heads of {config.head_dim}, byte-level BPE of
{config.vocab_size} tokens, context {config.context}. It exists so that the experiments run on \
trained weights without a
download; it is no use as a programmer.

**{bits:.3f} bits per byte** on {size(corpus.held_out):,} bytes of held-out modules of Python \
{where["python"]}'s standard library:

    python -m experiments.train_embedded --evaluate=experiments/embedded_model

(The modules differ a little between Python versions, and so does the figure.) Held out:
{held_out}.

Trained on {size(corpus.train):,} bytes of the other modules (SHA-256 of the corpus
`{corpus.sha256}`), on {where["device"]} with JAX {where["jax"]}, by

    {where["command"]}

with {recipe}. The state after {trained.step} steps was best on the validation
modules ({trained.validation_loss:.3f} nats per token) and was kept. Weights were rounded to \
bfloat16 before all
evaluation.

What it writes greedily after `{SAMPLE_PROMPT}`:

```python
{text}
```

The sources it learned from are under the Python Software Foundation License; the weights are
under this repository's license.
"""


def evaluate(folder: Path, library: Path | None) -> float:
    """Bits per byte of the model in `folder` on the held-out modules."""
    found = read_folder(folder)
    if found.tokenizer is None:
        raise UserError(f"{folder} has no tokenizer.json: texts cannot be read without it")
    separator = separator_of(found.tokenizer)
    tree = to_tree(found.config, {name: jnp.asarray(w) for name, w in found.weights.items()})
    texts = read_corpus(library).held_out
    return bits_per_byte(found.config, tree, found.tokenizer, texts, separator)


def train_and_write(output: Path, config: LlamaConfig, recipe: Recipe, corpus: Corpus) -> float:
    """Trains, writes the folder with its card, and returns the held-out bits per byte."""
    tokenizer = train_tokenizer(list(corpus.train.values()), config.vocab_size)
    separator = separator_of(tokenizer)
    train_ids = token_ids(tokenizer, corpus.train.values(), separator)
    validation_ids = token_ids(tokenizer, corpus.validation.values(), separator)
    print(f"{len(train_ids):,} training tokens of {size(corpus.train):,} bytes", flush=True)
    trained = train(config, recipe, train_ids, validation_ids)
    tree = to_tree(config, {name: jnp.asarray(w) for name, w in trained.weights.items()})
    bits = bits_per_byte(config, tree, tokenizer, corpus.held_out, separator)
    text = sample(config, trained.weights, tokenizer)
    arrays = {name: weight.view(ml_dtypes.bfloat16) for name, weight in trained.weights.items()}
    documents = {"README.md": card(config, recipe, trained, corpus, bits, text)}
    write_folder(output, config, arrays, tokenizer, documents)
    print(text)
    return bits


def main(argv: list[str]) -> int:
    del argv
    values = flags.FLAGS
    library = Path(values.library) if values.library else None
    if values.evaluate:
        print(f"{evaluate(Path(values.evaluate), library):.3f} bits per byte on held-out modules")
        return 0
    if not values.output:
        raise UserError("nothing to do: give --output=FOLDER to train or --evaluate=FOLDER")
    recipe = Recipe(
        steps=values.steps,
        batch=values.batch,
        learning_rate=values.learning_rate,
        seed=values.seed,
    )
    bits = train_and_write(Path(values.output), CONFIG, recipe, read_corpus(library))
    print(f"{bits:.3f} bits per byte on held-out modules; written to {values.output}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("output", "", "Folder for the trained model.")
    flags.DEFINE_string("evaluate", "", "Folder of a model to evaluate instead of training one.")
    flags.DEFINE_string("library", "", "Folder of Python sources; the running Python's if empty.")
    flags.DEFINE_integer("steps", Recipe.steps, "Optimiser steps.")
    flags.DEFINE_integer("batch", Recipe.batch, "Sequences a step.", lower_bound=1)
    flags.DEFINE_float("learning_rate", Recipe.learning_rate, "At its peak.", lower_bound=0.0)
    flags.DEFINE_integer("seed", Recipe.seed, "Of initial weights and of the order of the data.")
    cli.run(main)
