"""Levels made and measured by llama.cpp until one breaks a bound, with cancel, and with kill -9 of the server."""

from __future__ import annotations

import pytest

from service.domain.jobs import CalibrateOptions, EvaluateOptions, JobStatus, QuantizeSpec, StepsBack
from service.domain.recipes import Recipe
from service.domain.steps_back import Bound
from tests.integration.jobs.test_laboratory_death import killed_at

WINDOW, CHUNKS = 128, 2
FOUR = ("Q2_K", "Q8_0", "Q3_K_M", "Q4_K_M")
DOWN = ("Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K")
BETWEEN = 0.01  # nats: Q4_K_M of gloss loses 0.006 on these windows, Q3_K_M 0.018


def until(home, *levels: str, max_kld: float = BETWEEN, keep: str = "last", **more: object) -> QuantizeSpec:
    evaluate = EvaluateOptions(home.dataset("evaluation"), window=WINDOW, chunks=CHUNKS, speed=False)
    source, bound = home.catalog.resolve("gloss:F16"), StepsBack(Bound(max_kld=max_kld), keep)
    return home.levels(source, *levels, evaluate=evaluate, until=bound, threads=1, **more)


def check_end(home, job) -> None:
    """Of `FOUR` Q4_K_M is left, and the steps say why."""
    assert (job.status, job.error, job.result) == (JobStatus.SUCCEEDED, None, ("gloss:Q4_K_M",))
    assert job.spec.levels == DOWN
    assert home.names() == ["gloss:F16", "gloss:Q4_K_M"]
    details = {step.name: step.detail for step in job.steps}
    assert details["evaluate Q8_0"].endswith("keeps to 0.01")
    assert details["evaluate Q3_K_M"].endswith("is above 0.01")
    assert details["Q8_0"] == details["Q3_K_M"] == "deleted again"
    assert details["Q2_K"] == details["evaluate Q2_K"] == "left out: Q3_K_M breaks the bound"
    variant = home.catalog.resolve("gloss:Q4_K_M")
    lost = home.laboratory.cards([variant.id])[variant.id].text.divergence.mean_kld.value
    assert details["evaluate Q4_K_M"] == f"mean KLD {lost:.5g} keeps to 0.01"
    assert home.incoming() == []


async def test_levels_are_made_down_to_the_first_that_loses_too_much(home):
    job = await home.ended(await home.runner.submit_quantize(until(home, *FOUR)))
    check_end(home, job)
    swept = home.blobs.sweep(home.catalog.referenced_digests(), 0.0)
    assert len(swept) == 2, "the files of Q8_0 and Q3_K_M"
    assert all(blob.in_use for blob in home.catalog.blobs())


async def test_a_ladder_with_a_matrix_and_a_recipe_that_nothing_on_it_keeps_to_leaves_no_level(home):
    matrix = CalibrateOptions(home.dataset("calibration"), window=WINDOW, chunks=CHUNKS)
    spec = until(home, max_kld=1e-6, calibrate=matrix, recipe=Recipe(token_embedding_type="Q8_0"), flavour="x")
    job = await home.ended(await home.runner.submit_quantize(spec))
    assert job.spec.levels == ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
    assert (job.status, job.error.code, job.result) == (JobStatus.FAILED, "job_failed", ())
    assert job.error.message.startswith("Not even Q8_0, the first level, keeps to the bound: mean KLD 0.0")
    assert job.error.message.endswith("is above 1e-06. Loosen the bound, or name a level that loses less.")
    assert home.names() == ["gloss:F16"]
    assert home.incoming() == []


async def test_cancelled_it_keeps_the_last_good_level_alone(home):
    spec = until(home, "Q8_0", "Q4_K_M", "Q2_K", max_kld=10.0)
    job = await home.runner.submit_quantize(spec)
    async for event in home.runner.subscribe(job.id):
        if event.job.steps[3].status is JobStatus.SUCCEEDED:
            break
    job = await home.ended(await home.runner.cancel(job.id))
    assert job.status is JobStatus.CANCELLED
    assert home.names() == ["gloss:F16", job.result[0]]
    assert home.incoming() == []


@pytest.mark.timeout(240)
async def test_killed_twice_it_goes_on_where_it_was(open_home):
    home = open_home()
    spec = until(home, *FOUR)
    home.close()
    # While the second level is measured, and while the third is made: the first is gone by then.
    (job_id,) = {killed_at(home.folder, spec, step) for step in (4, 5)}
    home = open_home(threads=1)
    await home.runner.start()
    newest = home.queue.newest_event_id(job_id)
    async for event in home.runner.subscribe(job_id, newest):
        assert event.job.steps[1].status is not JobStatus.RUNNING, "Q8_0 was done, and is not done again"
    job = home.queue.get(job_id)
    assert job.attempts == 2
    check_end(home, job)
    runs = [len(home.laboratory.evaluations(variant.id)) for variant in home.catalog.variants()]
    assert runs == [1, 1], "nothing was measured twice"
    await home.runner.stop()
