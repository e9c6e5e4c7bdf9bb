"""Imports between the files of the product, read from the sources without running them."""

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from tests.support.repository import ROOT

PACKAGES = ("backend", "medsam3_model")


@lru_cache(maxsize=1)
def modules() -> Mapping[str, ast.Module]:
    """Every module of the product by its dotted name, parsed."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {module_name(path): ast.parse(path.read_text()) for path in paths}


def module_name(path: Path) -> str:
    """`backend.web.app` for backend/web/app.py; a package has the name of its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@lru_cache(maxsize=1)
def import_graph() -> Mapping[str, set[str]]:
    """For each module the modules of the product that it imports, wherever the import stands."""
    return {
        name: {
            module
            for imported in imported_names(tree, inside_functions=True, type_checking=True)
            if (module := _module_of(imported))
        }
        for name, tree in modules().items()
    }


def _module_of(imported: str) -> str | None:
    """The module that holds an imported name; None outside of the product."""
    if imported in modules():
        return imported
    holder = imported.rpartition(".")[0]
    return holder if holder in modules() else None


def imported_names(
    tree: ast.AST, *, inside_functions: bool, type_checking: bool = False
) -> Iterator[str]:
    """What a file imports, dotted: `a.b` of `import a.b`, and `a.b.c` of `from a.b import c`.

    Imports of methods and lambdas are inside functions; those of class bodies are not.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            if inside_functions:
                yield from imported_names(node, inside_functions=True, type_checking=type_checking)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            if type_checking:
                yield from imported_names(
                    node, inside_functions=inside_functions, type_checking=True
                )
        else:
            yield from imported_names(
                node, inside_functions=inside_functions, type_checking=type_checking
            )


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other in a circle, directly or by others (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        path.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in path:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            # All that was reached from here and leads back to here.
            group = path[path.index(name) :]
            del path[path.index(name) :]
            if len(group) > 1 or name in graph[name]:
                groups.append(group)

    for name in graph:
        if name not in index:
            visit(name)
    return groups
