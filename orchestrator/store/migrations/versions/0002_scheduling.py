"""What the scheduler remembers of runs and attempts.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns; what is there already was neither held nor shared nor a gang."""
    for name, kind in (("gpu_seconds_used", sa.Float), ("held", sa.Boolean), ("front", sa.Integer)):
        op.add_column("runs", sa.Column(name, kind, nullable=False, server_default="0"))
    for name in ("gpu_ids", "members"):
        op.add_column("attempts", sa.Column(name, sa.JSON, nullable=False, server_default="[]"))
    op.add_column("attempts", sa.Column("backfill", sa.Boolean, nullable=False, server_default="0"))
    op.create_table(
        "limits",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("most", sa.Integer, nullable=False),
    )
