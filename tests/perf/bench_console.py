"""The console's pages at 100,000 predictions and 20,000 corrections: the server's time for each."""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from backend.corrections.agreement import compute_agreement
from backend.processes.redis_server import RedisServer
from backend.services import open_services
from backend.settings import Settings
from tests.support.console import CONSOLE, admin
from tests.support.correction_rows import add_corrections, add_predictions
from tests.support.model_rows import add_versions
from tests.support.training_rows import add_runs

PREDICTIONS, CORRECTIONS = 100_000, 20_000
PAGES = (
    "",
    "/corrections",
    "/corrections/7",
    "/agreement",
    "/models",
    "/models/tiny-p7-new",
    "/training/7",
)
REPEATS = 9


def measure() -> dict[str, float]:
    """The median time of the slowest page, in milliseconds, and the agreement's of a project."""
    with tempfile.TemporaryDirectory(prefix="d") as folder:
        settings = Settings(data_dir=Path(folder), label_studio_url="http://labels.example.org")
        with RedisServer(settings.redis_socket):
            services = open_services(settings)
            add_versions(services)
            add_predictions(services, PREDICTIONS)
            add_corrections(services, CORRECTIONS)
            add_runs(services)
            began = time.perf_counter()
            compute_agreement(services, 7)
            agreement_s = time.perf_counter() - began
            console = admin(services)
            medians = {}
            for page in PAGES:
                spent = []
                for _ in range(REPEATS):
                    began = time.perf_counter()
                    answer = console.get(f"{CONSOLE}{page}")
                    spent.append(1000 * (time.perf_counter() - began))
                    assert answer.status_code == 200, page
                medians[page or "/"] = round(statistics.median(spent), 1)
            services.close()
    print(medians, file=sys.stderr)
    return {"console_page_ms": max(medians.values()), "agreement_s": round(agreement_s, 2)}
