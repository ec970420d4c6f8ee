"""Runs, attempts and events.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the first tables."""
    op.create_table(
        "runs",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(16), nullable=False, unique=True),
        sa.Column("key", sa.String(200), nullable=False, unique=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("experiment", sa.String(63), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("spec_hash", sa.String(64), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("user", sa.String(100), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(24)),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("retries_used", sa.Integer, nullable=False),
        sa.Column("pin_pool", sa.String(63)),
        sa.Column("stop", sa.String(24)),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("not_before", sa.String(40)),
        sa.Column("restore_run", sa.String(16)),
        sa.Column("restore_step", sa.Integer),
        sa.Column("restore_path", sa.Text),
        sa.Column("seconds_used", sa.Float, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("started_at", sa.String(40)),
        sa.Column("ended_at", sa.String(40)),
    )
    op.create_index("runs_by_state", "runs", ["state", "seq"])
    op.create_index("runs_by_name", "runs", ["name", "seq"])
    op.create_table(
        "attempts",
        sa.Column("run_id", sa.String(16), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("ray_id", sa.String(64), nullable=False),
        sa.Column("node", sa.String(63), nullable=False),
        sa.Column("variant_index", sa.Integer, nullable=False),
        sa.Column("variant", sa.JSON, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(24)),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("exit_code", sa.Integer),
        sa.Column("device", sa.String(16)),
        sa.Column("device_name", sa.Text),
        sa.Column("first_step", sa.Integer),
        sa.Column("last_step", sa.Integer),
        sa.Column("timings", sa.JSON, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("started_at", sa.String(40)),
        sa.Column("ended_at", sa.String(40)),
    )
    op.create_index("attempts_by_phase", "attempts", ["phase"])
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String(16), sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_index("events_by_run", "events", ["run_id", "id"])


def downgrade() -> None:
    """Drop them."""
    for table in ("events", "attempts", "runs"):
        op.drop_table(table)
