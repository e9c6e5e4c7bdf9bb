"""Why training runs ended: a ceiling that was reached is said"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("training_runs", sa.Column("stopped", sa.String(length=16), nullable=True))


def downgrade() -> None:
    op.drop_column("training_runs", "stopped")
