"""How long stages took: each in the bucket of its bound, less what another stage took in it."""

import pytest

from backend.processes.counters import (
    BOUNDS_S,
    StageTimes,
    WorkStage,
    bucket_field,
    sum_field,
)


def test_each_is_in_the_bucket_of_its_bound() -> None:
    times = StageTimes()
    for seconds in (0.0, BOUNDS_S[0], BOUNDS_S[0] * 1.01, BOUNDS_S[-1] + 1, -5.0):
        times.observe(WorkStage.WAIT, seconds)
    assert times.take() == {
        bucket_field(WorkStage.WAIT, BOUNDS_S[0]): 3,
        bucket_field(WorkStage.WAIT, BOUNDS_S[1]): 1,
        bucket_field(WorkStage.WAIT, None): 1,
        sum_field(WorkStage.WAIT): pytest.approx(BOUNDS_S[0] * 2.01 + BOUNDS_S[-1] + 1),
    }
    assert times.take() == {}


def test_what_another_stage_takes_inside_is_not_counted_twice() -> None:
    times = StageTimes()
    times.observe(WorkStage.ENCODE, 7.0)
    with times.measured(WorkStage.DETECT, without=WorkStage.ENCODE):
        times.observe(WorkStage.ENCODE, 50.0)
    taken = times.take()
    assert taken[sum_field(WorkStage.DETECT)] == 0.0
    assert taken[sum_field(WorkStage.ENCODE)] == 57.0


def test_what_raises_is_not_counted() -> None:
    times = StageTimes()
    with pytest.raises(OSError, match="away"), times.measured(WorkStage.PUSH):
        raise OSError("away")
    assert times.take() == {}
