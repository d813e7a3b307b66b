"""The laboratory: datasets, importance matrices, evaluations; more kinds of jobs."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KINDS = "kind IN ('import', 'quantize', 'calibrate', 'evaluate', 'budget', 'rebuild')"
_ACTIVE = sa.text("status IN ('queued', 'running')")


def upgrade() -> None:
    """Create the tables of the laboratory, let jobs be of its kinds, and bring the specs of waiting jobs up to date."""
    op.create_table(
        "datasets",
        sa.Column("folded", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("built_in", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.CheckConstraint("kind IN ('text', 'task')", name=op.f("ck_datasets_kind")),
        sa.PrimaryKeyConstraint("folded", name="pk_datasets"),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name="fk_datasets_digest", ondelete="RESTRICT"),
    )
    op.create_index("ix_datasets_digest", "datasets", ["digest"])
    op.create_table(
        "importance_matrices",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_folded", sa.Text(), nullable=False),
        sa.Column("source_digest", sa.Text()),
        sa.Column("dataset_digest", sa.Text()),
        sa.Column("made_from", sa.Text(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_importance_matrices"),
        sa.ForeignKeyConstraint(
            ["digest"], ["blobs.digest"], name="fk_importance_matrices_digest", ondelete="RESTRICT"
        ),
    )
    op.create_index("ix_importance_matrices_model_folded", "importance_matrices", ["model_folded"])
    op.create_index("ix_importance_matrices_made_from", "importance_matrices", ["made_from"])
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("variant_id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("conditions", sa.Text(), nullable=False),
        sa.Column("card", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_evaluations"),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"], name="fk_evaluations_variant_id", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_evaluations_variant_id", "evaluations", ["variant_id"])
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_jobs()
    else:
        op.drop_constraint("ck_jobs_kind", "jobs")
        op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", _KINDS)
    _move_permission_into_the_recipe()


def _rebuild_jobs() -> None:
    """SQLite cannot change a constraint. Foreign keys are off in a migration, so the events keep their jobs."""
    op.execute("CREATE TABLE jobs_before AS SELECT * FROM jobs")
    op.drop_table("jobs")
    op.create_table(
        "jobs",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("spec_key", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("steps", sa.Text(), nullable=False),
        sa.Column("eta_seconds", sa.Float()),
        sa.Column("result", sa.Text(), nullable=False),
        sa.Column("error_code", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Text()),
        sa.Column("finished_at", sa.Text()),
        sa.CheckConstraint(_KINDS, name=op.f("ck_jobs_kind")),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name=op.f("ck_jobs_status")
        ),
        sa.CheckConstraint("progress >= 0 AND progress <= 1", name=op.f("ck_jobs_progress")),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_jobs_attempts")),
        sa.PrimaryKeyConstraint("seq", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
        sqlite_autoincrement=True,
    )
    op.execute("INSERT INTO jobs SELECT * FROM jobs_before")
    op.drop_table("jobs_before")
    op.create_index("ix_jobs_status_seq", "jobs", ["status", "seq"])
    op.create_index("uq_jobs_active_spec_key", "jobs", ["spec_key"], unique=True, sqlite_where=_ACTIVE)


def _move_permission_into_the_recipe() -> None:
    """A waiting job to quantize keeps its permission to requantize: it is part of the recipe now."""
    jobs = sa.table("jobs", sa.column("id", sa.Text()), sa.column("kind", sa.Text()), sa.column("spec", sa.Text()))
    bind = op.get_bind()
    for job_id, spec in bind.execute(sa.select(jobs.c.id, jobs.c.spec).where(jobs.c.kind == "quantize")).all():
        values = json.loads(spec)
        if values.pop("allow_requantize", False):
            values["recipe"] = {"allow_requantize": True}
            bind.execute(sa.update(jobs).where(jobs.c.id == job_id).values(spec=json.dumps(values)))
