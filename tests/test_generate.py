"""Generation under a cache: the bits of plain bf16, and no more work and memory than planned."""

import dataclasses
import gc
import re
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import codecjax
from codecjax import steps as device_steps
from codecjax.cache import OFFLINE_POLICIES, POLICIES, Plan, simulate
from codecjax.codecs import is_lossy
from codecjax.errors import UserError
from codecjax.generate import Generator
from codecjax.models.config import LlamaConfig
from codecjax.models.flat import on_arrays
from codecjax.models.model import cache_objects, encode_weights, random_model
from codecjax.models.parameters import walk
from codecjax.tiles import DECODE, TiledMatrix, fill_entry, page_bytes

# codecjax.generate, the attribute, is the function.
GENERATE = sys.modules["codecjax.generate"]
# All matrices have one shape, so that little is compiled.
CONFIG = LlamaConfig(
    vocab_size=128,
    hidden_size=128,
    intermediate_size=128,
    layers=1,
    heads=4,
    kv_heads=4,
    head_dim=32,
    context=48,
    rope_theta=100.0,
)
TILE = (64, 128)
PAGE = page_bytes(TILE)
# Of 16 tiles. One pool size for all tests: they share compiled steps.
POOL = 9
PROMPT = [5, 99, 17, 3, 64]


class RandomPlans:
    """Stands in for the controller: tiles come and go at random."""

    def __init__(self, tile_count, seed):
        self._random = np.random.default_rng(seed)
        self._page_of = {}
        self._tile_count = tile_count

    def plan(self):
        for tile in list(self._page_of):
            if self._random.random() < 0.4:
                del self._page_of[tile]
        table = np.full(self._tile_count, DECODE, np.int32)
        for tile, page in self._page_of.items():
            table[tile] = page
        hits = len(self._page_of)
        free = self._random.permutation([p for p in range(POOL) if p not in self._page_of.values()])
        absent = self._random.permutation(
            [tile for tile in range(self._tile_count) if tile not in self._page_of]
        )
        for tile, page in zip(
            absent, free[: self._random.integers(0, len(free) + 1)], strict=False
        ):
            table[tile] = fill_entry(int(page))
            self._page_of[int(tile)] = int(page)
        misses = self._tile_count - hits
        return Plan(table, True, hits, misses, 0, 0, 0.0, 0.0, misses, len(self._page_of))


@pytest.fixture(scope="module")
def models():
    """The same weights by codec and width."""
    options = {"bf16": ("bf16", {})}
    options |= {f"window{width}": ("window", {"width": width}) for width in (8, 11, 16)}
    options |= {name: (name, {"probability_bits": 10}) for name in ("rans", "int8_rans")}
    return {
        name: random_model(CONFIG, 0, codec, TILE, chosen)
        for name, (codec, chosen) in options.items()
    }


@pytest.fixture(scope="module")
def model(models):
    return models["window11"]


def make(model, **arguments):
    arguments = {"max_tokens": CONFIG.context, "implementation": "xla", "pages": POOL, **arguments}
    return Generator(model, **arguments)


def bits(logits):
    return np.asarray(logits).view(np.uint32)


def decoded(model):
    """The model with its decoded weights in plain bf16."""
    weights = {
        each.huggingface: codecjax.decode(weight) if isinstance(weight, TiledMatrix) else weight
        for each, weight in walk(model.config, model.parameters)
    }
    return encode_weights(model.config, weights, "bf16", TILE, {})


@pytest.mark.parametrize(
    ("name", "seed"),
    [("window8", 8), ("window11", 11), ("window16", 16), ("rans", 1), ("int8_rans", 2)],
)
def test_compressed_logits_are_bit_equal_to_plain_ones(models, name, seed):
    compressed = models[name]
    # What a lossy codec stores has other weights than were encoded, but the same ones always.
    plain = decoded(compressed) if is_lossy(compressed.codec) else models["bf16"]
    assert all(t.is_dense for t in plain.matrices.values())
    assert not any(t.is_dense for t in compressed.matrices.values())
    expected = list(make(plain).run(PROMPT, 12, keep_logits=True))
    generator = make(compressed, budget_bytes=POOL * PAGE)
    generator._controller = RandomPlans(compressed.tile_count, seed=seed)
    pages_read = 0
    for step, wanted in zip(generator.run(PROMPT, 12, keep_logits=True), expected, strict=True):
        assert step.token == wanted.token
        np.testing.assert_array_equal(bits(step.logits), bits(wanted.logits))
        pages_read += step.plan.hits
    assert pages_read > 12
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, 11))
    np.testing.assert_array_equal(
        bits(codecjax.logits(compressed, tokens, implementation="xla")),
        bits(codecjax.logits(plain, tokens, implementation="xla")),
    )


@pytest.mark.parametrize("codec", ["window", "rans"])
def test_a_tied_embedding_is_looked_up_and_multiplied_by(codec):
    """Of one stored matrix, whose tiles may be resident, the bits are those of the plain model."""
    tied = dataclasses.replace(CONFIG, tied=True)
    options = {"rans": {"probability_bits": 10}}.get(codec, {})
    compressed, plain = (
        random_model(tied, 0, name, TILE, chosen)
        for name, chosen in ((codec, options), ("bf16", {}))
    )
    generator = make(compressed, budget_bytes=POOL * PAGE)
    generator._controller = RandomPlans(compressed.tile_count, seed=3)
    first, read = compressed.first_tiles["embedding"], 0
    expected = make(plain).run(PROMPT, 8, keep_logits=True)
    for step, wanted in zip(generator.run(PROMPT, 8, keep_logits=True), expected, strict=True):
        np.testing.assert_array_equal(bits(step.logits), bits(wanted.logits))
        read += int((step.plan.page_table[first:] >= 0).sum())
    assert read > 0


def test_bfloat16_activations_are_bit_equal_too(models):
    runs = [
        list(make(models[name], activations="bfloat16").run(PROMPT, 3, keep_logits=True))
        for name in ("bf16", "window11")
    ]
    for plain, compressed in zip(*runs, strict=True):
        np.testing.assert_array_equal(bits(plain.logits), bits(compressed.logits))
    exact = next(make(models["bf16"]).run(PROMPT, 1, keep_logits=True))
    assert 0 < np.abs(runs[0][0].logits - exact.logits).max() < 0.1


def test_no_plan_policy_budget_or_prompt_in_a_bucket_compiles_anything(model, monkeypatch):
    for name, step in (("_PREFILL", device_steps.prefill), ("_DECODE", device_steps.decode)):
        once = device_steps.compiled(chex.assert_max_traces(step, n=1))
        monkeypatch.setattr(GENERATE, name, once)
    generator = make(model, pages=POOL, budget_bytes=POOL * PAGE)
    generator._controller = RandomPlans(model.tile_count, seed=1)
    assert len(list(generator.run(PROMPT[:3], 40))) == 40
    assert len(list(generator.run(PROMPT, 10))) == 10
    for policy in ("pinned", "lru", "lfu"):
        for budget in (0, 4 * PAGE, POOL * PAGE):
            generator = make(model, pages=POOL, budget_bytes=budget, policy=policy)
            list(generator.run(PROMPT, 3))
    # The guard guards: another pool is another shape.
    with pytest.raises(AssertionError, match="traced"):
        list(make(model, pages=POOL + 1).run(PROMPT, 1))


def test_tiles_decoded_are_the_misses_and_no_resident_tile_is_decoded(model):
    generator = make(model, budget_bytes=POOL * PAGE)
    generator._controller = RandomPlans(model.tile_count, seed=2)
    for steps in (1, 2, 2, 3, 1, 2):
        for step in generator.run(PROMPT, steps):
            assert step.tiles_decoded == step.plan.tiles_expected
        # After a run the record is that of its last step.
        decoded = np.asarray(generator.residency.decoded)
        resident = np.asarray(generator.residency.page_table) >= 0
        np.testing.assert_array_equal(resident, step.plan.page_table >= 0)
        np.testing.assert_array_equal(decoded, np.broadcast_to(~resident[:, None], decoded.shape))


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_hit_what_the_simulation_says(models, policy):
    model, steps, budget = models["window11"], 6, POOL * PAGE
    # "all" refuses a budget that is too small for all, so it is given less to keep.
    objects = cache_objects(model)[: 4 if policy == "all" else None]
    generator = make(model, budget_bytes=budget, policy=policy, objects=objects, steps=steps)
    taken = list(generator.run(PROMPT, steps))
    sizes = [len(item.tiles) * PAGE for item in objects]
    costs = [item.cost for item in objects]
    expected = simulate(policy, list(range(len(objects))) * steps, sizes, costs, budget)
    assert sum(step.plan.hits for step in taken) == expected.hits
    assert sum(step.plan.byte_hits for step in taken) == expected.byte_hits
    missed = [step.plan.bytes - step.plan.byte_hits for step in taken]
    uncached = model.tile_count - sum(sizes) // PAGE
    assert [step.tiles_decoded - uncached for step in taken] == [each // PAGE for each in missed]
    assert [step.token for step in taken] == [
        step.token for step in make(models["bf16"]).run(PROMPT, steps)
    ]
    # A step uses every matrix once, so these evict each before its next use.
    assert (expected.hits == 0) == (policy in ("none", "lru", "fifo", "lfu"))
    if policy in OFFLINE_POLICIES:
        with pytest.raises(UserError, match="steps"):
            make(model, budget_bytes=budget, policy=policy)


def live_bytes():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_parameters_are_handed_over_as_few_arrays(model):
    arrays, structure = model.flat
    again = on_arrays(lambda parameters: parameters)(arrays, structure=structure)
    assert jax.tree.structure(again) == jax.tree.structure(model.parameters)
    chex.assert_trees_all_equal(again, model.parameters)
    # Every norm; for the embedding, every layer and the head: words, escapes and bases; and for
    # the embedding, of which rows are looked up, the escapes of each lane.
    assert len(arrays) == 2 * CONFIG.layers + 1 + 1 + 3 * (CONFIG.layers + 2)
    first = again["layers_0"]
    assert first["query"].arrays["words"] is first["key"].arrays["words"]


def test_a_step_leaves_everything_at_its_address(model):
    """Where a buffer moves, a GPU's kernels are recorded anew, for longer than the step takes."""
    generator = make(model)
    held = jax.eval_shape(generator._begin)
    lowered = GENERATE._DECODE.lower(generator._parameters, held, None, **generator._static)
    outputs = [int(each) for each in re.findall(r"tf.aliasing_output = (\d+)", lowered.as_text())]
    assert outputs == list(range(len(jax.tree.leaves(held))))


def test_device_memory_holds_the_budget_and_no_second_copy(model):
    before = live_bytes()
    budget = POOL * PAGE + PAGE // 2
    generator = make(model, budget_bytes=budget, policy="pinned", pages=None)
    assert 0 < live_bytes() - before <= budget + 8 * model.tile_count * 4
    pages = generator.residency.pages
    assert pages.nbytes == POOL * PAGE <= budget
    # Page table, decoded units, logits and scalars are far less than a page.
    small = PAGE // 2
    for step in generator.run(PROMPT, 6):
        assert live_bytes() - before <= budget + generator.kv_nbytes + small
        assert step.plan.pages_held <= POOL
    # Donated: the pool was updated in place all along.
    assert pages.is_deleted()
    assert live_bytes() - before <= budget + small
    del generator, step
    assert live_bytes() - before < small


def test_the_pool_is_no_larger_than_what_it_can_hold(models, model):
    def pages(model, budget):
        return make(model, budget_bytes=budget, pages=None).residency.pages

    assert pages(model, 1000 * PAGE).shape == (model.tile_count, *TILE)
    assert pages(model, 3 * PAGE - 1).shape == (2, *TILE)
    assert pages(models["bf16"], 1000 * PAGE) is None
    assert pages(model, 0) is None
    assert make(model, budget_bytes=2 * PAGE).residency.pages.shape == (POOL, *TILE)


def whole_logits(model, tokens):
    """Of one sequence in one pass, padded behind where nothing looks."""
    padded = np.pad(tokens, (0, CONFIG.context - len(tokens)))
    return np.asarray(codecjax.logits(model, [padded], implementation="xla"))[0]


@pytest.mark.parametrize("length", [1, 8, 9, 44])
def test_steps_compute_the_logits_of_whole_sequences(model, length):
    """Whatever the prompt was padded to, and up to the last position of the context."""
    prompt = np.random.default_rng(length).integers(0, CONFIG.vocab_size, length)
    new = min(4, CONFIG.context - length)
    taken = list(make(model).run(prompt, new, keep_logits=True))
    tokens = [*prompt, *(step.token for step in taken)]
    whole = whole_logits(model, tokens)
    for index, step in enumerate(taken):
        np.testing.assert_allclose(step.logits, whole[length - 1 + index], atol=2e-5)
        assert step.token == int(np.argmax(step.logits))


def test_forced_tokens_are_followed(model):
    forced = [7, 120, 33, 4]
    taken = list(make(model).run(PROMPT, 4, forced_tokens=forced, keep_logits=True))
    assert [step.token for step in taken] == forced
    whole = whole_logits(model, [*PROMPT, *forced])
    for index, step in enumerate(taken):
        np.testing.assert_allclose(step.logits, whole[len(PROMPT) - 1 + index], atol=2e-5)


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
    expected = {"matmul": "xla", "decode": "xla", "attention": "xla"}
    assert generator.implementations == expected
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
