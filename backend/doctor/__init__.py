"""`medsam3 doctor`: is everything that the backend needs there, and if not, what to do about it.

Nothing is changed, nothing is started, torch is not imported.
"""

from contextlib import closing

from backend.doctor.check import Check, Status
from backend.doctor.corrections import check_quarantined
from backend.doctor.database import check_events, check_failed_tasks, open_existing_database
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
    ]
    with closing(connect_redis(settings)) as redis:
        found = check_redis(settings, redis)
        checks.append(found)
        if found.status is not Status.FAIL:
            checks += [check_workers(redis, name) for name in QueueName]
    token = None
    checks.append(check_label_studio(settings))
    if checks[-1].status is Status.OK:
        token = check_token(settings)
        checks.append(token)
    database, found = open_existing_database(settings)
    checks.append(found)
    if database is None:
        return checks
    try:
        if found.status is Status.OK:
            checks += [
                check_failed_tasks(database),
                check_events(database),
                check_quarantined(database),
            ]
            if token is not None and token.status is not Status.FAIL:
                checks += check_projects(settings, database)
    finally:
        database.dispose()
    return checks
