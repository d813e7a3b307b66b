"""`GET /v1/recommend` and `GET /v1/frontier` on a real store with cards put into it."""

from __future__ import annotations

from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest

from service.domain.catalog import Variant
from service.domain.evaluation import Card, Divergence, Estimate, Speed, TextFigures
from service.machine import description

NOUGHT = Estimate(0.0, 0.0)
Measure = Callable[..., Card]


@pytest.fixture
def api(make_api):
    """An application with `gloss:F16` and the smaller `gloss:Q8_0`."""
    api = make_api()
    source = api.add("gloss", "F16", content=b"f" * 200)
    api.add("gloss", "Q8_0", content=b"q" * 100, source=source)
    return api


@pytest.fixture
def measure(api) -> Measure:
    """measure(variant, kld): a card against gloss:F16."""
    base = api.catalog.resolve("gloss:F16")

    def _measure(
        variant: Variant, kld: float | None, *, speed: float | None = None, machine: str | None = None, text="t"
    ):
        figures = None
        if kld is not None:
            divergence = Divergence(
                base.name, base.digest, NOUGHT, NOUGHT, Estimate(kld, kld / 20), kld, kld, kld, kld, kld,
                NOUGHT, NOUGHT, Estimate(0.9, 0.01),
            )  # fmt: skip
            figures = TextFigures("evaluation", text, 512, 10, 2560, Estimate(9.0, 0.1), divergence)
        pace = None if speed is None else Speed(2, 512, 100.0, 128, speed, 1 << 20)
        card = Card(machine or description(), "b1", 1.0, figures, pace)
        return api.services.laboratory.add_card(variant.id, card)

    return _measure


async def test_without_any_card_the_published_figures_decide_and_the_answer_says_so(client):
    body = (await client.get("/v1/recommend", params={"model": "gloss"})).json()
    assert body["recommended"]["name"] == "gloss:Q8_0"
    assert body["recommended"]["loss"]["basis"] == "reference"
    assert body["recommended"]["card"] is None
    assert "not a measurement" in body["why"]
    assert any("POST /v1/evaluate" in warning for warning in body["warnings"])
    assert (body["max_kld"], body["max_kld_asked"], body["memory_asked"]) == (0.01, False, False)


async def test_measured_figures_are_used_where_they_are(client, api, measure):
    measure(api.catalog.resolve("gloss:Q8_0"), 0.5)
    body = (await client.get("/v1/recommend", params={"model": "gloss"})).json()
    assert body["recommended"]["name"] == "gloss:F16"  # what is known to lose little
    q8 = next(one for one in body["considered"] if one["name"] == "gloss:Q8_0")
    assert q8["loss"] == {"kld": 0.5, "error": 0.025, "basis": "measured"}
    assert q8["hindrances"] == ["loss"]
    assert body["warnings"] == []


async def test_a_level_that_is_not_stored_comes_with_the_request_that_makes_it(client, api):
    api.add("bare", "F16", content=b"f" * 2000)
    body = (await client.get("/v1/recommend", params={"model": "bare"})).json()
    assert body["recommended"]["name"] == "bare:Q4_K_M"
    assert body["recommended"]["stored"] is False
    assert body["recommended"]["make"] == {"model": "bare:F16", "to": ["Q4_K_M"]}
    assert body["runner_up"]["name"] == "bare:F16"
    assert body["runner_up"]["make"] is None
    assert "bare:F16 loses nothing and fits as well" in body["next_up_needs"]
    assert [one["name"] for one in body["considered"] if one["loss"] is None] == ["bare:IQ1_S"]


async def test_levels_that_would_be_no_smaller_than_their_source_are_not_considered(client):
    body = (await client.get("/v1/recommend", params={"model": "gloss"})).json()
    assert {one["name"] for one in body["considered"]} == {"gloss:F16", "gloss:Q8_0"}


async def test_memory_context_and_bounds_are_carried_out_and_repeated(client):
    params = {"model": "gloss", "memory": "16GiB", "context": 100, "max_kld": 0.25, "min_speed": 3}
    body = (await client.get("/v1/recommend", params=params)).json()
    assert (body["memory_bytes"], body["memory_asked"]) == (16 << 30, True)
    assert (body["context_length"], body["max_kld"], body["max_kld_asked"], body["min_speed"]) == (100, 0.25, True, 3)
    assert any("min_speed could not be checked" in warning for warning in body["warnings"])


async def test_when_nothing_fits_the_answer_says_what_the_smallest_takes(client):
    body = (await client.get("/v1/recommend", params={"model": "gloss", "memory": "1MiB"})).json()
    assert body["recommended"] is None
    assert body["reason"] == "too_large"
    assert "MiB" in body["why"]
    assert not any(one["fits"] for one in body["considered"])


async def test_speeds_of_another_machine_do_not_count(client, api, measure):
    measure(api.catalog.resolve("gloss:Q8_0"), None, speed=50.0, machine="another one")
    assert (await client.get("/v1/recommend", params={"model": "gloss"})).json()["considered"][0]["speed"] is None
    measure(api.catalog.resolve("gloss:Q8_0"), None, speed=40.0)
    body = (await client.get("/v1/recommend", params={"model": "gloss", "min_speed": 41})).json()
    speeds = {one["name"]: one["speed"] for one in body["considered"] if one["speed"]}
    assert speeds["gloss:Q8_0"] == {"tokens_per_second": 40.0, "basis": "measured"}
    assert {one["basis"] for name, one in speeds.items() if name != "gloss:Q8_0"} == {"estimated"}


async def test_losses_of_a_lossy_source_are_told_to_be_relative_to_it(client, api):
    api.add("second", "Q5_K_M")
    body = (await client.get("/v1/recommend", params={"model": "second"})).json()
    assert body["recommended"]["name"] == "second:Q5_K_M"
    assert any("lost precision already" in warning for warning in body["warnings"])


@pytest.mark.parametrize(
    ("params", "status", "field"),
    [
        ({}, 400, "model"),
        ({"model": "nothing"}, 404, "model"),
        ({"model": "a/b/c/d"}, 400, "model"),
        ({"model": "gloss", "memory": "much"}, 400, "memory"),
        ({"model": "gloss", "memory": "0"}, 400, "memory"),
        ({"model": "gloss", "context": 0}, 400, "context"),
        ({"model": "gloss", "max_kld": "nan"}, 400, "max_kld"),
        ({"model": "gloss", "max_kld": -1}, 400, "max_kld"),
        ({"model": "gloss", "min_speed": "inf"}, 400, "min_speed"),
    ],
)
async def test_bad_questions_name_the_field(client, params, status, field):
    answer = await client.get("/v1/recommend", params=params)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == field


# --- the frontier ------------------------------------------------------------------------------------------------


async def test_the_frontier_holds_what_was_measured_with_one_yardstick(client, api, measure):
    source = api.catalog.resolve("gloss:F16")
    q8, q4, q2 = api.catalog.resolve("gloss:Q8_0"), api.add("gloss", "Q4_K_M", source=source), api.add("gloss", "Q2_K")
    measure(q8, 0.001)
    measure(q4, 0.01)
    measure(q2, 0.3, text="another")
    body = (await client.get("/v1/frontier", params={"model": "gloss"})).json()
    assert {point["name"]: point["mean_kld"]["value"] for point in body["data"]} == {
        "gloss:F16": 0.0, "gloss:Q8_0": 0.001, "gloss:Q4_K_M": 0.01,
    }  # fmt: skip
    assert [point["name"] for point in body["data"] if point["is_source"]] == ["gloss:F16"]
    assert body["unmeasured"] == ["gloss:Q2_K"]
    assert (body["source"], body["dataset"], body["window"], body["chunks"]) == ("gloss:F16", "evaluation", 512, 10)


async def test_an_older_run_with_the_common_yardstick_counts(client, api, measure):
    q8, q4 = api.catalog.resolve("gloss:Q8_0"), api.add("gloss", "Q4_K_M")
    measure(q8, 0.001)
    measure(q4, 0.01)
    measure(q8, 0.7, text="another")
    body = (await client.get("/v1/frontier", params={"model": "gloss"})).json()
    assert {point["name"] for point in body["data"]} == {"gloss:F16", "gloss:Q8_0", "gloss:Q4_K_M"}


async def test_a_mix_under_another_flavour_stands_among_the_levels_of_its_source(client, api, measure):
    mix = api.add("gloss:mix-Q4_K_M", "Q4_K_M", source=api.catalog.resolve("gloss:F16"))
    measure(mix, 0.004)
    body = (await client.get("/v1/frontier", params={"model": "gloss"})).json()
    assert {point["label"] for point in body["data"]} == {"F16", "mix-Q4_K_M"}
    same = (await client.get("/v1/frontier", params={"model": "gloss:mix-Q4_K_M"})).json()
    assert same["data"] == body["data"]


async def test_the_picture_is_an_svg_that_may_run_nothing(client, api, measure):
    measure(api.catalog.resolve("gloss:Q8_0"), 0.001)
    answer = await client.get("/v1/frontier", params={"model": "gloss", "format": "svg", "theme": "dark"})
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.headers["content-security-policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    said = "".join(ET.fromstring(answer.text).itertext())
    assert "gloss: what each level costs" in said
    assert "Q8_0" in said


async def test_before_any_measurement_there_is_an_empty_frontier_and_a_picture_that_says_what_to_do(client):
    body = (await client.get("/v1/frontier", params={"model": "gloss"})).json()
    assert (body["data"], body["source"], body["unmeasured"]) == ([], None, ["gloss:F16", "gloss:Q8_0"])
    svg = (await client.get("/v1/frontier", params={"model": "gloss", "format": "svg"})).text
    assert "quantry evaluate gloss" in "".join(ET.fromstring(svg).itertext())
