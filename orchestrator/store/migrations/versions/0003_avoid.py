"""Nodes that a run avoids.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; runs that were there already avoid none."""
    op.add_column("runs", sa.Column("avoid", sa.JSON, nullable=False, server_default="[]"))
