"""Label Studio and our token for it."""

import time

import httpx2

from backend.doctor.check import Check, fail, ok, warn
from backend.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioUnavailableError,
    SettingsError,
)
from backend.label_studio.auth import HOW_TO_GET_ONE, moved_to, token_expiry
from backend.label_studio.client import LabelStudio
from backend.label_studio.hosts import is_this_machine, open_client, proxy_for, shown
from backend.settings import Settings

_ENDS_SOON_DAYS = 14


def check_label_studio(settings: Settings) -> Check:
    """Label Studio answers; no token is needed for that."""
    url = settings.label_studio_url
    try:
        with open_client(10.0, trust_env=not is_this_machine(url)) as client:
            answer = client.get(f"{url}/api/version")
        release = answer.json().get("release", "")
    except SettingsError as error:
        return fail("label studio", str(error), "correct that variable, or unset it")
    except httpx2.TransportError as error:
        proxy = None if is_this_machine(url) else proxy_for(httpx2.URL(url))
        way = f" through the proxy {shown(proxy)}" if proxy else ""
        around = ", or add its host to NO_PROXY if it is reached without the proxy" if proxy else ""
        return fail(
            "label studio",
            f"nothing answers at {shown(url)}{way} ({type(error).__name__})",
            "start Label Studio, or set LABEL_STUDIO_URL to its address as seen from this machine"
            f"{around}",
        )
    except (ValueError, AttributeError):
        release = ""
    if not release and (address := moved_to(url, answer)):
        return fail(
            "label studio",
            f"{shown(url)} leads on to {address}",
            f"set LABEL_STUDIO_URL={address}",
        )
    if not release:
        return fail(
            "label studio",
            f"{shown(url)} answers, but not as Label Studio does",
            "set LABEL_STUDIO_URL to the address of Label Studio itself",
        )
    return ok("label studio", f"{release} at {shown(url)}")


def check_token(settings: Settings) -> Check:
    """The token is accepted, and for how much longer."""
    if settings.label_studio_api_key is None:
        return fail("token", "LABEL_STUDIO_API_KEY is not set", HOW_TO_GET_ONE)
    token = settings.label_studio_api_key.get_secret_value()
    ends = token_expiry(token)
    try:
        with LabelStudio.from_settings(settings) as client:
            user = client.whoami()
    except LabelStudioAuthError as error:
        return fail("token", str(error), HOW_TO_GET_ONE)
    except LabelStudioUnavailableError as error:
        return fail("token", str(error), "run this again when Label Studio answers")
    except LabelStudioError as error:
        return fail("token", str(error), "look at Label Studio's own log")
    if ends is None:
        return ok("token", f"legacy token of {user.email}")
    days = int((ends - time.time()) // 86400)
    if days < _ENDS_SOON_DAYS:
        return warn(
            "token",
            f"personal access token of {user.email}, which ends in {days} days",
            HOW_TO_GET_ONE,
        )
    return ok("token", f"personal access token of {user.email}")
