"""What runs and attempts have used of energy, and what that cost.

Revision ID: 0005
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns; nothing is known of what was there already."""
    for table, joules in (("runs", "joules_used"), ("attempts", "joules")):
        op.add_column(table, sa.Column(joules, sa.Float, nullable=False, server_default="0"))
        op.add_column(table, sa.Column("energy_source", sa.String(16)))
        op.add_column(table, sa.Column("cost", sa.Float))
    op.add_column("attempts", sa.Column("energy_at", sa.String(40)))
