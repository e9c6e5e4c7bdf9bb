"""Credentials of callers: basic auth (Label Studio), a bearer token (scripts), a webhook secret.

A browser that once asked its user for the basic auth adds it to requests of any page, so pages of
other sites are refused. The console below `/console` has sessions instead: see
`backend.web.console.access`.
"""

import hmac
from urllib.parse import urlsplit

from flask import Request, Response, abort, current_app, g, jsonify, request

from backend.people import tokens
from backend.people.audit import STRANGER, Actor, Refusals, Via, act_as
from backend.people.roles import Person, Role
from backend.services import WEBHOOK_SECRET_HEADER, Services
from backend.web.requests import services

OPEN_PATHS = frozenset({"/health"})
WEBHOOK_PATH = "/webhook"
CONSOLE_PATH = "/console"
# Bootstrap's own style sheets, which every installation of it has.
STYLE_PATH = "/bootstrap/static/"


# Methods that change nothing.
READING = frozenset({"GET", "HEAD", "OPTIONS"})
METHODS = READING | {"POST", "PUT", "PATCH", "DELETE"}
# What a viewer sends to get in and out.
FOR_EVERYBODY = frozenset({"console.login", "console.logout"})


def is_console(path: str) -> bool:
    """Whether a path belongs to the console, which asks for a session."""
    return path == CONSOLE_PATH or path.startswith(f"{CONSOLE_PATH}/")


def require_credentials() -> Response | None:
    """Flask's `before_request`: refuse callers who show no valid secret."""
    # A thread answers many callers: nobody acts in the name of the one before.
    act_as(Actor(STRANGER, Via.API))
    if is_console(request.path) or request.path.startswith(STYLE_PATH):
        return None
    if request.path in OPEN_PATHS:
        return None
    if (person := person_of(request, services())) is not None:
        welcome(person, Via.API)
        return None
    note_refusal("no credentials, or wrong ones")
    answer = jsonify(error="credentials are missing or wrong; `medsam3 connect` sets them")
    answer.status_code = 401
    answer.headers["WWW-Authenticate"] = 'Basic realm="medsam3"'
    return answer


def refuse_foreign_pages() -> Response | None:
    """Flask's `before_request`: refuse what a page of another site may send, preflight or not."""
    if request.method in READING:
        return None
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site not in ("none", "same-origin") or (origin and _host(origin) != request.host.lower()):
        note_refusal("from a page of another site")
        answer = jsonify(error="requests of pages of other sites are refused")
        answer.status_code = 403
        return answer
    if is_console(request.path):
        # Forms, each with a token of the session.
        return None
    empty = not request.content_length and "Transfer-Encoding" not in request.headers
    if not request.is_json and (request.mimetype or not empty):
        answer = jsonify(error="the body must be JSON, sent with `Content-Type: application/json`")
        answer.status_code = 415
        return answer
    return None


def refuse_viewers() -> None:
    """Flask's `before_request`, the last one: whoever may only read sends nothing else.

    This is the only place that knows it, so an endpoint that is new is no exception.
    """
    if request.method in READING or request.endpoint in FOR_EVERYBODY:
        return
    person: Person | None = g.get("person")
    if person is not None and person.role != Role.ADMIN:
        note_refusal("a viewer's token")
        abort(403, "a viewer may read and change nothing: ask for an admin's token")


def welcome(person: Person, via: Via) -> None:
    """Let what follows in this request be done by a person."""
    g.person = person
    act_as(Actor(person.name, via))


def note_refusal(reason: str) -> None:
    """Write an attempt that is refused into the audit trail, without anything that was sent."""
    refusals: Refusals = current_app.extensions["medsam3_refusals"]
    person: Person | None = g.get("person")
    rule = request.url_rule.rule if request.url_rule else "an unknown address"
    method = request.method if request.method in METHODS else "another method"
    refusals.record(
        Via.CONSOLE if is_console(request.path) else Via.API,
        person.name if person else STRANGER,
        subject=f"{method} {rule}",
        reason=reason,
        address=request.remote_addr or "",
    )


def person_of(incoming: Request, opened: Services) -> Person | None:
    """Who shows the webhook's secret (on that path), basic auth or a token; None for strangers."""
    credentials = opened.credentials
    if incoming.path == WEBHOOK_PATH and _same(
        incoming.headers.get(WEBHOOK_SECRET_HEADER), credentials.webhook_secret
    ):
        return Person(tokens.WEBHOOK, Role.ADMIN)
    shown = incoming.authorization
    if shown is None:
        return None
    if shown.type == "bearer":
        if _same(shown.token, credentials.api_token):
            return Person(tokens.API_TOKEN, Role.ADMIN)
        with opened.database.reading() as session:
            return tokens.person_of(session, shown.token or "")
    if shown.type == "basic":
        return person_of_login(shown.username, shown.password, opened)
    return None


def person_of_login(user: str | None, password: str | None, opened: Services) -> Person | None:
    """Whose user name and password these are: those of the settings, or a token with its name."""
    # Both comparisons always run: the time taken says nothing about which one failed.
    knows_user = _same(user, opened.credentials.user)
    knows_password = _same(password, opened.credentials.password)
    if knows_user and knows_password:
        return Person(opened.credentials.user, Role.ADMIN)
    with opened.database.reading() as session:
        person = tokens.person_of(session, password or "")
    return person if person is not None and person.name == user else None


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _same(shown: str | None, expected: str) -> bool:
    return hmac.compare_digest((shown or "").encode(), expected.encode())
