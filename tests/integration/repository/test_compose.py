"""docker-compose.yml by the specification's own checker, and what the images have installed."""

import subprocess
import sys
from pathlib import Path

from tests.support.compose import COMPOSE_FILE, image_requirements


def test_follows_the_compose_specification() -> None:
    command = [Path(sys.executable).parent / "check-jsonschema"]
    command += ["--builtin-schema", "vendor.compose-spec", COMPOSE_FILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_web_image_has_no_torch() -> None:
    web, worker = (
        {requirement.name for requirement in image_requirements(image)}
        for image in ("web", "worker")
    )
    assert worker - web == {"torch", "torchvision", "transformers"}
    assert {"flask", "gunicorn", "rq", "psycopg", "s3fs"} < web
