"""Counters, gauges and histograms of one server, in a registry of their own.

Server process. Knows Prometheus and nothing of HTTP, the store or the pool: whoever has a figure hands it in.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

# The `_created` series double the page and nothing reads them; the library has only this process-wide switch.
disable_created_metrics()  # type: ignore[no-untyped-call]

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_PER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Every figure the server shows on `/metrics`. All names begin with `quantry_`; durations are seconds."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "quantry_requests", "HTTP requests answered.", ("route", "status"), registry=self.registry
        )
        self._request_seconds = Histogram(
            "quantry_request_seconds", "Seconds from request to the last byte of its answer.", ("route",),
            buckets=_REQUEST_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._prompt_tokens = Counter("quantry_prompt_tokens", "Prompt tokens processed.", registry=self.registry)
        self._generated_tokens = Counter("quantry_generated_tokens", "Tokens generated.", registry=self.registry)
        self._generations = Counter(
            "quantry_generations", "Generations by how they ended: stop, length, cancelled or an error code.",
            ("outcome",), registry=self.registry,
        )  # fmt: skip
        self._first_token_seconds = Histogram(
            "quantry_time_to_first_token_seconds", "Seconds from request to the first text.",
            buckets=_FIRST_TOKEN_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._per_token_seconds = Histogram(
            "quantry_time_per_output_token_seconds", "Seconds of generation per token, one observation a request.",
            buckets=_PER_TOKEN_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._queue_depth = Gauge("quantry_queued_requests", "Requests waiting for a worker.", registry=self.registry)
        self._workers = Gauge("quantry_workers", "Workers by state.", ("state",), registry=self.registry)
        self._jobs = Gauge("quantry_jobs", "Jobs kept, by status.", ("status",), registry=self.registry)
        self._store_bytes = Gauge("quantry_store_bytes", "Bytes of all blobs.", registry=self.registry)
        self._models = Gauge("quantry_models", "Models in the catalogue.", registry=self.registry)
        self._variants = Gauge("quantry_variants", "Variants in the catalogue.", registry=self.registry)

    def request_ended(self, route: str, status: int, seconds: float) -> None:
        """One HTTP request was answered. `route` is the route's template, never the path, to bound the labels."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """The first text of a generation left, `seconds` after its request came."""
        self._first_token_seconds.observe(seconds)

    def generation_ended(
        self, outcome: str, prompt_tokens: int, generated_tokens: int, generation_seconds: float
    ) -> None:
        """A generation ended as `outcome`, for good or bad."""
        self._generations.labels(outcome).inc()
        self._prompt_tokens.inc(prompt_tokens)
        self._generated_tokens.inc(generated_tokens)
        # The clock of a generation starts at its first token.
        if generated_tokens > 1 and generation_seconds > 0:
            self._per_token_seconds.observe(generation_seconds / (generated_tokens - 1))

    def set_workers(self, by_state: Mapping[str, int], queue_depth: int) -> None:
        """What the pool looks like now."""
        self._workers.clear()
        for state, count in by_state.items():
            self._workers.labels(state).set(count)
        self._queue_depth.set(queue_depth)

    def set_jobs(self, by_status: Mapping[str, int]) -> None:
        """How many jobs the queue holds now."""
        for status, count in by_status.items():
            self._jobs.labels(status).set(count)

    def set_store(self, models: int, variants: int, blob_bytes: int) -> None:
        """What the store holds now."""
        self._models.set(models)
        self._variants.set(variants)
        self._store_bytes.set(blob_bytes)

    def render(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
