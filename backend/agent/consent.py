"""Consent: what the settings must say before anything of an image leaves for a language model."""

from urllib.parse import urlsplit

from backend.errors import AgentConsentError
from backend.label_studio.hosts import is_this_machine
from backend.settings import Settings


def check_consent(settings: Settings) -> str:
    """The address that may be asked, without a slash at its end.

    Raises:
        AgentConsentError: no address or model is set, images may not be sent, or the host is not
            this machine and is not named.
    """
    if settings.agent_url is None:
        raise AgentConsentError("No agent is set: give MEDSAM3_AGENT_URL the address of a server.")
    if not settings.agent_model:
        raise AgentConsentError("Set MEDSAM3_AGENT_MODEL to the name of a model of that server.")
    if not settings.agent_send_images:
        raise AgentConsentError(
            "Images may not be sent to the agent: set MEDSAM3_AGENT_SEND_IMAGES=true where the "
            "people in them, and those who are responsible, agree."
        )
    host = (urlsplit(settings.agent_url).hostname or "").lower()
    allowed = {name.lower() for name in settings.agent_allowed_hosts}
    if not is_this_machine(settings.agent_url) and host not in allowed:
        raise AgentConsentError(
            f"The agent's host {host[:100]} is not this machine: name it in "
            "MEDSAM3_AGENT_ALLOWED_HOSTS if images may leave for it."
        )
    return settings.agent_url
