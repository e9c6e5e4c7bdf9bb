"""The documents' tables that are made from the code; `make docs` fills them in.

A table is between `<!-- made by docs/reference.py: NAME -->` and `<!-- end -->`. Tests compare it
with what the code says, so a table cannot go stale.
"""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from backend.cli.main import app
from backend.processes.redis_server import RedisServer
from backend.services import Services, open_services
from backend.settings import Settings, variable_of
from backend.web.app import create_app
from backend.web.metrics import Collector
from backend.web.openapi import document

DOCS = Path(__file__).parent
BLOCK = re.compile(
    r"(?P<begin><!-- made by docs/reference\.py: (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def settings_table() -> str:
    """Every setting: its variable, its default, its meaning."""
    rows = [
        (f"`{variable_of(name)}`", _default(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return _table(("variable", "default", "meaning"), rows)


def commands() -> str:
    """Every command with its arguments and options."""
    return "\n\n".join(_command(path, command) for path, command in every_command())


def every_command() -> Iterator[tuple[str, Any]]:
    """Commands by what is typed: `medsam3 serve`; a group comes before its commands."""
    waiting: list[tuple[str, Any]] = [("medsam3", typer.main.get_command(app))]
    while waiting:
        path, command = waiting.pop(0)
        yield path, command
        below = getattr(command, "commands", {})
        waiting = [(f"{path} {name}", below[name]) for name in below] + waiting


def endpoints_table() -> str:
    """Every endpoint, with what it says about itself."""
    rows = [(f"`{name}`", shown["summary"]) for name, shown in every_endpoint()]
    return _table(("endpoint", "what it does"), rows)


def own_endpoints() -> str:
    """A section for each endpoint below `/api/`: what it takes, answers and refuses."""
    return "\n\n".join(
        _endpoint(name, shown) for name, shown in every_endpoint() if " /api/" in name
    )


def bodies_and_answers() -> str:
    """A section for each object that is sent to an endpoint below `/api/`, or answered by it."""
    schemas = _described()["components"]["schemas"]
    waiting = [shown for name, shown in every_endpoint() if " /api/" in name]
    names = set(_references(waiting))
    while new := {name for known in names for name in _references(schemas[known])} - names:
        names |= new
    return "\n\n".join(_schema(name, schemas[name]) for name in sorted(names))


def every_endpoint() -> list[tuple[str, dict[str, Any]]]:
    """`METHOD /path` and its operation in the API's description, by path."""
    return [
        (f"{method.upper()} {path}", shown)
        for path, operations in _described()["paths"].items()
        for method, shown in operations.items()
    ]


def metrics_table() -> str:
    """Every metric, its kind, its labels and its meaning."""
    with _services() as services:
        rows = [
            (
                f"`{metric.name}{'_total' if metric.type == 'counter' else ''}`",
                metric.type,
                ", ".join(f"`{label}`" for label in getattr(metric, "_labelnames", ())),
                metric.documentation,
            )
            for metric in Collector(services).collect()
        ]
    return _table(("metric", "kind", "labels", "meaning"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "commands": commands,
    "endpoints": endpoints_table,
    "own_endpoints": own_endpoints,
    "bodies_and_answers": bodies_and_answers,
    "metrics": metrics_table,
}


def filled(text: str) -> str:
    """A document with its tables regenerated."""
    return BLOCK.sub(
        lambda match: match["begin"] + TABLES[match["name"]]() + "\n" + match["end"], text
    )


class _services:  # noqa: N801 used as a function
    """Services on a database and a Redis that last as long as the block."""

    def __enter__(self) -> Services:
        self._folder = tempfile.TemporaryDirectory(prefix="d")
        settings = Settings(_env_file=None, data_dir=Path(self._folder.name))
        self._redis = RedisServer(settings.redis_socket)
        self._redis.start()
        self._services = open_services(settings)
        return self._services

    def __exit__(self, *_: object) -> None:
        self._services.close()
        self._redis.stop()
        self._folder.cleanup()


@lru_cache(maxsize=1)
def _described() -> dict[str, Any]:
    """The API's own description; see `backend.web.openapi`."""
    with _services() as services:
        return document(create_app(services))


def _endpoint(name: str, shown: dict[str, Any]) -> str:
    parts = [f"### `{name}`", shown["summary"]]
    if "description" in shown:
        parts.append(shown["description"])
    rows = [
        (f"`{one['name']}`", _type(one["schema"]), one["description"])
        for one in shown.get("parameters", ())
        if one["in"] == "query"
    ]
    if rows:
        parts.append(_table(("query", "kind", "meaning"), rows))
    lines = []
    if "requestBody" in shown:
        lines.append(f"Body: {_media(shown['requestBody']['content'])}.")
    answers = {status: one for status, one in shown["responses"].items() if "content" in one}
    statuses = " or ".join(answers)
    lines.append(f"Answer: {statuses}, {_media(next(iter(answers.values()))['content'])}.")
    # 401, 403, 415 and 503 are those of all endpoints.
    own = [status for status in shown["responses"] if status in ("400", "404", "409", "413")]
    if own:
        lines.append(f"Refused with {', '.join(own)}.")
    return "\n\n".join([*parts, " ".join(lines)])


def _schema(name: str, schema: dict[str, Any]) -> str:
    """An object's fields, or a choice's values."""
    parts = [f"#### `{name}`", schema.get("description", "").split("\n\n")[0]]
    if "properties" in schema:
        required = schema.get("required", ())
        rows = [
            (
                f"`{field}`",
                _type(value) + ("" if field in required else ", optional"),
                value.get("description", ""),
            )
            for field, value in schema["properties"].items()
        ]
        parts.append(_table(("field", "kind", "meaning"), rows))
    else:
        parts.append(f"One of {_type(schema)}.")
    return "\n\n".join(part for part in parts if part)


def _type(schema: dict[str, Any]) -> str:
    """A JSON schema in few words; objects by a link to their fields."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "enum" in schema:
        return " / ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return "time" if schema.get("format") == "date-time" else str(kind)


def _media(content: dict[str, Any]) -> str:
    """What a body or an answer holds."""
    ((media, shown),) = content.items()
    return _type(shown["schema"]) if media == "application/json" else f"`{media}`"


def _references(described: Any) -> Iterator[str]:
    """The schemas that a part of the description refers to."""
    if isinstance(described, dict):
        reference = described.get("$ref", "")
        if reference.startswith("#/components/schemas/"):
            yield reference.rpartition("/")[2]
        described = list(described.values())
    if isinstance(described, list):
        for part in described:
            yield from _references(part)


def _command(path: str, command: Any) -> str:
    parts = [f"## `{path}`", _help(command.help or "")]
    rows = []
    for parameter in command.params:
        if parameter.opts[0] in ("--help", "--install-completion", "--show-completion"):
            continue
        rows.append(
            (
                _names(parameter),
                _shown(parameter),
                " ".join((getattr(parameter, "help", None) or "").split()),
            )
        )
    if rows:
        parts.append(_table(("argument or option", "default", "meaning"), rows))
    return "\n\n".join(part for part in parts if part)


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{(parameter.name or '').upper()}`"
    names = ", ".join(f"`{name}`" for name in parameter.opts + parameter.secondary_opts)
    if getattr(parameter, "is_flag", False):
        return names
    return f"{names} {_kind(parameter.type_descriptor.annotation)}"


def _kind(annotation: Any) -> str:
    """The word behind an option: its choices, or the kind of its value."""
    choices = get_args(annotation) if get_origin(annotation) is Literal else None
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        choices = tuple(choice.value for choice in annotation)
    if choices:
        return " / ".join(f"`{choice}`" for choice in choices)
    kinds = {int: "NUMBER", float: "NUMBER", Path: "PATH"}
    return kinds.get(annotation, "TEXT")


def _shown(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    if default is None or default is False or default == "" or callable(default):
        return ""
    return f"`{getattr(default, 'value', default)}`"


def _help(text: str) -> str:
    return re.sub(r"[\b\f]", "", text).strip()


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is None or default == ():
        return ""
    assert not isinstance(default, SecretStr), "a secret has no default"
    return f"`{default}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )


def main() -> None:
    """Write every document that has tables."""
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        new = filled(text)
        if new != text:
            path.write_text(new)
            sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main()
