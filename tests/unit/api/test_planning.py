"""Dry runs: kept plans at once, all others from the runner, and what this machine makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.api.planning import notes, runs_so_far, within
from service.domain.catalog import LevelPlan, TensorInfo
from service.domain.evaluation import Target

PLANS = [LevelPlan("Q4_K_M", 700, 5.0, False), LevelPlan("Q8_0", 1200, 8.5, False), LevelPlan("Q2_K", 400, 3.0, False)]


@pytest.fixture
def asked(api, monkeypatch):
    """What the runner is asked to plan; it answers with one tensor for each recipe."""
    calls = []

    async def plan(source, recipes, *, has_importance=False):
        calls.append((source.name, tuple(recipes), has_importance))
        tensors = (TensorInfo("output.weight", (64, 100), "Q6_K", 5250),)
        return tuple(
            LevelPlan(recipe.quantization, 800, 6.0, True, (), (("Q6_K", 1),), tensors=tensors, notes=("Mind this.",))
            for recipe in recipes
        )

    monkeypatch.setattr(api.services.jobs, "plan", plan)
    return calls


async def planned(client, **fields):
    answer = await client.post("/v1/quantize", json={"model": "gloss:F16", "to": ["q4_k"], "dry_run": True} | fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "list"
    return answer.json()["data"]


async def test_a_plan_of_plain_levels_is_the_one_that_was_kept(client, api, asked):
    (plan,) = await planned(client, to=["q4_k", "Q4_K_M"])
    memory = plan.pop("memory_bytes")
    seconds = plan.pop("estimated_seconds")
    assert memory > 0
    assert seconds > 0
    assert plan == {
        "quantization": "Q4_K_M",
        "source": "gloss:F16",
        "size_bytes": 700,
        "bits_per_weight": 5.0,
        "needs_imatrix": False,
        "fallbacks": ["token_embd.weight"],
        "types": {"F32": 3, "Q4_K": 9},
        "fits": True,
        "fits_gpu": None,
        "fits_disk": True,
        "notes": ["The file would be larger than its source (9 bytes) and hold no more than that."],
        "tensors": None,
        "error": None,
    }
    assert asked == []
    assert api.queue.list() == []
    api.pool.memory_budget_bytes = memory // 2
    assert (await planned(client))[0]["fits"] is False


async def test_a_level_that_nobody_has_planned_says_so(client):
    (plan,) = await planned(client, to=["Q5_0"])
    assert (plan["size_bytes"], plan["memory_bytes"], plan["estimated_seconds"]) == (0, 0, None)
    assert (plan["fits"], plan["fits_disk"]) == (False, False)
    assert "import the file again" in plan["error"]


@pytest.mark.parametrize(
    ("fields", "has_importance"),
    [
        ({"tensors": True}, False),
        ({"recipe": {"pure": True}}, False),
        ({"imatrix": "auto"}, True),
        ({"imatrix": {"chunks": 3}}, True),
    ],
)
async def test_what_has_options_is_planned_anew(client, asked, fields, has_importance):
    (plan,) = await planned(client, **fields)
    ((name, (recipe,), with_matrix),) = asked
    assert (name, recipe.quantization, with_matrix) == ("gloss:F16", "Q4_K_M", has_importance)
    assert recipe.pure is ("recipe" in fields)
    assert plan["notes"] == ["Mind this."]
    tensor = {"name": "output.weight", "shape": [64, 100], "type": "Q6_K", "size_bytes": 5250}
    assert plan["tensors"] == ([tensor] if "tensors" in fields else None)


async def test_memory_is_worked_out_for_the_context_asked_for(client):
    small, large = [(await planned(client, context=tokens))[0]["memory_bytes"] for tokens in (64, 1 << 16)]
    assert small < large


async def test_blocks_that_are_left_out_take_no_memory(client, asked):
    whole, half = [
        (await planned(client, context=1 << 16, recipe={"pure": True, "prune_layers": layers}))[0]["memory_bytes"]
        for layers in ([], [1])
    ]
    assert half < whole


async def test_a_plan_says_what_the_gpu_and_the_disk_hold(make_api):
    for gpu_bytes, fits in ((1, False), (1 << 40, True)):
        api = make_api(gpu_memory_bytes=gpu_bytes)
        api.add("gloss", "F16")
        async with api.client() as client:
            assert (await planned(client))[0]["fits_gpu"] is fits
            api.blobs.reserve_bytes = 1 << 60
            assert (await planned(client))[0]["fits_disk"] is False


async def test_the_plan_of_a_budget_is_what_the_mix_has_to_beat(client):
    listed = await planned(client, to=None, target={"size": "400B"})
    assert [plan["quantization"] for plan in listed] == ["IQ1_S"]
    listed = await planned(client, to=None, target={"max_kld": 0.1})
    assert [plan["quantization"] for plan in listed] == ["Q4_K_M", "IQ1_S"]


def test_plans_within_a_budget_come_largest_first():
    refused = LevelPlan("MXFP4_MOE", 0, 0.0, False, error="No.")
    sizes = {"size": Target(size_bytes=700), "bits": Target(bits_per_weight=3.0), "speed": Target(min_speed=1.0)}
    found = {name: [plan.quantization for plan in within([*PLANS, refused], target)] for name, target in sizes.items()}
    assert found == {"size": ["Q4_K_M", "Q2_K"], "bits": ["Q2_K"], "speed": ["Q8_0", "Q4_K_M", "Q2_K"]}


def test_notes_tell_of_size_and_of_lost_precision(api):
    source = replace(api.catalog.resolve("gloss:F16"), size_bytes=700)
    same, larger, smaller = (notes(source, plan, allow_requantize=False) for plan in PLANS)
    assert "as large as its source" in same[0]
    assert "larger than its source" in larger[0]
    assert smaller == []
    lossy = api.catalog.resolve("gloss:Q8_0")
    assert "needs allow_requantize" in notes(lossy, PLANS[0], allow_requantize=False)[-1]
    assert not any("allow_requantize" in note for note in notes(lossy, PLANS[0], allow_requantize=True))


def test_earlier_runs_tell_how_slow_this_machine_is(api):
    (run,) = runs_so_far(api.catalog.variants(), threads=3)
    assert (run.quantization, run.parameters, run.threads, run.seconds) == ("Q8_0", 1000, 3, 2.5)
    assert not run.has_importance
