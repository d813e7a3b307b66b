"""Texts to calibrate and evaluate with, and tasks to score: named objects of the store."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DatasetKind(StrEnum):
    """What a dataset is for."""

    TEXT = "text"  # UTF-8, for calibration and perplexity
    TASK = "task"  # JSON lines: {"prompt" or "messages", "expected"}


@dataclass(frozen=True, slots=True)
class Dataset:
    """A stored dataset. `built_in` ones come with quantry and cannot be deleted."""

    name: str
    kind: DatasetKind
    digest: str  # "sha256:<64 hex>" of its bytes
    size_bytes: int
    built_in: bool
    created_at: str


CALIBRATION = "calibration"
EVALUATION = "evaluation"
WORDS = "words"
"""Names of the built-in datasets: disjoint texts of one kind, and a task for gloss."""


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """The dataset that a job uses: its name when the job was asked for, and the bytes that it then had."""

    name: str
    digest: str
