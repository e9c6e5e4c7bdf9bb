"""How far a sync that was cut short has come"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("project_records", schema=None) as batch_op:
        batch_op.add_column(sa.Column("reading_until", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("read_to_task", sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("project_records", schema=None) as batch_op:
        batch_op.drop_column("read_to_task")
        batch_op.drop_column("reading_until")
