"""Acquisition and care: adapters, desired variants, pins, files adopted where they are; more kinds of jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KINDS = (
    "kind IN ('import', 'quantize', 'calibrate', 'evaluate', 'budget', 'rebuild', 'pull', 'adapter', 'bundle', "
    "'verify')"
)
_ACTIVE = sa.text("status IN ('queued', 'running')")


def upgrade() -> None:
    """Add the columns and tables, and let jobs be of the new kinds."""
    with op.batch_alter_table("blobs", recreate="always") as blobs:
        blobs.add_column(sa.Column("verified_at", sa.Text()))
        blobs.add_column(sa.Column("outside", sa.Text()))
    with op.batch_alter_table("variants", recreate="always", table_kwargs={"sqlite_autoincrement": True}) as variants:
        variants.add_column(sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false()))
        variants.add_column(sa.Column("last_used_at", sa.Text()))
    pinned = sa.text("pinned")
    op.create_index("ix_variants_pinned", "variants", ["id"], sqlite_where=pinned, postgresql_where=pinned)
    op.create_table(
        "adapters",
        sa.Column("model_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("name_folded", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", "name_folded", name="pk_adapters"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_adapters_model_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["digest"], ["blobs.digest"], name="fk_adapters_digest", ondelete="RESTRICT"),
    )
    op.create_index("ix_adapters_digest", "adapters", ["digest"])
    op.create_table(
        "desired",
        sa.Column("model_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("wish", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", name="pk_desired"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_desired_model_id", ondelete="CASCADE"),
    )
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_jobs()
    else:
        op.drop_constraint("ck_jobs_kind", "jobs")
        op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", _KINDS)


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
