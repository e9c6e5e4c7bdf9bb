"""Credentials of callers: basic auth (Label Studio), a bearer token (scripts), a webhook secret.

A browser that once asked its user for the basic auth adds it to requests of any page, so pages of
other sites are refused. The console below `/console` has sessions instead: see
`backend.web.console.access`.
"""

import hmac
from urllib.parse import urlsplit

from flask import Request, Response, jsonify, request

from backend.services import WEBHOOK_SECRET_HEADER, Credentials
from backend.web.requests import services

OPEN_PATHS = frozenset({"/health"})
WEBHOOK_PATH = "/webhook"
CONSOLE_PATH = "/console"
# Bootstrap's own style sheets, which every installation of it has.
STYLE_PATH = "/bootstrap/static/"


def is_console(path: str) -> bool:
    """Whether a path belongs to the console, which asks for a session."""
    return path == CONSOLE_PATH or path.startswith(f"{CONSOLE_PATH}/")


def require_credentials() -> Response | None:
    """Flask's `before_request`: refuse callers who show no valid secret."""
    if is_console(request.path) or request.path.startswith(STYLE_PATH):
        return None
    if request.path in OPEN_PATHS or is_allowed(request, services().credentials):
        return None
    answer = jsonify(error="credentials are missing or wrong; `medsam3 connect` sets them")
    answer.status_code = 401
    answer.headers["WWW-Authenticate"] = 'Basic realm="medsam3"'
    return answer


def refuse_foreign_pages() -> Response | None:
    """Flask's `before_request`: refuse what a page of another site may send, preflight or not."""
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return None
    origin = request.headers.get("Origin")
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site not in ("none", "same-origin") or (origin and _host(origin) != request.host.lower()):
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


def is_allowed(incoming: Request, credentials: Credentials) -> bool:
    """Whether a request shows the webhook's secret (on that path), basic auth or the token."""
    if incoming.path == WEBHOOK_PATH and _same(
        incoming.headers.get(WEBHOOK_SECRET_HEADER), credentials.webhook_secret
    ):
        return True
    shown = incoming.authorization
    if shown is None:
        return False
    if shown.type == "bearer":
        return _same(shown.token, credentials.api_token)
    if shown.type == "basic":
        return is_login(shown.username, shown.password, credentials)
    return False


def is_login(user: str | None, password: str | None, credentials: Credentials) -> bool:
    """Whether a user name and a password are those of this backend."""
    # Both comparisons always run: the time taken says nothing about which one failed.
    knows_user = _same(user, credentials.user)
    knows_password = _same(password, credentials.password)
    return knows_user and knows_password


def _host(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _same(shown: str | None, expected: str) -> bool:
    return hmac.compare_digest((shown or "").encode(), expected.encode())
