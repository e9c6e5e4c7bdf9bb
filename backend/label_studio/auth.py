"""Authentication at Label Studio with both kinds of API tokens, and the errors of its answers."""

import base64
import binascii
import json
import re
import threading
import time
from collections.abc import Generator
from urllib.parse import urlsplit

import httpx

from backend.errors import LabelStudioAuthError, LabelStudioError, LabelStudioUnavailableError
from backend.label_studio.hosts import shown

# Answers of a proxy in front of a Label Studio that is starting or overloaded.
TRY_AGAIN = frozenset({502, 503, 504})
# An access token lives for 300 s; a request that starts just before the end must still pass.
_REFRESH_MARGIN_S = 30.0
_DETAIL_CHARACTERS = 400
# Some errors repeat the whole prediction that was sent, masks included.
_REPEATED_INPUT = re.compile(r"\{.*\}", re.DOTALL)
HOW_TO_GET_ONE = (
    "create a token in Label Studio under Account & Settings (personal access token, or legacy "
    "token where the organization allows it) and set LABEL_STUDIO_API_KEY"
)


class TokenAuth(httpx.Auth):
    """Adds the token to every request.

    A legacy token goes out as it is. A personal access token is a JWT that is exchanged for
    short-lived access tokens: before the last one ends, and when a 401 says that Label Studio no
    longer accepts it.
    """

    def __init__(self, url: str, token: str) -> None:
        self._token = token.strip()
        self._refresh_url = f"{url}/api/token/refresh/"
        self._personal = token_expiry(self._token) is not None
        self._lock = threading.Lock()
        self._access = ""
        self._access_ends = 0.0

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        if not self._personal:
            request.headers["Authorization"] = f"Token {self._token}"
            yield request
            return
        access = self._access
        if time.time() > self._access_ends - _REFRESH_MARGIN_S:
            access = yield from self._refreshed(access)
        request.headers["Authorization"] = f"Bearer {access}"
        response = yield request
        if response.status_code == 401:
            access = yield from self._refreshed(access)
            request.headers["Authorization"] = f"Bearer {access}"
            yield request

    def _refreshed(self, old: str) -> Generator[httpx.Request, httpx.Response, str]:
        # Threads whose token ended at the same moment wait here; the first of them exchanges it,
        # the others find that it is no longer the one that they had.
        with self._lock:
            if self._access != old:
                return self._access
            response = yield httpx.Request("POST", self._refresh_url, json={"refresh": self._token})
            response.read()
            if response.status_code != 200:
                if response.status_code in (400, 401, 403):
                    raise LabelStudioAuthError(self._refusal(response), response.status_code)
                raise LabelStudioUnavailableError(
                    f"Label Studio answered {response.status_code} when asked to accept the "
                    "personal access token: try again later.",
                    response.status_code,
                )
            self._access = response.json()["access"]
            self._access_ends = token_expiry(self._access) or 0.0
            return self._access

    def _refusal(self, response: httpx.Response) -> str:
        ends = token_expiry(self._token) or 0.0
        if ends < time.time():
            day = time.strftime("%Y-%m-%d", time.gmtime(ends))
            return f"The personal access token expired on {day}: {HOW_TO_GET_ONE}."
        return (
            f"Label Studio refused the personal access token "
            f"({error_detail(response) or 'no reason'}): {HOW_TO_GET_ONE}."
        )


def token_expiry(token: str) -> float | None:
    """When a JWT ends, in seconds since 1970; None for anything that is not a JWT.

    The signature is not checked: only Label Studio can do that.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (binascii.Error, ValueError, KeyError, TypeError):
        return None


def error_detail(response: httpx.Response) -> str:
    """The reason that Label Studio gives, shortened; empty for its HTML pages."""
    try:
        body = response.json()
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    reasons = [str(body.get("detail") or "")]
    errors = body.get("validation_errors")
    if isinstance(errors, dict):
        for name, messages in errors.items():
            joined = " ".join(map(str, messages)) if isinstance(messages, list) else str(messages)
            reasons.append(joined if name == "non_field_errors" else f"{name}: {joined}")
    joined = _REPEATED_INPUT.sub("{...}", "; ".join(filter(None, reasons)))
    return joined[:_DETAIL_CHARACTERS]


def unavailable(
    url: str, method: str, path: str, error: httpx.TransportError
) -> LabelStudioUnavailableError:
    """The error for a request without an answer."""
    slow = isinstance(error, httpx.TimeoutException)
    happened = "did not answer in time" if slow else "cannot be reached"
    return LabelStudioUnavailableError(
        f"Label Studio at {shown(url)} {happened} ({method} {urlsplit(path).path}: "
        f"{type(error).__name__}): check that it runs and that LABEL_STUDIO_URL is right."
    )


def failure(url: str, method: str, path: str, response: httpx.Response) -> LabelStudioError:
    """The error for an answer that is not a success; its body has been read."""
    status = response.status_code
    detail = error_detail(response)
    if status == 401:
        return LabelStudioAuthError(
            f"Label Studio at {shown(url)} refused the token ({detail or 'no reason'}): "
            f"{HOW_TO_GET_ONE}.",
            status,
        )
    kind = LabelStudioUnavailableError if status in TRY_AGAIN else LabelStudioError
    reason = f": {detail}" if detail else ""
    return kind(f"Label Studio answered {status} to {method} {urlsplit(path).path}{reason}", status)
