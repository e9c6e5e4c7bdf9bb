"""A scripted Chat Completions server over real HTTP: it answers as told and keeps requests."""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.http_server import Handler, HttpServer


@dataclass(frozen=True)
class Reply:
    """One answer: a body of JSON or bytes, its status, and what happens before or instead.

    Attributes:
        body: what is sent, or a function of the request's text that returns it.
        wait: until then nothing is sent, for `wait_s` seconds at most.
        endless: the body is repeated until the reader hangs up.
    """

    body: Any
    status: int = 200
    wait: threading.Event | None = None
    wait_s: float = 60.0
    endless: bool = False


def says(content: str) -> Reply:
    """A message with a text."""
    return Reply(_completion({"role": "assistant", "content": content}))


def calls(name: str, arguments: Any, *more: tuple[str, Any]) -> Reply:
    """A message with native calls; arguments that are a text go out as they are."""
    every = [(name, arguments), *more]
    return Reply(
        _completion(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": f"call_{index}",
                        "type": "function",
                        "function": {"name": tool, "arguments": given},
                    }
                    for index, (tool, given) in enumerate(every)
                ],
            }
        )
    )


def call(name: str, **arguments: Any) -> Reply:
    """A well-formed native call."""
    return calls(name, json.dumps(arguments))


def _completion(message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 900, "completion_tokens": 30},
    }


@dataclass
class ChatServer:
    """Answers with its replies in their order, the last one again and again.

    Attributes:
        requests: the bodies that came, as bytes, and `headers` with them.
        url: for MEDSAM3_AGENT_URL.
    """

    replies: Sequence[Reply]
    requests: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> "ChatServer":
        chat, lock = self, threading.Lock()

        class ChatHandler(Handler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    chat.requests.append(body)
                    chat.headers.append(dict(self.headers.items()))
                    reply = chat.replies[min(len(chat.requests), len(chat.replies)) - 1]
                if reply.wait is not None:
                    reply.wait.wait(reply.wait_s)
                content = reply.body
                if callable(content):
                    content = content(chat.text_of(json.loads(body)["messages"])).body
                if not isinstance(content, bytes):
                    content = json.dumps(content).encode()
                try:
                    if not reply.endless:
                        self.send(reply.status, {"Content-Type": "application/json"}, content)
                        return
                    self.send(reply.status, {"Content-Length": str(10**12)}, content)
                    while True:
                        self.wfile.write(content * 100)
                except OSError:
                    pass  # The client hung up.

        self._server = HttpServer(ChatHandler)
        self.url = f"{self._server.url}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def messages(self, index: int = -1) -> list[dict[str, Any]]:
        """The messages of one request."""
        messages: list[dict[str, Any]] = json.loads(self.requests[index])["messages"]
        return messages

    @staticmethod
    def text_of(messages: Sequence[Mapping[str, Any]]) -> str:
        """What a request's user says, without pictures."""
        parts = next(m["content"] for m in messages if m["role"] == "user")
        return "\n".join(part["text"] for part in parts if part["type"] == "text")

    def pictures(self, index: int = -1) -> list[str]:
        """The data URIs of one request."""
        return [
            part["image_url"]["url"]
            for message in self.messages(index)
            if isinstance(message["content"], list)
            for part in message["content"]
            if part["type"] == "image_url"
        ]


@dataclass
class Decided:
    """A partner that draws a box, chooses what came of it, and stays with that."""

    compared: int = 0
    seen: list[str] = field(default_factory=list)

    def __call__(self, text: str) -> Reply:
        self.seen.append(text)
        if "Two whole answers" in text:
            self.compared += 1
            return call("choose", masks=[2 if self.compared % 2 else 1])
        if "The box found" not in text:
            return call("segment_box", boxes=[[250, 300, 700, 750]])
        number = text.split("The box found mask ")[1].split(".")[0]
        return call("choose", masks=[int(number)])
