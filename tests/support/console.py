"""The console as a browser without JavaScript sees it: log in, read a page, send its forms."""

import re

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from backend.predictions import preannotate
from backend.processes.queues import QueueName, queue
from backend.services import Credentials, Services
from backend.web.app import create_app

CONSOLE = "/console"
_TOKEN = re.compile(r'name="csrf_token"[^>]*value="([^"]+)"')


def browser(services: Services) -> FlaskClient:
    """Somebody who has not logged in."""
    return create_app(services).test_client()


def token_of(client: FlaskClient, path: str = CONSOLE) -> str:
    """The token in a page's forms."""
    found = _TOKEN.search(client.get(path).text)
    assert found, f"{path} has no form"
    return found[1]


def log_in(client: FlaskClient, credentials: Credentials, password: str = "") -> TestResponse:
    """Fill in the login page, with the right password unless another one is given."""
    sent = {"user": credentials.user, "password": password or credentials.password}
    token = token_of(client, f"{CONSOLE}/login")
    return client.post(f"{CONSOLE}/login", data={**sent, "csrf_token": token})


def admin(services: Services) -> FlaskClient:
    """Somebody who has logged in."""
    client = browser(services)
    assert log_in(client, services.credentials).status_code == 302
    return client


def worker_turn(services: Services) -> None:
    """An ingest worker's turn at the pre-annotations that were asked for."""
    for job in queue(services.redis, QueueName.INGEST).jobs:
        preannotate.start_preannotation(*job.args)
        job.delete()


def send(client: FlaskClient, path: str, **values: object) -> TestResponse:
    """Send a form with the session's token, and follow where the answer leads."""
    sent = {**values, "csrf_token": token_of(client)}
    return client.post(f"{CONSOLE}{path}", data=sent, follow_redirects=True)
