"""Reading docker-compose.yml as Compose does, and what the Dockerfile puts into its images."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

from tests.support.repository import ROOT

COMPOSE_FILE = ROOT / "docker-compose.yml"

# What docs/deployment.md has an admin write into `.env`.
SECRETS = {
    "COMPOSE_PROFILES": "gpu",
    "POSTGRES_PASSWORD": "11" * 24,
    "MEDSAM3_DB_PASSWORD": "22" * 24,
    "LABEL_STUDIO_USERNAME": "admin@example.org",
    "LABEL_STUDIO_PASSWORD": "33" * 12,
    "LABEL_STUDIO_API_KEY": "44" * 20,
}

# The Dockerfile's stages: what stands between one FROM and the next, by name.
STAGES = {
    match["name"]: match["body"]
    for match in re.finditer(
        r"^FROM \S+ AS (?P<name>\S+)\n(?P<body>.*?)(?=^FROM |\Z)",
        (ROOT / "Dockerfile").read_text(),
        re.MULTILINE | re.DOTALL,
    )
}

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?:(?P<sign>:[-?])(?P<word>[^}]*))?\})")


class MissingVariableError(Exception):
    """A variable that the file requires is not set; the message is the file's own."""


def compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file with `variables` filled in.

    Compose fills in values only, after reading the YAML; so does this.

    Raises:
        MissingVariableError: a `${NAME:?message}` without a value.
    """
    parsed: dict[str, Any] = _fill(yaml.safe_load(COMPOSE_FILE.read_text()), variables)
    return parsed


@lru_cache(maxsize=1)
def services() -> dict[str, dict[str, Any]]:
    """The services, with the example's secrets."""
    found: dict[str, dict[str, Any]] = compose(SECRETS)["services"]
    return found


def _fill(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, variables) for item in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _value(match, variables), value)
    return value


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    found = variables.get(match["name"], "")
    if not found and match["sign"] == ":?":
        raise MissingVariableError(f"{match['name']}: {match['word']}")
    return found or match["word"] or ""


def image_requirements(image: str) -> list[Requirement]:
    """What the Dockerfile's own script has pip install into the image `web` or `worker`."""
    script = re.search(r"<<'PYTHON'\n(.*?)^PYTHON$", STAGES["build"], re.MULTILINE | re.DOTALL)
    assert script is not None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
        subprocess.run([sys.executable, "-c", script[1]], cwd=folder, check=True)
        return [
            Requirement(line) for line in (Path(folder) / f"{image}.txt").read_text().splitlines()
        ]
