"""While PostgreSQL or Redis are away, the web process says so, and goes on when they are back."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest

from backend.processes.redis_server import RedisServer
from backend.services import Services, open_services
from backend.settings import Settings
from backend.web.app import create_app
from backend.web.auth import is_console
from tests.support.console import admin, log_in


@pytest.fixture
def on_postgres(
    redis_server: RedisServer, settings: Settings, postgres_database: str
) -> Iterator[Services]:
    opened = open_services(settings.model_copy(update={"database_url": postgres_database}))
    yield opened
    opened.close()


@contextmanager
def away(postgres: str, database: str) -> Iterator[None]:
    """The server ends the connections of a database and takes no new ones."""
    name = urlsplit(database).path.removeprefix("/")
    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        yield
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def credentials(services: Services) -> tuple[str, str]:
    return services.credentials.user, services.credentials.password


def test_a_database_that_is_away_is_said_and_comes_back(
    on_postgres: Services, postgres: str, postgres_database: str
) -> None:
    program, person = (create_app(on_postgres).test_client() for _ in range(2))
    asked = {"path": "/api/v1/corrections/stats", "auth": credentials(on_postgres)}
    assert program.get(**asked).status_code == 200
    log_in(person, on_postgres.credentials)
    assert person.get("/console").status_code == 200

    with away(postgres, postgres_database):
        for _ in range(3):  # also with connections that were closed meanwhile
            answer = program.get(**asked)
            assert answer.status_code == 503
            assert answer.get_json() == {
                "error": "The database does not answer; try again in 5 seconds."
            }
            assert answer.headers["Retry-After"] == "5"
        page = person.get("/console")
        assert page.status_code == 503
        assert page.mimetype == "text/plain"
        assert program.get("/health").status_code == 200

    assert program.get(**asked).status_code == 200
    assert person.get("/console").status_code == 200


def test_no_page_and_no_endpoint_fails_without_words_while_redis_is_away(
    services: Services, redis_server: RedisServer
) -> None:
    client = admin(services)
    redis_server.stop()
    asked = [
        rule.rule.replace("<int:", "<")
        for rule in client.application.url_map.iter_rules()
        if "GET" in (rule.methods or ()) and rule.endpoint != "bootstrap.static"
    ]
    codes = {}
    for rule in asked:
        path = re.sub("<[^>]+>", "1", rule)
        auth = None if is_console(path) else credentials(services)
        codes[rule] = client.get(path, auth=auth).status_code
    assert {rule: code for rule, code in codes.items() if code >= 500 and code != 503} == {}
