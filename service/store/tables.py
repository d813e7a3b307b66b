"""The tables of the database. Server process only; knows neither connections nor what the rows mean.

Each change here needs a migration; a test compares the two. Values in JSON are the domain's, named beside the column.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from service.domain.datasets import DatasetKind
from service.domain.jobs import JobKind, JobStatus


class EventKind(StrEnum):
    """What a row of `job_events` reports."""

    STATUS = "status"
    PROGRESS = "progress"
    LEVEL = "level"


def _one_of(column: str, words: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(word)) for word in words)})"


METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# --- catalogue ---------------------------------------------------------------------------------------------------

models = Table(
    "models",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("folded", Text, nullable=False, unique=True),  # ModelKey.folded
    Column("host", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("revision", Integer, nullable=False, server_default="0"),  # counts what is written of it: revisions.py
    sqlite_autoincrement=True,
)

blobs = Table(
    "blobs",
    METADATA,
    Column("digest", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("corrupt", Boolean, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("verified_at", Text),  # when its bytes were last read and compared; None: not since they came
    Column("outside", Text),  # Outside, for a file that was adopted where it is; None: in the store
    CheckConstraint("size_bytes >= 0", name="size_bytes"),
)

# An id is never given twice (AUTOINCREMENT): a worker that still holds a deleted variant can never pass for a new one.
variants = Table(
    "variants",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("model_id", Integer, ForeignKey("models.id", ondelete="CASCADE"), nullable=False),
    Column("flavour", Text, nullable=False),
    Column("flavour_folded", Text, nullable=False),
    Column("quantization", Text, nullable=False),
    Column("digest", Text, ForeignKey("blobs.digest", ondelete="RESTRICT"), nullable=False, index=True),
    Column("facts", Text, nullable=False),  # FileFacts
    Column("lineage", Text, nullable=False),  # Lineage
    Column("created_at", Text, nullable=False),
    Column("pinned", Boolean, nullable=False, server_default=false()),
    Column("last_used_at", Text),  # when a worker last held it; None: never
    UniqueConstraint("model_id", "flavour_folded", "quantization"),
    UniqueConstraint("model_id", "id"),
    sqlite_autoincrement=True,
)

# The rows are wide: what is asked of all of them at once is answered from an index.
Index(
    "ix_variants_pinned",
    variants.c.id,
    sqlite_where=variants.c.pinned,
    postgresql_where=variants.c.pinned,
)

# The double key keeps a tag inside its own model.
tags = Table(
    "tags",
    METADATA,
    Column("model_id", Integer, primary_key=True, autoincrement=False),
    Column("word_folded", Text, primary_key=True),
    Column("word", Text, nullable=False),
    Column("variant_id", Integer, nullable=False, index=True),
    Column("created_at", Text, nullable=False),
    ForeignKeyConstraint(["model_id", "variant_id"], ["variants.model_id", "variants.id"], ondelete="CASCADE"),
)

# What a name adds to its variant. The word is that of a tag, or a canonical tag.
presets = Table(
    "presets",
    METADATA,
    Column("model_id", Integer, primary_key=True, autoincrement=False),
    Column("word_folded", Text, primary_key=True),
    Column("variant_id", Integer, nullable=False, index=True),
    Column("preset", Text, nullable=False),  # Preset
    Column("created_at", Text, nullable=False),
    ForeignKeyConstraint(["model_id", "variant_id"], ["variants.model_id", "variants.id"], ondelete="CASCADE"),
)

# LoRA adapters. A name is unique within its model.
adapters = Table(
    "adapters",
    METADATA,
    Column("model_id", Integer, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("name_folded", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, ForeignKey("blobs.digest", ondelete="RESTRICT"), nullable=False, index=True),
    Column("facts", Text, nullable=False),  # AdapterFacts
    Column("created_at", Text, nullable=False),
)

# What a model's owner wants to have of it.
desired = Table(
    "desired",
    METADATA,
    Column("model_id", Integer, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("wish", Text, nullable=False),  # domain.desired.Desired
    Column("updated_at", Text, nullable=False),
)

plans = Table(
    "plans",
    METADATA,
    Column("digest", Text, ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("plan", Text, nullable=False),  # LevelPlan
)

measurements = Table(
    "measurements",
    METADATA,
    Column("variant_id", Integer, ForeignKey("variants.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("value", Float, nullable=False),
    Column("unit", Text, nullable=False),
    Column("created_at", Text, nullable=False),
)

launch_rungs = Table(
    "launch_rungs",
    METADATA,
    Column("machine", Text, primary_key=True),
    Column("digest", Text, ForeignKey("blobs.digest", ondelete="CASCADE"), primary_key=True),
    Column("rung", Text, nullable=False),
    Column("updated_at", Text, nullable=False),
)

# --- laboratory --------------------------------------------------------------------------------------------------

datasets = Table(
    "datasets",
    METADATA,
    Column("folded", Text, primary_key=True),  # the name in lower case
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("digest", Text, ForeignKey("blobs.digest", ondelete="RESTRICT"), nullable=False, index=True),
    Column("built_in", Boolean, nullable=False),
    Column("created_at", Text, nullable=False),
    CheckConstraint(_one_of("kind", DatasetKind), name="kind"),
)

importance_matrices = Table(
    "importance_matrices",
    METADATA,
    Column("digest", Text, ForeignKey("blobs.digest", ondelete="RESTRICT"), primary_key=True),
    Column("model", Text, nullable=False),  # ModelKey.display
    Column("model_folded", Text, nullable=False, index=True),
    Column("source_digest", Text),
    Column("dataset_digest", Text),
    Column("made_from", Text, nullable=False, index=True),  # hash of everything that its values depend on
    Column("facts", Text, nullable=False),  # ImportanceFacts
    Column("created_at", Text, nullable=False),
)

# `conditions`: hash of what was measured against what. `job_id`: the job that measured, kept or not.
evaluations = Table(
    "evaluations",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("variant_id", Integer, ForeignKey("variants.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("job_id", Text, nullable=False),
    Column("conditions", Text, nullable=False),
    Column("card", Text, nullable=False),  # Card
    Column("created_at", Text, nullable=False),
    sqlite_autoincrement=True,
)

# --- jobs --------------------------------------------------------------------------------------------------------

# Statuses and their transitions: service.domain.jobs.JobStatus. `seq` orders jobs; wall clocks may jump.
jobs = Table(
    "jobs",
    METADATA,
    Column("seq", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),  # "job_" and 16 hexadecimal digits
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("spec_key", Text, nullable=False),  # hash of kind and spec
    Column("spec", Text, nullable=False),  # a JobSpec; which one follows from `kind`
    Column("progress", Float, nullable=False),
    Column("steps", Text, nullable=False),  # list of Step
    Column("eta_seconds", Float),
    Column("result", Text, nullable=False),  # list of names and digests
    Column("error_code", Text),
    Column("error_message", Text),
    Column("attempts", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("started_at", Text),
    Column("finished_at", Text),
    CheckConstraint(_one_of("kind", JobKind), name="kind"),
    CheckConstraint(_one_of("status", JobStatus), name="status"),
    CheckConstraint("progress >= 0 AND progress <= 1", name="progress"),
    CheckConstraint("attempts >= 0", name="attempts"),
    Index("ix_jobs_status_seq", "status", "seq"),
    sqlite_autoincrement=True,
)

# Two active jobs never do the same work.
Index(
    "uq_jobs_active_spec_key",
    jobs.c.spec_key,
    unique=True,
    sqlite_where=text("status IN ('queued', 'running')"),
    postgresql_where=text("status IN ('queued', 'running')"),
)

job_events = Table(
    "job_events",
    METADATA,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("id", Integer, primary_key=True, autoincrement=False),  # counts within the job
    Column("kind", Text, nullable=False),
    Column("job", Text, nullable=False),  # Job, as it was
    Column("created_at", Text, nullable=False),
    CheckConstraint(_one_of("kind", EventKind), name="kind"),
)
