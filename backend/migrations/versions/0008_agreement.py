"""Agreement: pixels that two masks share, and the report of each project"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mask_overlaps",
        sa.Column("first_hash", sa.String(length=32), nullable=False),
        sa.Column("second_hash", sa.String(length=32), nullable=False),
        sa.Column("pixels", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("first_hash", "second_hash"),
    )
    op.create_index("ix_mask_overlaps_second_hash", "mask_overlaps", ["second_hash"])
    op.create_table(
        "agreement_reports",
        sa.Column("project_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("stamp", sa.String(length=64), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("computed_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("project_id"),
    )


def downgrade() -> None:
    op.drop_table("agreement_reports")
    op.drop_index("ix_mask_overlaps_second_hash", table_name="mask_overlaps")
    op.drop_table("mask_overlaps")
