"""Training policies: whether a project's runs train an adapter of the encoder"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("training_policies", sa.Column("adapter", sa.Boolean(), nullable=True))


def downgrade() -> None:
    op.drop_column("training_policies", "adapter")
