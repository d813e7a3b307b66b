"""Models count their changes, so that lists are read again only where something was written."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the counter."""
    with op.batch_alter_table("models", recreate="always", table_kwargs={"sqlite_autoincrement": True}) as models:
        models.add_column(sa.Column("revision", sa.Integer(), nullable=False, server_default="0"))
