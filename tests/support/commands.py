"""`medsam3` called as from a shell, in the test's process."""

import json
from typing import Any

from typer.testing import CliRunner, Result

from backend.cli.main import app


def run(*arguments: object) -> Result:
    """A command and its arguments; what came of it."""
    return CliRunner().invoke(app, [str(one) for one in arguments])


def json_of(*arguments: object) -> Any:
    """What a command prints with `--json`; it must succeed."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)
