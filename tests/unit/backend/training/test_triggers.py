"""What starts a training run."""

from datetime import UTC, datetime

from backend.training.triggers import next_time


def test_a_schedule_is_a_cron_line() -> None:
    moment = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    assert next_time("0 3 * * *", moment) == datetime(2026, 3, 3, 3, 0, tzinfo=UTC)
