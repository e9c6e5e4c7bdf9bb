"""Strategies: tables of removed ones go; a project that chose one goes by the setting"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

REMOVED = ("tta", "diversity", "random-foreground")


def upgrade() -> None:
    op.drop_table("task_ranks")
    op.drop_table("image_vectors")
    policies = sa.table("training_policies", sa.column("strategy", sa.String()))
    op.execute(policies.update().where(policies.c.strategy.in_(REMOVED)).values(strategy=sa.null()))


def downgrade() -> None:
    op.create_table(
        "image_vectors",
        sa.Column("image_hash", sa.String(length=64), nullable=False),
        sa.Column("encoder_hash", sa.String(length=64), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("image_hash", "encoder_hash"),
    )
    op.create_table(
        "task_ranks",
        sa.Column("project_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("rank", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "task_id"),
    )
