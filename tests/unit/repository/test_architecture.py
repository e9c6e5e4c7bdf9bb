"""Rooms of the product: imports go one way and in no circle, names mean one thing, files fit.

What an interpreter has loaded is asked in tests/integration/repository/test_loading.py.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator

from tests.support.import_graph import circles, import_graph, imported_names, modules
from tests.support.repository import ROOT, name_of

MAX_LINES = 600
MAX_FUNCTION_LINES = 80
MAX_TOP_LEVEL_FILES = {"backend": 8, "medsam3_model": 16}
# These are slow to import, or bring what is: the web process and the commands do without.
ONLY_INSIDE_FUNCTIONS = {"torch", "torchvision", "transformers", "monai", "medsam3_model"}

# Every room imports itself and the rooms above it in this table. A line is one room: a folder, a
# file, or several of them; the name of a package stands for its files that have no line.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("medsam3_model.errors",),
    ("medsam3_model.images",),
    # Serving: the predictor with all that it asks, and where its weights come from.
    (
        "medsam3_model",
        "medsam3_model.checkpoints",
        "medsam3_model.embeddings",
        "medsam3_model.video",
    ),
    ("medsam3_model.proposals",),
    ("medsam3_model.data",),
    ("medsam3_model.evaluation",),
    # Pretraining's images are training's replay; its loop is built of training's parts.
    (
        "medsam3_model.pretraining.data",
        "medsam3_model.pretraining.derived",
        "medsam3_model.pretraining.phantoms",
        "medsam3_model.pretraining.phrases",
    ),
    ("medsam3_model.training",),
    ("medsam3_model.pretraining",),
    ("backend", "backend.errors"),
    ("backend.settings",),
    ("backend.database",),
    ("backend.tables",),
    ("backend.services",),
    ("backend.people",),
    ("backend.processes",),
    ("backend.labeling",),
    ("backend.label_studio",),
    ("backend.volumes",),
    ("backend.models",),
    ("backend.corrections",),
    ("backend.agent",),
    ("backend.predictions",),
    ("backend.model",),
    ("backend.web",),
    ("backend.training",),
    # It shows what all of them do; the web application adds it by name.
    ("backend.web.console",),
    ("backend.migrations",),
    ("backend.simulation",),
    ("backend.doctor",),
    ("backend.demo",),
    ("backend.cli",),
    # The same module as labeling.brush_rle, under a name for code outside of this repository.
    ("backend.brush_rle",),
)
LEVELS = {name: level for level, names in enumerate(ROOMS) for name in names}
# What one room may use of another, where that is not all of it.
DOORS = {
    ("backend.training", "backend.predictions"): {
        "backend.predictions.requests",
        "backend.predictions.propagations",
    },
}


def room_of(module: str) -> str | None:
    """The name in the table that a module belongs to; None where it has no room."""
    parts = module.split(".")
    for length in range(len(parts), 1, -1):
        if (name := ".".join(parts[:length])) in LEVELS:
            return name
    is_top_level = len(parts) == 1 or (ROOT / parts[0] / f"{'.'.join(parts[1:])}.py").exists()
    return parts[0] if is_top_level else None


def test_every_module_has_a_room() -> None:
    homeless = [module for module in modules() if room_of(module) is None]
    assert not homeless, "ROOMS does not say whom these may import"


def test_rooms_import_only_rooms_above_them() -> None:
    against = [
        f"{module} imports {imported}: {room} may not import {other}"
        for module, all_imported in import_graph().items()
        for imported in sorted(all_imported)
        if (room := room_of(module)) and (other := room_of(imported))
        if LEVELS[other] > LEVELS[room] or imported not in DOORS.get((room, other), {imported})
    ]
    assert not against, "\n".join(["imports against the order of ROOMS:", *against])


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = import_graph()
    found = [
        ", ".join(
            f"{module} → {imported}"
            for module in group
            for imported in sorted(graph[module] & {*group})
        )
        for group in circles(graph)
    ]
    assert not found, "\n".join(["circles of imports:", *found])


def test_circles_are_seen() -> None:
    graph = {"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"e"}, "f": {"a"}}
    assert sorted(sorted(group) for group in circles(graph)) == [["a", "b", "c"], ["e"]]


def test_a_public_name_of_a_class_means_one_thing() -> None:
    holders = defaultdict(list)
    meanings = defaultdict(set)
    for module, tree in modules().items():
        for name, meaning in defined_types(module, tree):
            holders[name].append(module)
            meanings[name].add(meaning)
    doubled = [f"{name}: {', '.join(holders[name])}" for name in holders if len(meanings[name]) > 1]
    assert not doubled, "\n".join(["names that mean different things:", *doubled])


def defined_types(module: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Public classes and capitalised aliases of a module, each with what it means.

    An alias means what is written on its right: `Mask = NDArray[np.bool_]` is the same everywhere.
    """
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name):
                found = name, module
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found = name, ast.unparse(value)
            case _:
                continue
        if name[0].isupper() and not name.isupper():
            yield found


def test_errors_are_one_tree_in_each_package() -> None:
    drawings = {
        name: ast.get_docstring(modules()[f"{name}.errors"]) for name in MAX_TOP_LEVEL_FILES
    }
    elsewhere = []
    for module, tree in modules().items():
        package = module.partition(".")[0]
        for node in ast.walk(tree):
            bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
            # What inherits from an error, by its name, is one.
            if isinstance(node, ast.ClassDef) and any(
                base.endswith(("Exception", "Error")) for base in bases
            ):
                drawn = node.name in (drawings[package] or "")
                if module != f"{package}.errors" or not drawn:
                    elsewhere.append(f"{module}.{node.name}")
    assert not elsewhere, "define these in errors.py, and draw them in its tree"


def test_the_top_level_shows_the_rooms() -> None:
    files = {package: len(list((ROOT / package).glob("*.py"))) for package in MAX_TOP_LEVEL_FILES}
    crowded = {name: count for name, count in files.items() if count > MAX_TOP_LEVEL_FILES[name]}
    assert not crowded, f"move files into rooms: at most {MAX_TOP_LEVEL_FILES}"


def test_a_module_fits_in_one_sitting() -> None:
    lines = {
        name_of(path): len(path.read_text().splitlines())
        for package in MAX_TOP_LEVEL_FILES
        for path in (ROOT / package).rglob("*.py")
    }
    too_long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not too_long, "split by subject"


def test_a_function_fits_on_one_screen() -> None:
    lines = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, tree in modules().items()
        # Alembic's migrations list every column of every table, in one function.
        if not module.startswith("backend.migrations.")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }
    too_long = {name: count for name, count in lines.items() if count > MAX_FUNCTION_LINES}
    assert not too_long


def test_backend_reaches_the_model_only_inside_functions() -> None:
    against = {
        module: sorted(names)
        for module, tree in modules().items()
        if module.startswith("backend")
        if (names := slow_imports(tree))
    }
    assert not against, "import it in the function that needs it"


def slow_imports(tree: ast.Module, *, inside_functions: bool = False) -> list[str]:
    """What a file imports of `ONLY_INSIDE_FUNCTIONS`, when it is loaded or ever."""
    return [
        name
        for name in imported_names(tree, inside_functions=inside_functions)
        if name.partition(".")[0] in ONLY_INSIDE_FUNCTIONS
    ]


def test_imports_are_seen_wherever_they_stand() -> None:
    tree = ast.parse("""
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
""")
    assert slow_imports(tree) == ["torch.nn", "monai", "transformers"]
    assert slow_imports(tree, inside_functions=True)[3:] == ["medsam3_model"]
    everywhere = imported_names(tree, inside_functions=True, type_checking=True)
    assert "medsam3_model.types.Detections" in everywhere
