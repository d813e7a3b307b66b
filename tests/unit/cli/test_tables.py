"""Tables fit 80 columns on a terminal, and are one plain line a row in a pipe."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.table import Table

from service.api.catalogue_shapes import (
    AvailableShape,
    JobShape,
    LineageShape,
    PlanShape,
    StepShape,
    VariantShape,
    WorkerShape,
)
from service.api.laboratory_shapes import CardShape, EstimateShape, TaskScoreShape, TextFiguresShape
from service.api.remote_shapes import RemoteLevelShape, RemoteShape
from service.cli import cards, figures, tables
from service.cli.session import Session
from service.domain.quants import QUANTIZATIONS

ANSI = re.compile(r"\x1b\[[0-9;]*m")


def variant(label: str, *, lossy_source: bool = False, loaded: bool = False, corrupt: bool = False) -> VariantShape:
    level = QUANTIZATIONS[label]
    lineage = LineageShape(
        origin="quantized", source="smollm2:F16", source_digest=None, recipe=None, llama_build=None,
        duration_seconds=None, lossy_source=lossy_source,
    )  # fmt: skip
    return VariantShape(
        name=f"smollm2:{label}", aliases=["smollm2"] if label == "Q4_K_M" else [], model="smollm2", quantization=label,
        bits_per_weight=level.bits_per_weight, size_bytes=98_000_000, digest="sha256:" + "0" * 64, parameters=1,
        context_length=2048, recommended=level.recommended, advice=level.advice, reference=None, measured=[],
        memory_bytes=300_000_000, loaded=loaded, lossy=True, corrupt=corrupt, lineage=lineage,
        created_at="2025-01-01T00:00:00Z", license=None,
    )  # fmt: skip


def job(status: str, levels: list[str]) -> JobShape:
    return JobShape(
        id="job_a32ff0f7d73e65db", kind="quantize", status=status, model="smollm2:Q4_1", levels=levels, progress=0.42,
        steps=[StepShape(name=level, status=status, progress=0.5, detail="tensor 1 of 2") for level in levels],
        eta_seconds=None, result=[], error=None, attempts=1, created_at="2025-01-02T03:04:05Z", started_at=None,
        finished_at=None,
    )  # fmt: skip


def on_terminal(table: Table) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor", markup=False)
    console.print(table)
    return ANSI.sub("", console.file.getvalue())  # type: ignore[attr-defined]


def in_pipe(table: Table) -> str:
    file = io.StringIO()
    console = Console(file=file, width=1000, markup=False)
    Session("http://127.0.0.1:1", None, as_json=False, out=console, err=console).table(table)
    return file.getvalue()


ALL = [variant(label, lossy_source=True, loaded=True) for label in QUANTIZATIONS]
AVAILABLE = [
    AvailableShape(
        model="smollm2", quantization=label, source="smollm2:F16", size_bytes=98_000_000, bits_per_weight=4.5,
        memory_bytes=300_000_000, fits=False, needs_imatrix=False, lossy_source=True, error=None,
        advice=level.advice, recommended=level.recommended,
    )
    for label, level in QUANTIZATIONS.items()
]  # fmt: skip
PLANS = [
    PlanShape(
        quantization="MXFP4_MOE", source="gloss:F16", size_bytes=1, bits_per_weight=4.25, needs_imatrix=False,
        fallbacks=[], types={}, memory_bytes=1, fits=True, error="only for mixture models, " * 5,
        estimated_seconds=None, fits_gpu=None, fits_disk=False, notes=[],
    ),
    PlanShape(
        quantization="Q4_K_M", source="gloss:F16", size_bytes=98_000_000, bits_per_weight=6.17, needs_imatrix=False,
        fallbacks=["a", "b"],
        types={"Q5_0": 200, "F32": 72}, memory_bytes=300_000_000, fits=True, error=None,
        estimated_seconds=7812.0, fits_gpu=None, fits_disk=True, notes=[],
    ),
]  # fmt: skip
ESTIMATE = EstimateShape(value=1234.5678, error=0.1)
CARD = CardShape(
    machine="one", llama_build="b1", seconds=1.0, created_at="2025-01-01T00:00:00Z", speed=None,
    tasks=[TaskScoreShape(task="words", task_digest="", correct=174, total=232)],
    text=TextFiguresShape(
        dataset="evaluation", dataset_digest="", window=512, chunks=47, tokens=12000, perplexity=ESTIMATE,
        divergence=None,
    ),
)  # fmt: skip
WORKERS = [
    WorkerShape(
        name="smollm2:Q4_K_M", digest="", state="quarantined", rung="full", pid=1,
        context_length=4096, parallel=4, memory_bytes=700_000_000, active_requests=0, queued_requests=0,
        loaded_at=None, expires_at="2025-01-02T03:04:05Z", last_error=None,
    )
]  # fmt: skip


@pytest.mark.parametrize(
    "table",
    [
        tables.variants(ALL, None),
        tables.variants(ALL, 4096),
        tables.available(AVAILABLE, 4096),
        tables.plans(PLANS),
        cards.table([variant(label, lossy_source=True).model_copy(update={"card": CARD}) for label in QUANTIZATIONS]),
        tables.workers(WORKERS),
        tables.jobs([job("running", list(QUANTIZATIONS)), job("succeeded", [])]),
        tables.steps(job("running", list(QUANTIZATIONS))),
    ],
    ids=["variants", "variants with memory", "available", "plans", "cards", "workers", "jobs", "steps"],
)
def test_a_table_fits_80_columns_and_breaks_no_name(table: Table) -> None:
    lines = on_terminal(table).splitlines()
    assert max(map(len, lines)) <= 80
    # A name that was folded would leave a row that begins with the rest of it.
    assert all(not line.strip() or line[0] != " " or line.startswith("     ") for line in lines)


def test_in_a_pipe_every_variant_is_one_plain_line() -> None:
    lines = in_pipe(tables.variants(ALL, 4096)).splitlines()
    assert len(lines) == len(ALL) + 2
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)


def test_a_row_says_size_bits_perplexity_and_advice() -> None:
    row = in_pipe(tables.variants([variant("Q2_K")], None)).splitlines()[-1]
    for fact in ("93.5 MiB", "2.62", "+0.8698", "smallest, extreme quality loss"):
        assert fact in row


def test_recommended_and_loaded_variants_are_marked() -> None:
    text = in_pipe(tables.variants([variant("Q4_K_M", loaded=True), variant("Q8_0")], None))
    assert "smollm2:Q4_K_M *+" in text
    assert "smollm2:Q8_0  " in text


def test_a_damaged_variant_is_called_that() -> None:
    assert "DAMAGED" in in_pipe(tables.variants([variant("Q8_0", corrupt=True)], None))


def test_a_level_without_published_figures_claims_none() -> None:
    assert tables.reference("IQ4_XS") == "-"
    assert tables.reference("F32") == "lossless"


def test_nothing_made_of_a_source_that_lost_precision_has_the_figures_of_full_precision() -> None:
    row = in_pipe(tables.variants([variant("Q2_K", lossy_source=True)], None)).splitlines()[-1]
    for fact in ("93.5 MiB", "2.62", " - ", "smallest, extreme quality loss", "lossy source"):
        assert fact in row
    assert "+0.8698" not in row


def test_a_plan_says_why_a_level_cannot_be_made_and_what_falls_back() -> None:
    text = in_pipe(tables.plans(PLANS))
    assert "cannot be made: only for mixture models" in text
    assert "2 of 272 tensors need another type" in text


def test_the_bare_name_is_explained() -> None:
    assert tables.bare_names([variant("Q8_0"), variant("Q4_K_M")]) == "smollm2 is smollm2:Q4_K_M"


def test_bare_names_of_many_models_stay_one_line_that_can_be_read() -> None:
    assert tables.bare_names([variant("Q4_K_M")]) == ""  # the one there is
    rows = [
        row.model_copy(update={"model": f"m{number}", "aliases": [f"m{number}"] if row.aliases else []})
        for number in range(10)
        for row in (variant("Q8_0"), variant("Q4_K_M"))
    ]
    assert tables.bare_names(rows).startswith("m0 is smollm2:Q4_K_M, m1 is ")
    assert tables.bare_names(rows).endswith(", and 2 more")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3_776_928, "3.60 MiB"), (98_342_000, "93.8 MiB"),
     (1 << 40, "1.00 TiB"), (1 << 62, "4096 PiB")],
)  # fmt: skip
def test_a_size_has_three_figures(size_bytes: int, text: str) -> None:
    assert figures.size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_a_duration_is_as_exact_as_it_is_short(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text


def test_a_level_that_only_the_file_can_tell_is_not_called_unknown() -> None:
    level = RemoteLevelShape(
        level="UNKNOWN", address="gloss:latest", size_bytes=1, files=[], converts=False, recommended=True, fits=True,
        fits_disk=True, stored=[],
    )  # fmt: skip
    seen = RemoteShape(address="gloss", name="gloss", revision=None, choice="UNKNOWN", levels=[level])
    printed = in_pipe(tables.remote(seen))
    assert "UNKNOWN" not in printed
    assert "- *" in printed
    assert "its level is in the file" in printed
