"""What the server lets its workers have: values, made from the settings by the composition root."""

from __future__ import annotations

from dataclasses import dataclass

from service.children import child_argv
from service.domain.memory import CacheChoice

WORKER_ARGV = child_argv("service.workers.worker")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What every worker of this server is started with. `argv` lets tests wrap the child."""

    batch_tokens: int
    threads: int
    gpu_layers: int
    load_timeout_seconds: float
    hang_seconds: float
    max_token_gap_seconds: float = 0.25
    prefix_cache: bool = True
    speculation: bool = True
    # Text that waits for its reader: past the first bound its request is paused, past the second it is cut off.
    pause_characters: int = 8 * 1024
    max_buffered_characters: int = 256 * 1024
    argv: tuple[str, ...] = WORKER_ARGV


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """What the pool may use. `context_length`, `parallel` and the cache's types are defaults for each variant."""

    worker: WorkerOptions
    machine: str
    context_length: int
    parallel: int
    memory_budget_bytes: int
    max_loaded_models: int
    max_queued_requests: int
    keep_alive_seconds: float
    queue_timeout_seconds: float
    cache_type_k: CacheChoice = CacheChoice.F16
    cache_type_v: CacheChoice = CacheChoice.F16
    flash_attention: bool = True
