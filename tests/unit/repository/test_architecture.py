"""The rooms and who may enter them: imports go one way, and the web process stays light."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULES = sorted([*ROOT.glob("backend/**/*.py"), *ROOT.glob("medsam3_model/**/*.py")])
MAX_LINES = 600
MAX_FUNCTION_LINES = 80

HEAVY_FOR_WEB = [
    "torch",
    "torchvision",
    "transformers",
    "monai",
    "scipy",
    "pandas",
    "PIL",
    "label_studio_sdk",
    "medsam3_model.predictor",
]
HEAVY_FOR_THE_MODEL_PACKAGE = ["torch", "torchvision", "transformers", "monai"]
NOT_FOR_THE_MODEL = ["backend", "flask", "redis", "rq", "sqlalchemy", "label_studio_sdk", "typer"]
NOT_ABOVE_FUNCTIONS = ["torch", "torchvision", "transformers", "monai", "medsam3_model"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def loaded_by(statement: str, names: list[str]) -> list[str]:
    """Which of `names` a fresh interpreter has loaded after `statement`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\nimport json, sys\nprint(json.dumps([*sys.modules]))"],
        cwd=ROOT,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    return [name for name in names if name in loaded]


@pytest.mark.parametrize(
    "module",
    [
        "backend.web.app",
        "backend.web.server",
        "backend.web.contract",
        "backend.cli.main",
        "backend.model",
    ],
)
def test_web_loads_nothing_heavy(module: str) -> None:
    assert loaded_by(f"import {module}", HEAVY_FOR_WEB) == []


def test_answering_requests_loads_nothing_heavy(tmp_path: Path) -> None:
    # Imports inside functions count too: a prediction is asked for, and its config is read.
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
    for path in ("/setup", "/predict", "/webhook"):
        assert client.post(path, json=body, headers=headers).status_code in (200, 201), path
    for path in ("/health", "/versions", "/metrics", "/api/v1/predictions", "/api/v1/queues"):
        assert client.get(path, headers=headers).status_code == 200, path
    services.close()
"""
    assert loaded_by(statement, HEAVY_FOR_WEB) == []


def test_the_model_package_imports_without_torch() -> None:
    assert loaded_by("import medsam3_model", HEAVY_FOR_THE_MODEL_PACKAGE) == []


def test_the_model_package_gives_its_classes_when_asked() -> None:
    # The counterpart of the test above: the names are there, and bring torch with them.
    assert loaded_by("from medsam3_model import MedSAM3", ["torch"]) == ["torch"]


def test_a_module_fits_in_one_sitting() -> None:
    too_long = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    too_long = {name: lines for name, lines in too_long.items() if lines > MAX_LINES}
    assert not too_long, f"split by subject: {too_long}"


def test_a_function_fits_on_one_screen() -> None:
    too_long = {
        f"{name_of(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    # Alembic's migrations list every column of every table, in one function.
    too_long = {
        name: lines
        for name, lines in too_long.items()
        if lines > MAX_FUNCTION_LINES and "/migrations/" not in name
    }
    assert not too_long, f"too long: {too_long}"


def test_backend_reaches_the_model_only_inside_functions() -> None:
    found = {
        name_of(path): names
        for path in MODULES
        if path.is_relative_to(ROOT / "backend")
        for names in [[n for n in imported(path, inside_functions=False) if is_in(n, "above")]]
        if names
    }
    assert not found, f"import it in the function: {found}"


def test_the_model_knows_no_backend() -> None:
    found = {
        name_of(path): names
        for path in MODULES
        if path.is_relative_to(ROOT / "medsam3_model")
        for names in [[n for n in imported(path, inside_functions=True) if is_in(n, "model")]]
        if names
    }
    assert not found, found


def imported(path: Path, *, inside_functions: bool) -> list[str]:
    """Names of the modules that a file imports, see `imports`."""
    return list(imports(ast.parse(path.read_text()), inside_functions=inside_functions))


def is_in(name: str, where: str) -> bool:
    roots = NOT_ABOVE_FUNCTIONS if where == "above" else NOT_FOR_THE_MODEL
    return name.partition(".")[0] in roots


def imports(tree: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """Names of the modules that a file imports when it is loaded (or ever)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            if inside_functions:
                yield from imports(node, inside_functions=True)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        else:
            yield from imports(node, inside_functions=inside_functions)


def test_the_import_check_sees_what_it_should() -> None:
    source = """
import torch.nn
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from medsam3_model.types import Detections
try:
    import monai
except ImportError:
    pass
class A:
    import transformers
    def f(self):
        import medsam3_model
"""
    tree = ast.parse(source)
    at_top = [name for name in imports(tree, inside_functions=False) if is_in(name, "above")]
    assert at_top == ["torch.nn", "monai", "transformers"]
    everywhere = [name for name in imports(tree, inside_functions=True) if is_in(name, "above")]
    assert everywhere == ["torch.nn", "monai", "transformers", "medsam3_model"]
