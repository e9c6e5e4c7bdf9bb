"""Tool calls in a model's answer: native ones, or JSON in the text; the first call wins.

Small models that are served with tools still write a call into the text at times, with or without
tags, in a code block, after a passage of thinking, or with a brace too few or too many.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from backend.agent.chat import ChatAnswer
from backend.errors import AgentCallError

_THINKING = re.compile(r"^.*</think(?:ing)?>", re.DOTALL)
_TAGGED = re.compile(r"<(tool_call|tool)>(.*?)(?:</\1>|$)", re.DOTALL)
# Braces that some parsers of servers lose at the end.
_MOST_MISSING = 3
_MOST_STARTS = 50


@dataclass(frozen=True)
class ToolCall:
    """One call: the tool's name, its arguments, and how it was written."""

    name: str
    arguments: Mapping[str, Any]
    way: Literal["native", "text"]


def first_call(answer: ChatAnswer) -> ToolCall:
    """The first call of an answer.

    Raises:
        AgentCallError: there is none, or it is not JSON.
    """
    if answer.tool_calls:
        called, given = answer.tool_calls[0]
        if isinstance(given, str):
            given = _object(given) if given.strip() else {}
        if not isinstance(given, Mapping):
            raise AgentCallError("the arguments of the call are no JSON object")
        return ToolCall(called, given, "native")
    text = _THINKING.sub("", answer.content)
    tagged = _TAGGED.search(text)
    for found in _objects(tagged[2] if tagged else text):
        function = found.get("function")
        call = function if isinstance(function, Mapping) else found
        name = call.get("name") or call.get("tool")
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):
            arguments = _object(arguments)
        if isinstance(name, str) and isinstance(arguments, Mapping):
            return ToolCall(name, arguments, "text")
    raise AgentCallError("the answer holds no call that can be read")


def _object(text: str) -> Any:
    """The JSON object at the beginning of a text, closed where braces at its end are missing."""
    for missing in range(_MOST_MISSING + 1):
        try:
            return json.JSONDecoder().raw_decode(text.strip() + "}" * missing)[0]
        except (ValueError, RecursionError):
            continue
    raise AgentCallError("the arguments of the call are no JSON, or are cut off")


def _objects(text: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects in a text, outer ones first."""
    starts = [match.start() for match in re.finditer(r"\{", text)][:_MOST_STARTS]
    for start in starts:
        try:
            found = _object(text[start:])
        except AgentCallError:
            continue
        if isinstance(found, Mapping):
            yield found
