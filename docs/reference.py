"""The documents' tables that are made from the code; `make docs` fills them in.

A table is between `<!-- made by docs/reference.py: NAME -->` and `<!-- end -->`. Tests compare it
with what the code says, so a table cannot go stale.
"""

import inspect
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from enum import Enum
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
from backend.web.auth import is_console
from backend.web.metrics import Collector

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
    """Every endpoint, with the first sentence of what it says about itself."""
    rows = [(f"`{name}`", text.split("\n\n")[0]) for name, text in every_endpoint()]
    return _table(("endpoint", "what it does"), rows)


def own_endpoints() -> str:
    """A section for each endpoint below `/api/`: all that it says about itself."""
    return "\n\n".join(
        f"### `{name}`\n\n{text}" for name, text in every_endpoint() if " /api/" in name
    )


def every_endpoint() -> list[tuple[str, str]]:
    """`METHOD /path` and the docstring of what answers there, by path."""
    with _services() as services:
        flask = create_app(services)
        return [
            (
                " ".join((*sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}), rule.rule)),
                inspect.getdoc(flask.view_functions[rule.endpoint]) or "",
            )
            for rule in sorted(flask.url_map.iter_rules(), key=lambda rule: rule.rule)
            # The console's pages are for people: docs/console.md has them.
            if not rule.endpoint.endswith("static") and not is_console(rule.rule)
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
