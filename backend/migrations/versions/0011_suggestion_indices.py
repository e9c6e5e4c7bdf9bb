"""Indices of suggestions: by time, and what is asked about a task without reading its masks"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_suggestions_created", "suggestions", ["created_at"])
    op.create_index("ix_suggestions_project", "suggestions", ["project_id", "created_at"])
    op.drop_index("ix_suggestions_task", table_name="suggestions")
    op.create_index(
        "ix_suggestions_task", "suggestions", ["project_id", "task_id", "state", "finished_at"]
    )


def downgrade() -> None:
    op.drop_index("ix_suggestions_task", table_name="suggestions")
    op.create_index("ix_suggestions_task", "suggestions", ["project_id", "task_id"])
    op.drop_index("ix_suggestions_project", table_name="suggestions")
    op.drop_index("ix_suggestions_created", table_name="suggestions")
