"""Generation under a cache does no more work and holds no more memory than planned."""

import gc
import re
import sys

import chex
import jax
import numpy as np
import pytest

from codecjax import steps as device_steps
from codecjax.cache import OFFLINE_POLICIES, POLICIES, simulate
from codecjax.errors import UserError
from codecjax.models.flat import on_arrays
from codecjax.models.model import cache_objects
from tests.generate.small_model import CONFIG, PAGE, POOL, PROMPT, TILE, RandomPlans, make

# codecjax.generate, the attribute, is the function.
GENERATE = sys.modules["codecjax.generate"]


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
