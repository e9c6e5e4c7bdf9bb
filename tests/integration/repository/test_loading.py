"""What an interpreter has loaded: the web process stays light, torch comes when it is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

from backend.database import open_database
from backend.settings import Settings
from tests.support.repository import ROOT

HEAVY_FOR_WEB = {
    "torch",
    "torchvision",
    "transformers",
    "monai",
    "numpy",
    "alembic",
    "scipy",
    "pandas",
    "PIL",
    "label_studio_sdk",
    "medsam3_model.predictor",
}
# By the statement that a fresh interpreter runs, what must not be loaded after it.
LIGHT = {
    "import backend.web.app": HEAVY_FOR_WEB,
    "import backend.web.server": HEAVY_FOR_WEB,
    "import backend.web.contract": HEAVY_FOR_WEB,
    "import backend.cli.main": HEAVY_FOR_WEB,
    "import backend.model": HEAVY_FOR_WEB,
    "import medsam3_model": {"torch", "torchvision", "transformers", "monai"},
    "import medsam3_model.data.template": {"torch", "nilearn", "nibabel"},
    "from medsam3_model.checkpoints.presets import bundled_version; bundled_version('tiny')": {
        "torch",
        "transformers",
    },
}


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after a statement."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport json, sys\nprint(json.dumps([*sys.modules]))"],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_imports_load_nothing_heavy() -> None:
    loaded = {statement: sorted(heavy & loaded_by(statement)) for statement, heavy in LIGHT.items()}
    assert not {statement: heavy for statement, heavy in loaded.items() if heavy}


def test_the_model_package_gives_its_classes_when_asked() -> None:
    # The counterpart of the test above: the names are there, and bring torch with them.
    assert "torch" in loaded_by("from medsam3_model import MedSAM3")


def test_answering_requests_loads_nothing_heavy(tmp_path: Path) -> None:
    # Imports inside functions count too: a prediction is asked for, and its config is read. The
    # database is migrated already, as at every start but the first.
    open_database(Settings(data_dir=tmp_path)).dispose()
    statement = f"""
from pathlib import Path
from backend.web.app import create_app
from backend.processes.redis_server import RedisServer
from backend.services import open_services
from backend.settings import Settings

settings = Settings(data_dir=Path({str(tmp_path)!r}), predict_budget_s=0.1)
with RedisServer(settings.redis_socket):
    services = open_services(settings)
    client = create_app(services).test_client()
    headers = {{"Authorization": "Bearer " + services.credentials.api_token}}
    body = {{"project": "1.1", "schema": "<View/>", "label_config": "<View/>"}}
    body["tasks"] = [{{"id": 1, "data": {{}}}}]
    event = {{"action": "PROJECT_UPDATED", "project": {{"id": 1}}}}
    for path, sent in (("/setup", body), ("/predict", body), ("/webhook", event)):
        assert client.post(path, json=sent, headers=headers).status_code in (200, 201), path
    for path in ("/health", "/versions", "/metrics", "/api/v1/predictions", "/api/v1/queues"):
        assert client.get(path, headers=headers).status_code == 200, path
    services.close()
"""
    assert not loaded_by(statement) & HEAVY_FOR_WEB
