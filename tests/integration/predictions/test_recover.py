"""What no job stands for is queued again: events, and the periodic look at Label Studio."""

from datetime import timedelta

from backend.corrections import events
from backend.predictions.recover import EVENT_SETTLING_S, recover, recovery
from backend.processes.queues import HANDED_OVER_KEY, HANDOVER_S, QueueName, queue
from backend.services import Services
from backend.tables import Delivery, Event, LabelConfigText, Suggestion, SuggestionState, now
from tests.support.waiting import wait_until


def test_an_event_whose_job_was_lost_is_queued_again_once(services: Services) -> None:
    event_id = events.receive(services, {"action": "ANNOTATION_CREATED", "annotation": {"id": 5}})
    services.redis.flushall()
    assert recover(services).events == 0, "a young event may still be on its way"
    with services.database.session() as session:
        event = session.get_one(Event, event_id)
        event.created_at -= timedelta(seconds=2 * EVENT_SETTLING_S)
    assert [recover(services).events for _ in range(2)] == [1, 0]
    (job,) = queue(services.redis, QueueName.INGEST).jobs
    assert job.args == [[event_id]]


def test_an_event_whose_worker_died_before_it_began_is_queued_again_once(
    services: Services,
) -> None:
    event_id = events.receive(services, {"action": "ANNOTATION_CREATED", "annotation": {"id": 5}})
    with services.database.session() as session:
        event = session.get_one(Event, event_id)
        event.created_at -= timedelta(seconds=2 * EVENT_SETTLING_S)
    ingest = queue(services.redis, QueueName.INGEST)
    between = ingest.intermediate_queue
    services.redis.lmove(ingest.key, between.key)
    assert recover(services).events == 0, "a worker may be about to begin"
    (seen_key,) = services.redis.keys(f"{HANDED_OVER_KEY}:*")
    services.redis.incrbyfloat(seen_key, -2 * HANDOVER_S)
    assert [recover(services).events for _ in range(2)] == [1, 0]
    assert between.get_job_ids() == []
    assert ingest.count == 1


def test_label_studio_is_looked_at_from_time_to_time(services: Services) -> None:
    thread = recovery(services)
    thread.start()
    ingest = queue(services.redis, QueueName.INGEST)
    wait_until(lambda: ingest.count == 1)
    assert ingest.job_ids == ["upkeep"]
    thread.stop()
    thread.join()


def test_it_is_not_looked_at_where_the_setting_says_never(services: Services) -> None:
    services.settings.sync_minutes = 0
    thread = recovery(services)
    thread.start()
    wait_until(lambda: services.redis.exists("medsam3:recovery") == 1)
    thread.stop()
    thread.join()
    assert queue(services.redis, QueueName.INGEST).count == 0


def test_old_predictions_are_pruned_once_a_day_where_the_setting_says_so(
    services: Services,
) -> None:
    services.settings.sync_minutes, services.settings.prune_days = 0, 90
    for _ in range(2):
        thread = recovery(services)
        thread.start()
        wait_until(lambda: services.redis.exists("medsam3:prune") == 1)
        thread.stop()
        thread.join()
    assert queue(services.redis, QueueName.INGEST).job_ids == ["prune"]


def test_events_that_wait_for_good_do_not_starve_the_others(services: Services) -> None:
    long_ago = now() - timedelta(seconds=4 * EVENT_SETTLING_S)
    waiting = [
        Event(action="ANNOTATION_CREATED", task_ids=[], annotation_ids=[1], created_at=long_ago)
        for _ in range(600)
    ]
    good = Event(
        action="ANNOTATION_CREATED",
        task_ids=[],
        annotation_ids=[5],
        created_at=long_ago + timedelta(seconds=1),
    )
    with services.database.session() as session:
        session.add_all([*waiting, good])
    ingest = queue(services.redis, QueueName.INGEST)

    def is_tried() -> bool:
        recover(services)
        tried = f"event-{good.id}" in ingest.job_ids
        # None of the others is ever dealt with: they are as they were when the next round comes.
        ingest.empty()
        return tried

    wait_until(is_tried)


def test_undelivered_rows_wait_once_while_nobody_takes_them(services: Services) -> None:
    with services.database.session() as session:
        session.add(LabelConfigText(hash="c", xml="<View/>"))
    ingest = queue(services.redis, QueueName.INGEST)
    for count in (120, 0, 7, 0):
        with services.database.session() as session:
            session.add_all(
                Suggestion(
                    project_id=7,
                    task_id=1,
                    config_hash="c",
                    task_data={},
                    model_version="tiny-1",
                    state=SuggestionState.DONE,
                    delivery=Delivery.PUSH,
                    finished_at=now() - timedelta(minutes=1),
                )
                for _ in range(count)
            )
        assert recover(services).pushed == count
    rows = [row_id for job in ingest.jobs for row_id in job.args[0]]
    assert len(rows) == len(set(rows)) == 127
