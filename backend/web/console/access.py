"""Access to the console: who may see it, for how long, and what a browser may do with its pages.

A session is a signed cookie that browsers send to `/console` only. Its key comes from the secrets
of this backend: changing one of them ends every session.
"""

import hashlib
import hmac
from datetime import timedelta
from typing import Any

from flask import (
    Blueprint,
    Flask,
    Response,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.sessions import SecureCookieSessionInterface
from flask_bootstrap import Bootstrap5
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from flask_wtf import CSRFProtect, FlaskForm
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException
from werkzeug.utils import import_string
from werkzeug.wrappers import Response as AnyResponse
from wtforms import PasswordField, StringField
from wtforms.validators import InputRequired, Length

from backend.errors import BackendError
from backend.people import audit, tokens
from backend.people.roles import Person, Role
from backend.services import Services
from backend.web.auth import (
    CONSOLE_PATH,
    READING,
    is_console,
    note_refusal,
    person_of_login,
    welcome,
)
from backend.web.console import shown
from backend.web.requests import services

# Modules of the pages, and in the order of the navigation what they are called.
PAGES = tuple(
    f"backend.web.console.{name}"
    for name in (
        "work",
        "preannotation",
        "corrections",
        "agreement",
        "models",
        "training",
        "agent",
        "audit",
    )
)
NAVIGATION = (
    ("console.work", "Work"),
    ("console.corrections", "Corrections"),
    ("console.agreement", "Agreement"),
    ("console.models", "Models"),
    ("console.training", "Training"),
    ("console.agent", "Agent"),
    ("console.audit", "Audit"),
)
# Without a session: the way in, and what the page of it is drawn with.
OPEN_ENDPOINTS = frozenset({"console.login", "console.static"})
SESSION_HOURS = 12
# Failed ones, from one address.
LOGIN_ATTEMPTS = "10 per minute"
HEADERS = {
    # `data:` are the arrows and ticks of Bootstrap's own style sheet.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

blueprint = Blueprint(
    "console",
    __name__,
    url_prefix=CONSOLE_PATH,
    static_folder="static",
    template_folder="templates",
)
protection = CSRFProtect()


# A name holds no colon, so no user of the settings is taken for a token.
_BY_TOKEN = "token:"  # noqa: S105 no secret


class LoginForm(FlaskForm):  # type: ignore[misc]
    """What the login page asks for."""

    user = StringField("User name", [InputRequired(), Length(max=200)])
    password = PasswordField("Password", [InputRequired(), Length(max=1000)])


class Visitor(UserMixin):  # type: ignore[misc]
    """Who is logged in: a token's person, or whoever knows the password of the settings."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.id = f"{_BY_TOKEN}{person.token_id}" if person.token_id else person.name


class ConsoleSession(SecureCookieSessionInterface):
    """Cookies that only TLS carries, where the caller uses TLS."""

    def get_cookie_secure(self, app: Flask) -> bool:
        """Whether this request came by TLS, here or at the proxy before this process."""
        return request.is_secure


def add_console(app: Flask) -> None:
    """Give an application the console, its sessions and its protection."""
    opened: Services = app.extensions["medsam3"]
    app.config |= {
        "SECRET_KEY": _session_key(opened),
        "SESSION_COOKIE_NAME": "medsam3_console",
        "SESSION_COOKIE_PATH": CONSOLE_PATH,
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Strict",
        "PERMANENT_SESSION_LIFETIME": timedelta(hours=SESSION_HOURS),
        # A page that refreshes itself would keep a forgotten browser logged in for ever.
        "SESSION_REFRESH_EACH_REQUEST": False,
        # Only the console has forms: see `_check_session`.
        "WTF_CSRF_CHECK_DEFAULT": False,
        "WTF_CSRF_TIME_LIMIT": None,
        "BOOTSTRAP_SERVE_LOCAL": True,
    }
    app.session_interface = ConsoleSession()
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    Bootstrap5(app)
    protection.init_app(app)
    logins = LoginManager(app)
    logins.session_protection = "strong"
    logins.user_loader(_visitor)
    limiter = Limiter(
        get_remote_address,
        app=app,
        storage_uri="redis://",
        storage_options={"connection_pool": opened.redis.connection_pool},  # type: ignore[dict-item]
        in_memory_fallback_enabled=True,
    )
    app.before_request(_check_session)
    app.after_request(_add_headers)
    for name in PAGES:
        import_string(name)
    shown.add_filters(app)
    app.jinja_env.globals["console_pages"] = NAVIGATION
    app.register_blueprint(blueprint)
    limited = limiter.limit(LOGIN_ATTEMPTS, methods=["POST"], deduct_when=_is_refused)
    views: dict[str, Any] = app.view_functions
    views["console.login"] = limited(views["console.login"])


@blueprint.route("/login", methods=["GET", "POST"])
def login() -> AnyResponse | tuple[str, int] | str:
    """The way in: a token with its name, or what Label Studio uses for this backend."""
    if current_user.is_authenticated:
        return redirect(url_for("console.work"))
    form = LoginForm()
    if not form.validate_on_submit():
        return render_template("console/login.html", form=form)
    person = person_of_login(form.user.data, form.password.data, services())
    if person is None:
        note_refusal("a wrong user name or password")
        return render_template("console/login.html", form=form, refused=True), 401
    # Nothing of the session before it stays, its token least of all.
    session.clear()
    session.permanent = True
    login_user(Visitor(person))
    welcome(person, audit.Via.CONSOLE)
    with services().database.session() as database:
        audit.record(database, audit.AuditedAction.LOG_IN, detail=person.role)
    return redirect(_next_page())


@blueprint.post("/logout")
def logout() -> AnyResponse:
    """The way out."""
    logout_user()
    session.clear()
    return redirect(url_for("console.login"))


@blueprint.errorhandler(HTTPException)
def _http_error(error: HTTPException) -> tuple[str, int]:
    code = error.code or 500
    return render_template("console/error.html", code=code, reason=error.description), code


@blueprint.errorhandler(BackendError)
def _refused(error: BackendError) -> tuple[str, int]:
    return render_template("console/error.html", code=409, reason=str(error)), 409


def _check_session() -> AnyResponse | None:
    """Flask's `before_request`: nothing of the console without a session, no form without a token.

    Unknown paths below `/console` are treated alike, so nobody can find out which ones exist.
    """
    if not is_console(request.path):
        return None
    if request.endpoint not in OPEN_ENDPOINTS and not current_user.is_authenticated:
        page = request.path if request.method == "GET" else None
        return redirect(url_for("console.login", next=page))
    if current_user.is_authenticated:
        welcome(current_user.person, audit.Via.CONSOLE)
    if request.method not in READING:
        try:
            protection.protect()
        except CSRFError:
            note_refusal("a form without the session's token")
            raise
    return None


def _visitor(id_: str) -> Visitor | None:
    """Flask-Login's loader: nobody, once the token with which a session began is revoked."""
    opened = services()
    if not id_.startswith(_BY_TOKEN):
        return Visitor(Person(id_, Role.ADMIN)) if id_ == opened.credentials.user else None
    with opened.database.reading() as database:
        person = tokens.person_by_id(database, int(id_.removeprefix(_BY_TOKEN)))
    return Visitor(person) if person else None


def _add_headers(answer: Response) -> Response:
    """Flask's `after_request`: the console's pages run nothing but what this server sends."""
    if is_console(request.path):
        for name, value in HEADERS.items():
            answer.headers[name] = value
        if request.endpoint != "console.static":
            answer.headers["Cache-Control"] = "no-store"
    return answer


def _next_page() -> str:
    """The page that was asked for before the login, if it is one of the console."""
    asked = request.args.get("next", "")
    return asked if is_console(asked) and "\\" not in asked else url_for("console.work")


def _is_refused(answer: Response) -> bool:
    return answer.status_code == 401


def _session_key(opened: Services) -> bytes:
    secrets = opened.credentials
    text = "\0".join((secrets.user, secrets.password, secrets.api_token, secrets.webhook_secret))
    return hmac.digest(text.encode(), b"sessions of the console", hashlib.sha256)
