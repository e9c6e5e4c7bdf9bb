"""`medsam3 doctor`: whether everything is there that the backend needs, and what to do if not.

It changes nothing, starts nothing and imports no torch.
"""

from contextlib import closing

from backend.doctor.agent import check_agent
from backend.doctor.caches import check_caches, check_embedding_room, check_embedding_store
from backend.doctor.check import Check, Status
from backend.doctor.database import (
    check_events,
    check_failed_tasks,
    check_groups,
    check_quarantined,
    open_existing_database,
)
from backend.doctor.label_studio import check_label_studio, check_token
from backend.doctor.machine import check_data_folder, check_image_sources, check_model, check_web
from backend.doctor.projects import check_projects
from backend.doctor.redis import check_redis, check_workers
from backend.processes.queues import QueueName
from backend.services import connect_redis
from backend.settings import Settings

__all__ = ["Check", "Status", "run_checks"]


def run_checks(settings: Settings) -> list[Check]:
    """Look at everything, in the order in which one would repair it."""
    checks = [
        check_data_folder(settings),
        check_model(settings),
        *check_image_sources(settings),
        check_web(settings),
        check_caches(settings),
    ]
    optional = (check_embedding_store(settings), check_agent(settings))
    checks += [check for check in optional if check is not None]
    with closing(connect_redis(settings)) as redis:
        checks.append(check_redis(settings, redis))
        if checks[-1].status is not Status.FAIL:
            checks += [check_workers(redis, name) for name in QueueName]
    checks.append(check_label_studio(settings))
    if checks[-1].status is Status.OK:
        checks.append(check_token(settings))
    label_studio_answers = checks[-1].status is not Status.FAIL
    database, opened = open_existing_database(settings)
    checks.append(opened)
    if database is None:
        return checks
    try:
        if opened.status is Status.OK:
            checks += [
                check_failed_tasks(database),
                check_events(database),
                check_quarantined(database),
                *check_groups(database),
            ]
            if label_studio_answers:
                checks += check_projects(settings, database)
                checks.append(check_embedding_room(settings, database))
    finally:
        database.dispose()
    return checks
