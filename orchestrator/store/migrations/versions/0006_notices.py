"""What is to be told to people.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "notices",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("experiment", sa.String(63), nullable=False),
        sa.Column("at", sa.String(40), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("spread", sa.Boolean, nullable=False, server_default="0"),
        sa.UniqueConstraint("kind", "subject", "key"),
    )
    op.create_index("notices_by_spread", "notices", ["spread", "id"])
    op.create_table(
        "deliveries",
        sa.Column("notice", sa.Integer, sa.ForeignKey("notices.id"), primary_key=True),
        sa.Column("target", sa.String(63), primary_key=True),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("due", sa.String(40), nullable=False),
        sa.Column("error", sa.Text, nullable=False),
    )
    op.create_index("deliveries_by_due", "deliveries", ["due"])
