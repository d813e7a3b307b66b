"""What the doctor concludes."""

from __future__ import annotations

import pytest

from service.api.catalogue_shapes import WorkerShape
from service.cli import checks
from service.cli.checks import Finding, LlamaBuild, Verdict
from service.cli.doctor import in_force
from service.settings import load_settings

SYSTEM_INFO = "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | F16C = 1 | FMA = 1 | AVX512 = 0 | REPACK = 1 |"


def build(*features: str) -> LlamaBuild:
    return LlamaBuild("llama", " | ".join(f"{feature} = 1" for feature in features))


def verdicts(found: list[Finding], topic: str) -> list[Verdict]:
    return [finding.verdict for finding in found if finding.topic == topic]


def worker(state: str = "ready", rung: str = "full", last_error: str | None = None) -> WorkerShape:
    return WorkerShape(
        name="gloss:Q8_0", digest="", state=state, rung=rung, pid=1, context_length=1, parallel=1, memory_bytes=1,
        active_requests=0, queued_requests=0, loaded_at=None, expires_at=None, last_error=last_error,
    )  # fmt: skip


def test_the_features_of_a_build_are_those_that_are_on() -> None:
    assert LlamaBuild("x", SYSTEM_INFO).features == {"SSE3", "AVX", "AVX2", "F16C", "FMA", "REPACK"}


def test_a_build_that_uses_what_the_processor_lacks_is_wrong_and_says_which() -> None:
    found = checks.check_build(build("AVX", "AVX512"), ["avx"])
    wrong = next(finding for finding in found if finding.verdict is Verdict.WRONG)
    assert "AVX512" in wrong.text
    assert wrong.remedy


def test_a_build_that_leaves_speed_on_the_table_is_noted() -> None:
    assert verdicts(checks.check_build(build("AVX"), ["avx", "avx2"]), "instructions") == [Verdict.NOTE]


def test_a_build_that_cannot_be_loaded_is_wrong() -> None:
    found = checks.check_build(LlamaBuild(failure="its process died of SIGILL"), ["avx"])
    assert [(one.verdict, "SIGILL" in one.text) for one in found] == [(Verdict.WRONG, True)]


@pytest.mark.parametrize(
    ("features", "cpu", "words"),
    [
        (("AMX_INT8",), ("amx_int8",), "launch ladder"),
        ((), ("amx_int8",), "left out"),
        ((), (), "not advertised, and not in the build"),
    ],
)
def test_amx_is_told_as_advertised_and_as_built(features: tuple[str, ...], cpu: tuple[str, ...], words: str) -> None:
    found = checks.check_build(build("AVX", *features), ["avx", *cpu])
    assert any(words in finding.text for finding in found if finding.topic == "AMX")


def test_a_processor_that_reports_nothing_is_not_judged() -> None:
    assert not verdicts(checks.check_build(build("AVX"), ()), "instructions")


@pytest.mark.parametrize(
    ("free", "writable", "verdict"), [(2, True, Verdict.GOOD), (1, True, Verdict.WRONG), (2, False, Verdict.WRONG)]
)
def test_a_home_that_is_full_or_closed_is_wrong(free: int, writable: bool, verdict: Verdict) -> None:
    assert checks.check_disk(free, 1, writable).verdict is verdict


@pytest.mark.parametrize(
    ("available", "budget", "verdict"), [(80, 80, Verdict.GOOD), (50, 80, Verdict.NOTE), (90, 101, Verdict.WRONG)]
)
def test_a_memory_budget_that_cannot_be_kept_is_wrong(available: int, budget: int, verdict: Verdict) -> None:
    assert checks.check_memory(100, available, budget).verdict is verdict


def test_a_missing_library_is_named() -> None:
    finding = checks.check_libraries({"httpx": "0.28", "rich": None})
    assert finding.verdict is Verdict.WRONG
    assert "rich" in finding.text


def test_each_model_is_told_with_its_rung() -> None:
    assert [one.verdict for one in checks.check_workers([worker()])] == [Verdict.GOOD]
    [lower] = checks.check_workers([worker(rung="no-extra-buffers")])
    assert (lower.verdict, "no-extra-buffers" in lower.text) == (Verdict.NOTE, True)
    [resting] = checks.check_workers([worker("quarantined", last_error="killed by SIGSEGV")])
    assert (resting.verdict, "SIGSEGV" in resting.text) == (Verdict.WRONG, True)


def test_secrets_are_never_shown() -> None:
    key = "a-key-that-is-long-enough"
    shown = in_force(load_settings(api_keys=key))
    assert not any(key in value for _, value, _ in shown)
    assert ("api_keys", "******", True) in shown
