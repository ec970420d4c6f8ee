"""Schedules and their fires.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "schedules",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(16), nullable=False, unique=True),
        sa.Column("key", sa.String(200), nullable=False, unique=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("user", sa.String(100), nullable=False),
        sa.Column("cron", sa.Text),
        sa.Column("at", sa.String(40)),
        sa.Column("tz", sa.String(63), nullable=False),
        sa.Column("overlap", sa.String(16), nullable=False),
        sa.Column("catch_up", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("cursor", sa.String(40), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("ended_at", sa.String(40)),
    )
    op.create_index("schedules_by_state", "schedules", ["state", "seq"])
    op.create_index("schedules_by_name", "schedules", ["name", "seq"])
    op.create_table(
        "fires",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("schedule_id", sa.String(16), sa.ForeignKey("schedules.id"), nullable=False),
        sa.Column("local", sa.String(100), nullable=False),
        sa.Column("due", sa.String(40), nullable=False),
        sa.Column("last", sa.String(40), nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("by_hand", sa.Boolean, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("run_id", sa.String(16), sa.ForeignKey("runs.id")),
        sa.Column("sweep_id", sa.String(16), sa.ForeignKey("sweeps.id")),
        sa.Column("decided_at", sa.String(40), nullable=False),
        sa.UniqueConstraint("schedule_id", "local", name="fires_once"),
    )
    op.create_index("fires_by_due", "fires", ["schedule_id", "last"])
    op.create_index("fires_by_state", "fires", ["state", "schedule_id", "seq"])
