"""Generation as its caller sees it: tokens, texts, times and mistakes."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import codecjax
from codecjax.errors import UserError
from codecjax.generate import Generator
from tests.generate.small_model import CONFIG, PAGE, POOL, PROMPT, make

# codecjax.generate, the attribute, is the function.
GENERATE = sys.modules["codecjax.generate"]


def test_drawn_tokens_depend_on_seed_and_temperature(model):
    generator = make(model)

    def tokens(temperature, seed):
        return [step.token for step in generator.run(PROMPT, 20, temperature, seed)]

    assert tokens(1.0, 1) == tokens(1.0, 1)
    assert tokens(1.0, 1) != tokens(1.0, 2)
    assert tokens(1e-6, 3) == tokens(0.0, 4)
    assert len(set(tokens(100.0, 5))) > 10


def test_tokens_are_drawn_as_often_as_the_logits_say(model):
    """A hot run's tokens, against the shares of its own logits."""
    generator = make(model)
    logits = next(iter(generator.run(PROMPT, 1, keep_logits=True))).logits
    shares = np.asarray(jax.nn.softmax(logits / 0.3))
    drawn = [next(iter(generator.run(PROMPT, 1, 0.3, seed))).token for seed in range(300)]
    likely = np.argsort(shares)[-16:]
    expected = shares[likely].sum()
    found = np.isin(drawn, likely).mean()
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 300)


def test_steps_take_their_seconds_and_say_what_ran(model):
    generator = make(model, budget_bytes=POOL * PAGE)
    ops = ("matmul", "decode", "attention", "lookup")
    assert generator.implementations == dict.fromkeys(ops, "xla")
    steps = list(generator.run(PROMPT, 4))
    assert all(step.seconds > 0 for step in steps)
    assert all(step.logits is None for step in steps)
    # 48 positions, not 64: the context ends there.
    assert generator.kv_nbytes == 2 * CONFIG.kv_heads * 48 * CONFIG.head_dim * 4


def test_what_compile_compiles_is_what_runs(model):
    compiled = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    list(make(model).run(PROMPT, 3))
    longer = [*PROMPT, *PROMPT]
    generator = make(model)
    generator.compile(len(longer))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        list(generator.run(longer, 3))
        assert not compiled
        jax.jit(lambda x: x * 3)(jnp.ones(5))
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_generate_ends_before_an_end_token(model):
    tokens = [step.token for step in make(model).run(PROMPT, 12)]
    end = next(token for token in tokens if tokens.index(token) > 1)
    ending = dataclasses.replace(
        model, config=dataclasses.replace(CONFIG, eos_ids=(CONFIG.vocab_size - 1, end))
    )
    found = codecjax.generate(
        ending, PROMPT, max_new_tokens=12, budget_bytes=POOL * PAGE, policy="min_bypass"
    )
    assert list(found) == tokens[: tokens.index(end)]
    assert list(codecjax.generate(model, PROMPT, max_new_tokens=12)) == tokens


def test_generate_takes_a_text_where_there_is_a_tokenizer(model):
    words = {f"w{index}": index for index in range(CONFIG.vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    talking = dataclasses.replace(model, tokenizer=tokenizer)
    text = " ".join(f"w{token}" for token in PROMPT)
    arguments = {"max_new_tokens": 6, "budget_bytes": POOL * PAGE}
    assert list(codecjax.generate(talking, text, **arguments)) == list(
        codecjax.generate(model, PROMPT, **arguments)
    )
    with pytest.raises(UserError, match="no tokens"):
        codecjax.generate(talking, "", **arguments)


@pytest.mark.parametrize(
    ("prompt", "arguments", "named"),
    [
        ("text", {}, "no tokenizer"),
        ([], {}, "no tokens"),
        ([128], {}, "token id 128.*0 to 127"),
        ([-1], {}, "token id -1"),
        ([0.5], {}, "float64"),
        ([[1, 2]], {}, "2 dimensions"),
        (PROMPT, {"max_new_tokens": 44}, "max_new_tokens 44.*context of 48.*at most 43"),
        ([1] * 50, {}, "context of 48.*at most 0"),
        (PROMPT, {"max_new_tokens": 0}, "0 tokens"),
        (PROMPT, {"budget_bytes": -1}, "negative"),
        (PROMPT, {"budget_bytes": PAGE - 1}, "smaller than one page"),
        (PROMPT, {"policy": "mru"}, "'mru'"),
        (PROMPT, {"policy": "all", "budget_bytes": PAGE}, "'all'"),
        (PROMPT, {"implementation": "cuda"}, "unknown implementation 'cuda'"),
        (PROMPT, {"temperature": -0.5}, "temperature -0.5"),
        (PROMPT, {"temperature": float("nan")}, "temperature nan"),
    ],
)
def test_generate_names_bad_input_at_once(model, prompt, arguments, named):
    with pytest.raises(UserError, match=named) as caught:
        codecjax.generate(model, prompt, **{"max_new_tokens": 4, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(jax.devices()[0].platform == "gpu", reason="it can run on a GPU")
def test_mosaic_gpu_is_refused_where_it_cannot_run(model):
    with pytest.raises(UserError, match=r"mosaic_gpu.*Hopper"):
        Generator(model, max_tokens=8, implementation="mosaic_gpu")
    with pytest.raises(UserError, match="bfloat16 only"):
        GENERATE.resolve_activations("float32", "mosaic_gpu")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_tokens": 49}, "49 tokens.*context of 48"),
        ({"max_tokens": 0}, "0 tokens"),
        ({"pages": 2, "budget_bytes": 3 * PAGE}, f"3 pages.*has 2.*{2 * PAGE} bytes"),
        ({"pages": -1}, "pool of -1 pages"),
        ({"activations": "float16"}, "'float16'"),
    ],
)
def test_a_generator_names_bad_arguments(model, arguments, named):
    with pytest.raises(UserError, match=named):
        make(model, **arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_new_tokens": 44}, "5 tokens and 44 new ones.*48"),
        ({"forced_tokens": [1, 2, 3]}, "3 forced tokens for 4 steps"),
        ({"forced_tokens": [1, 2, 3, 128]}, "forced_tokens has token id 128"),
    ],
)
def test_a_run_names_bad_arguments(model, arguments, named):
    with pytest.raises(UserError, match=named):
        make(model).run(PROMPT, **{"max_new_tokens": 4, **arguments})


def test_runs_do_not_mix(model):
    generator = make(model, budget_bytes=POOL * PAGE)
    left = generator.run(PROMPT, 6)
    tokens = [next(left).token, next(left).token]
    again = [step.token for step in generator.run(PROMPT, 6)]
    assert again[:2] == tokens
    with pytest.raises(UserError, match="another run"):
        next(left)


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        ([1, 2], "1 dimensions"),
        ([[1, 2], [3]], "different lengths"),
        ([[]], "no tokens"),
        ([[1, 128]], "token id 128"),
        ([[1] * 49], "49 tokens.*context of 48"),
        (jnp.ones((1, 2)), "float32"),
    ],
)
def test_logits_names_bad_tokens(model, tokens, named):
    with pytest.raises(UserError, match=named):
        codecjax.logits(model, tokens)
