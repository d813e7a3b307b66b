"""What was measured on a variant: perplexity, divergence from its source, speed, tasks. Values only.

Definitions and windows are those of llama-perplexity: a text is cut into windows, each scored over its second half.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """Against the source, over the same tokens. KL divergences are in nats, probabilities from 0 to 1."""

    base_name: str
    base_digest: str
    base_perplexity: Estimate
    log_perplexity_ratio: Estimate  # ln(perplexity / base perplexity)
    mean_kld: Estimate
    median_kld: float
    p90_kld: float
    p99_kld: float
    p999_kld: float
    max_kld: float
    mean_dp: Estimate  # change of the probability of the text's own token
    rms_dp: Estimate
    same_top: Estimate  # share of tokens with the same most likely token


@dataclass(frozen=True, slots=True)
class TextFigures:
    """One text: `tokens` were scored in `chunks` windows of `window` tokens."""

    dataset: str
    dataset_digest: str
    window: int
    chunks: int
    tokens: int
    perplexity: Estimate
    divergence: Divergence | None  # None: this variant is the source itself, or none is stored


@dataclass(frozen=True, slots=True)
class Speed:
    """On this machine, one sequence, an empty cache. `memory_bytes` is the process's peak, resident."""

    threads: int
    prompt_tokens: int
    prompt_tokens_per_second: float
    generation_tokens: int
    generation_tokens_per_second: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class TaskScore:
    """How many of a task's answers were exactly right, greedy."""

    task: str
    task_digest: str
    correct: int
    total: int


@dataclass(frozen=True, slots=True)
class Card:
    """Everything measured on one variant in one run."""

    machine: str  # cpu model and cores, for people
    llama_build: str
    seconds: float
    text: TextFigures | None = None
    speed: Speed | None = None
    tasks: tuple[TaskScore, ...] = ()
    created_at: str = ""  # RFC 3339; set by the store


@dataclass(frozen=True, slots=True)
class Target:
    """What a mix must keep to. At least one is set; the loss is least within the rest, or with `max_kld` the size."""

    size_bytes: int | None = None  # of the whole file
    bits_per_weight: float | None = None
    max_kld: float | None = None
    min_speed: float | None = None  # generation tokens/s on this machine


@dataclass(frozen=True, slots=True)
class SearchReport:
    """How a mix was found: what the search believed and what the measurement on other text then said."""

    target: Target
    size_bytes: int
    predicted_kld: float
    search_dataset: str
    measured_pairs: int
    estimated_pairs: int
    search_seconds: float
    guide: str  # "measured" or "estimated"
    types: tuple[tuple[str, int], ...] = field(default=())  # tensors by type
