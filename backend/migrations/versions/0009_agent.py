"""Agent runs: a language model's work on tasks, with its transcript"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "agent_runs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("suggestion_id", sa.String(length=32), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("config_hash", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.String(length=200), nullable=False),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.Column("questions", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("exchanges", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("outcomes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("image_hashes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("cost", sa.Double(), nullable=True),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("prediction_id", sa.String(length=32), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["config_hash"], ["label_configs.hash"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("suggestion_id"),
    )
    op.create_index("ix_agent_runs_state", "agent_runs", ["state", "lease_until"])
    op.create_index("ix_agent_runs_task", "agent_runs", ["project_id", "task_id"])
    op.create_table(
        "agent_pictures",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("jpeg", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "sha256"),
    )
    op.add_column("suggestions", sa.Column("agent_run_id", sa.String(length=32), nullable=True))
    op.create_index("ix_suggestions_agent_run_id", "suggestions", ["agent_run_id"])
    op.add_column("training_policies", sa.Column("agent", sa.Boolean(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("training_policies") as batch:
        batch.drop_column("agent")
    op.drop_index("ix_suggestions_agent_run_id", "suggestions")
    with op.batch_alter_table("suggestions") as batch:
        batch.drop_column("agent_run_id")
    op.drop_table("agent_pictures")
    op.drop_table("agent_runs")
