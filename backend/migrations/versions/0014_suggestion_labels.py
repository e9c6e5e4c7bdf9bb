"""Suggestions: the labels that a prediction was asked for, where these were not all"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("suggestions", sa.Column("labels", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("suggestions", "labels")
