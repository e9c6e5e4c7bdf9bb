"""The web process: a Flask application that imports no torch."""

import logging

from flask import Flask, Response, jsonify, request
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy.exc import InterfaceError, OperationalError
from werkzeug.exceptions import HTTPException
from werkzeug.utils import import_string

from backend.errors import QueueError
from backend.people.audit import Refusals
from backend.services import Services, open_services
from backend.web import contract, openapi
from backend.web.api import agent, corrections, models, predictions, propagations
from backend.web.auth import (
    is_console,
    refuse_foreign_pages,
    refuse_viewers,
    require_credentials,
)

log = logging.getLogger(__name__)

# Endpoints of rooms above this one, by name: serving does not depend on training.
PLUGINS = ("backend.training.api",)
# Seconds after which whoever was refused for a server that is away should come back.
COME_BACK_S = 5
_AWAY = (
    OperationalError,
    InterfaceError,
    RedisConnectionError,
    RedisTimeoutError,
    QueueError,
)

CONSOLE = "backend.web.console.access:add_console"


def create_app(services: Services | None = None) -> Flask:
    """Build the application.

    Args:
        services: settings, database and Redis to use; None opens those of the environment.
    """
    services = services or open_services()
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = services.settings.max_request_mb * 2**20
    app.extensions["medsam3"] = services
    app.extensions["medsam3_refusals"] = Refusals(services.database)
    # Read now: a data folder that cannot be written stops the start, not the first request.
    _ = services.credentials
    app.before_request(require_credentials)
    app.before_request(refuse_foreign_pages)
    for module in (contract, predictions, propagations, corrections, models, agent, openapi):
        app.register_blueprint(module.blueprint)
    for name in PLUGINS:
        app.register_blueprint(import_string(f"{name}:blueprint"))
    import_string(CONSOLE)(app)
    # Behind the console's own, which says whose session it is.
    app.before_request(refuse_viewers)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _unexpected)
    for away in _AWAY:
        app.register_error_handler(away, _away)
    return app


def _http_error(error: HTTPException) -> tuple[dict[str, str | None], int]:
    return {"error": error.description}, error.code or 500


def _away(error: Exception) -> Response:
    """A server behind this one does not answer: no fault of the request, which may come again."""
    of_database = isinstance(error, OperationalError | InterfaceError)
    who = "The database" if of_database else "Redis"
    # With the traceback: what a database calls operational may be its own fault.
    log.warning("%s does not answer: a request was refused", who, exc_info=error)
    reason = f"{who} does not answer; try again in {COME_BACK_S} seconds."
    # The console's pages ask the database who is there.
    plain = is_console(request.path)
    answer = Response(reason, mimetype="text/plain") if plain else jsonify(error=reason)
    answer.status_code, answer.headers["Retry-After"] = 503, str(COME_BACK_S)
    return answer


def _unexpected(error: Exception) -> tuple[dict[str, str], int]:
    # The text of an unforeseen error may hold anything, so it stays in the log of this machine.
    log.exception("a request failed")
    return {"error": f"unexpected {type(error).__name__}; the web log has the traceback"}, 500
