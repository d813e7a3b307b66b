"""Presets: what a name made by Ollama's `create` adds to its variant."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "presets",
        sa.Column("model_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("word_folded", sa.Text(), nullable=False),
        sa.Column("variant_id", sa.Integer(), nullable=False),
        sa.Column("preset", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", "word_folded", name="pk_presets"),
        sa.ForeignKeyConstraint(
            ["model_id", "variant_id"],
            ["variants.model_id", "variants.id"],
            name="fk_presets_model_id_variant_id",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_presets_variant_id", "presets", ["variant_id"])
