"""Label Studio and our token for it."""

import time

import httpx

from backend.doctor.check import Check, fail, ok, warn
from backend.errors import LabelStudioAuthError, LabelStudioError, LabelStudioUnavailableError
from backend.label_studio.auth import HOW_TO_GET_ONE, token_expiry
from backend.label_studio.client import LabelStudio
from backend.label_studio.hosts import shown
from backend.settings import Settings

_ENDS_SOON_DAYS = 14


def check_label_studio(settings: Settings) -> Check:
    """Label Studio answers; no token is needed for that."""
    url = settings.label_studio_url
    try:
        answer = httpx.get(f"{url}/api/version", timeout=10.0)
        release = answer.json().get("release", "")
    except httpx.TransportError as error:
        return fail(
            "label studio",
            f"nothing answers at {shown(url)} ({type(error).__name__})",
            "start Label Studio, or set LABEL_STUDIO_URL to its address as seen from this machine",
        )
    except (ValueError, AttributeError):
        release = ""
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
