"""From the answers of one run to its figures: rates, percentiles of waiting. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.client import Answer


@dataclass(frozen=True)
class Summary:
    """Figures of one run. Rates are tokens/s, times seconds; NaN where there was nothing to measure.

    `total_rate` counts the tokens of all requests over the time from the first start to the last end;
    `generation_rate` is per stream, between its first and its last token, prompts left out.
    """

    requests: int
    failed: int
    cancelled: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    total_rate: float
    generation_rate: float
    ttft_p50: float
    ttft_p95: float
    gap_p50: float
    gap_p95: float
    gap_p99: float
    gap_max: float

    def as_dict(self) -> dict[str, float]:
        """Plain numbers by name."""
        return asdict(self)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed, interpolated between neighbours; NaN of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarize(answers: Sequence[Answer]) -> Summary:
    """The figures of one run; failed requests count in `failed` alone, cancelled ones with the tokens they got."""
    good = [answer for answer in answers if answer.error is None]
    told = [answer for answer in good if answer.times]
    tokens = sum(answer.completion_tokens for answer in good)
    seconds = max((a.ended_at for a in good), default=0.0) - min((a.started_at for a in good), default=0.0)
    streaming = sum(answer.times[-1] - answer.times[0] for answer in told)
    after_first = sum(answer.completion_tokens - 1 for answer in told)
    waits = [answer.first_token_seconds for answer in told]
    gaps = [gap for answer in told for gap in answer.gaps]
    return Summary(
        requests=len(answers),
        failed=len(answers) - len(good),
        cancelled=sum(answer.cancelled for answer in good),
        prompt_tokens=sum(answer.prompt_tokens for answer in good),
        cached_tokens=sum(answer.cached_tokens for answer in good),
        completion_tokens=tokens,
        seconds=seconds,
        total_rate=tokens / seconds if seconds > 0 else math.nan,
        generation_rate=after_first / streaming if streaming > 0 else math.nan,
        ttft_p50=percentile(waits, 0.5),
        ttft_p95=percentile(waits, 0.95),
        gap_p50=percentile(gaps, 0.5),
        gap_p95=percentile(gaps, 0.95),
        gap_p99=percentile(gaps, 0.99),
        gap_max=max(gaps, default=math.nan),
    )
