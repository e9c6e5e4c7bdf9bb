"""Client of an OpenAI-compatible Chat Completions server, with one deadline for each request.

Requests are not streamed and never repeated, answers are read up to a limit, redirects and
addresses in answers are not followed. Two refusals are worth a second, different request: a server
that takes no tools is asked in plain text from then on, and one that wants
`max_completion_tokens` gets that.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from backend.agent.consent import check_consent
from backend.errors import AgentServerError
from backend.label_studio.bodies import pieces
from backend.label_studio.deadline import Deadline
from backend.label_studio.hosts import is_this_machine, open_client, shown
from backend.settings import Settings

# A call is a few hundred tokens; what goes on for longer repeats itself.
MOST_TOKENS = 1024
_MOST_BYTES = 2**20
_DETAIL_CHARACTERS = 200

Message = dict[str, Any]


@dataclass(frozen=True)
class ChatAnswer:
    """What a server answered.

    Attributes:
        content: the message's text.
        tool_calls: name and arguments of each call, the arguments as they came.
        prompt_tokens, completion_tokens: as the server counts them; 0 where it does not.
    """

    content: str
    tool_calls: tuple[tuple[str, Any], ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatClient:
    """Asks the server of `MEDSAM3_AGENT_URL`. For one task at a time.

    Args:
        settings: the address, the model's name and what may be sent.

    Attributes:
        native: whether tools are sent as such; False once the server refused them.
        requests: how many requests were sent.

    Raises:
        AgentConsentError: the settings do not allow that anything is sent.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = check_consent(settings)
        self._model = settings.agent_model
        self._limit = "max_tokens"
        self.native = True
        self.requests = 0
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if settings.agent_api_key is not None:
            headers["Authorization"] = f"Bearer {settings.agent_api_key.get_secret_value()}"
        self._client = open_client(
            settings.agent_request_timeout_s,
            headers=headers,
            follow_redirects=False,
            trust_env=not is_this_machine(self._url),
            # Its connections are not kept: a deadline can cut those only that were made for it.
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], timeout_s: float
    ) -> ChatAnswer:
        """Send messages and return the answer, within `timeout_s` for everything.

        Args:
            messages: of the Chat Completions format.
            tools: function tools, which are sent where the server takes them.
            timeout_s: for connecting, waiting and reading, and for a second request where the
                first one was refused for its form.

        Raises:
            AgentServerError: no answer in time, an error, or an answer of another format.
        """
        ends = time.monotonic() + timeout_s
        while True:
            body: dict[str, Any] = {
                "model": self._model,
                "messages": list(messages),
                "temperature": 0,
                "stream": False,
                self._limit: MOST_TOKENS,
            }
            if self.native:
                body["tools"] = list(tools)
                body["tool_choice"] = "auto"
            status, content = self._post(body, max(0.05, ends - time.monotonic()))
            if status == 200:
                return _read(content, self._shown)
            if status not in (400, 404, 422, 501) or not self._adapts(content):
                raise AgentServerError(
                    f"{self._shown} answered {status}{_detail(content)}: check MEDSAM3_AGENT_URL, "
                    "MEDSAM3_AGENT_MODEL and MEDSAM3_AGENT_API_KEY.",
                    status,
                )

    @property
    def _shown(self) -> str:
        return f"The agent's server at {shown(self._url)}"

    def _adapts(self, content: bytes) -> bool:
        """Change the form of requests as a refusal asks for; False where it says nothing new."""
        text = content.decode(errors="replace").lower()
        if self._limit == "max_tokens" and "max_completion_tokens" in text:
            self._limit = "max_completion_tokens"
            return True
        if self.native and "tool" in text:
            self.native = False
            return True
        return False

    def _post(self, body: Mapping[str, Any], timeout_s: float) -> tuple[int, bytes]:
        self.requests += 1
        with Deadline(timeout_s) as deadline:
            try:
                with self._client.stream(
                    "POST",
                    f"{self._url}/chat/completions",
                    json=body,
                    timeout=httpx2.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
                    extensions=dict(deadline.extensions),
                ) as response:
                    content = bytearray()
                    for piece in pieces(response):
                        content += piece
                        if len(content) > _MOST_BYTES:
                            raise AgentServerError(
                                f"{self._shown} sent an answer of more than {_MOST_BYTES} bytes."
                            )
                        if deadline.is_over:
                            break
                    if not deadline.is_over:
                        return response.status_code, bytes(content)
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                if not deadline.is_over and not isinstance(error, httpx2.TimeoutException):
                    raise AgentServerError(
                        f"{self._shown} cannot be reached ({type(error).__name__}): check that it "
                        "runs and that MEDSAM3_AGENT_URL is right."
                    ) from error
        raise AgentServerError(f"{self._shown} did not answer within {timeout_s:.0f} s.")


def _read(content: bytes, server: str) -> ChatAnswer:
    """An answer of the documented format.

    Raises:
        AgentServerError: it is not one.
    """
    try:
        answer = json.loads(content)
        message = answer["choices"][0]["message"]
        calls = [
            (str(call["function"]["name"]), call["function"].get("arguments"))
            for call in message.get("tool_calls") or ()
        ]
        text = message.get("content") or ""
        if isinstance(text, list):  # parts, as some servers answer
            text = "".join(str(part.get("text", "")) for part in text)
        usage = answer.get("usage") or {}
        return ChatAnswer(
            str(text),
            tuple(calls),
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise AgentServerError(
            f"{server} answered without a message ({type(error).__name__}): is MEDSAM3_AGENT_URL "
            "the address of a Chat Completions API, such as http://localhost:8000/v1?"
        ) from error


def _count(value: object) -> int:
    return min(max(value, 0), 10**9) if isinstance(value, int) else 0


def _detail(content: bytes) -> str:
    """What an error says about itself, shortened; nothing of a page in HTML."""
    try:
        error = json.loads(content)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    # Servers may repeat what was sent: pixels are one long word.
    words = [word for word in str(text).split() if len(word) < 60]
    return f" ({' '.join(words)[:_DETAIL_CHARACTERS]})"
