"""Authentication at Label Studio with both kinds of API tokens, and the errors of its answers."""

import base64
import binascii
import json
import re
import threading
import time
from collections.abc import Generator
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx2

from backend.errors import LabelStudioAuthError, LabelStudioError, LabelStudioUnavailableError
from backend.label_studio.hosts import is_this_machine, proxy_for, shown

# Answers of a server, or a proxy in front of it, that is starting or overloaded.
TRY_AGAIN = frozenset({429, 502, 503, 504})
# An access token lives for 300 s; a request that starts just before the end must still pass.
_REFRESH_MARGIN_S = 30.0
_DETAIL_CHARACTERS = 400
# Some errors repeat the whole prediction that was sent, masks included.
_REPEATED_INPUT = re.compile(r"\{.*\}", re.DOTALL)
HOW_TO_GET_ONE = (
    "create a token in Label Studio under Account & Settings (personal access token, or legacy "
    "token where the organization allows it) and set LABEL_STUDIO_API_KEY"
)


class TokenAuth(httpx2.Auth):
    """Adds the token to every request.

    A legacy token goes out as it is, and after a 401 as `X-API-Key`, which is where the keys of
    service accounts are looked for. A personal access token is a JWT that is exchanged for
    short-lived access tokens: before the last one ends, and when a 401 says that Label Studio no
    longer accepts it.

    Args:
        url: Label Studio's address. A name and password in it are for a proxy in front, which
            then gets `Authorization`; the token is left to `X-API-Key`.
        token: see above.
    """

    def __init__(self, url: str, token: str) -> None:
        address = httpx2.URL(url)
        self._token = token.strip()
        self._login = ""
        if address.username or address.password:
            pair = f"{address.username}:{address.password}".encode()
            self._login = f"Basic {base64.b64encode(pair).decode()}"
        self._as_api_key = bool(self._login)
        self._url = url
        self._refresh_url = f"{url}/api/token/refresh/"
        self._personal = token_expiry(self._token) is not None
        self._lock = threading.Lock()
        self._access = ""
        self._access_ends = 0.0

    def sync_auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        if not self._personal:
            self._sign(request, f"Token {self._token}", self._token)
            response = yield request
            if response.status_code == 401 and not self._as_api_key:
                del request.headers["Authorization"]
                request.headers["X-API-Key"] = self._token
                response = yield request
                self._as_api_key = response.status_code != 401
            return
        access = self._access
        if time.time() > self._access_ends - _REFRESH_MARGIN_S:
            access = yield from self._refreshed(access, request)
        self._sign(request, f"Bearer {access}", access)
        response = yield request
        if response.status_code == 401:
            access = yield from self._refreshed(access, request)
            self._sign(request, f"Bearer {access}", access)
            yield request

    def _sign(self, request: httpx2.Request, authorization: str, key: str) -> None:
        if self._as_api_key:
            request.headers["X-API-Key"] = key
        if self._login or not self._as_api_key:
            request.headers["Authorization"] = self._login or authorization

    def _refreshed(
        self, old: str, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, str]:
        # Threads whose token ended at the same moment wait here; the first of them exchanges it,
        # the others find that it is no longer the one that they had.
        with self._lock:
            if self._access != old:
                return self._access
            refresh = httpx2.Request(
                "POST",
                self._refresh_url,
                json={"refresh": self._token},
                headers={"Authorization": self._login} if self._login else None,
                # With the limits in time of the request that needs it.
                extensions=request.extensions,
            )
            response = yield refresh
            response.read()
            if response.status_code != 200:
                if response.status_code in (400, 401, 403):
                    raise LabelStudioAuthError(self._refusal(response), response.status_code)
                if address := moved_to(self._url, response):
                    raise moved(address, response)
                raise LabelStudioUnavailableError(
                    f"Label Studio answered {response.status_code} when asked to accept the "
                    "personal access token: try again later.",
                    response.status_code,
                )
            try:
                self._access = response.json()["access"]
            except (ValueError, KeyError, TypeError):
                raise LabelStudioError(
                    f"{shown(str(response.url))} answered the personal access token as Label "
                    "Studio does not: is LABEL_STUDIO_URL the address of Label Studio itself?"
                ) from None
            self._access_ends = token_expiry(self._access) or 0.0
            return self._access

    def _refusal(self, response: httpx2.Response) -> str:
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


def error_detail(response: httpx2.Response) -> str:
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


def retry_after_s(response: httpx2.Response) -> float | None:
    """Seconds that an answer asks to wait, as a number or a date; None if it does not."""
    asked = response.headers.get("Retry-After", "")
    try:
        if asked.isdecimal():
            return float(asked[:9])
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def moved_to(url: str, response: httpx2.Response) -> str | None:
    """The address at which, as an answer says, all of this server is: https, or below a path.

    Args:
        url: the server's address as it is set.
        response: the answer.

    Returns:
        None where it says no such thing: a signed link, for one, has another query.
    """
    if not response.has_redirect_location:
        return None
    asked, target = response.url, response.url.join(response.headers["Location"])
    prefix = target.path.rstrip("/").removesuffix(asked.path.rstrip("/"))
    same_page = prefix != target.path.rstrip("/") and target.query == asked.query
    if not same_page or (not prefix and _server(target) == _server(asked)):
        return None
    return f"{shown(str(target))}{prefix}{urlsplit(url).path}"


def _server(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def moved(address: str, response: httpx2.Response) -> LabelStudioUnavailableError:
    """The error for an answer that leads to another address, see `moved_to`."""
    return LabelStudioUnavailableError(
        f"{shown(str(response.url))} leads on to {address}: set LABEL_STUDIO_URL to that address.",
        response.status_code,
    )


def unavailable(
    url: str, method: str, path: str, error: httpx2.TransportError
) -> LabelStudioUnavailableError:
    """The error for a request without an answer."""
    slow = isinstance(error, httpx2.TimeoutException)
    happened = "did not answer in time" if slow else "cannot be reached"
    proxy = None if is_this_machine(url) else proxy_for(httpx2.URL(url))
    way, advice = "", "check that it runs and that LABEL_STUDIO_URL is right"
    if proxy:
        way = f" through the proxy {shown(proxy)}"
        advice += ", or add its host to NO_PROXY if it is reached without the proxy"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        advice = "its certificate is not trusted: set SSL_CERT_FILE to your authority's certificate"
    return LabelStudioUnavailableError(
        f"Label Studio at {shown(url)} {happened}{way} ({method} {urlsplit(path).path}: "
        f"{type(error).__name__}): {advice}."
    )


def failure(url: str, method: str, path: str, response: httpx2.Response) -> LabelStudioError:
    """The error for an answer that is not a success; its body has been read."""
    status = response.status_code
    detail = error_detail(response)
    if status == 401:
        return LabelStudioAuthError(
            f"Label Studio at {shown(url)} refused the token ({detail or 'no reason'}): "
            f"{HOW_TO_GET_ONE}.",
            status,
        )
    if address := moved_to(url, response):
        return moved(address, response)
    kind = LabelStudioUnavailableError if status in TRY_AGAIN else LabelStudioError
    reason = f": {detail}" if detail else ""
    return kind(f"Label Studio answered {status} to {method} {urlsplit(path).path}{reason}", status)
