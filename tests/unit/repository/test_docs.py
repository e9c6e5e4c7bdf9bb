"""The documents say what the code does: nothing missing, nothing invented, no link dead."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from backend.processes.queues import QueueName
from backend.settings import Settings
from backend.tables import Delivery, SuggestionState

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("label_config/*.md")])
README = (ROOT / "README.md").read_text()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@lru_cache(maxsize=1)
def reference() -> ModuleType:
    """docs/reference.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings", "commands", "endpoints", "own_endpoints", "metrics"])
def test_a_table_says_what_the_code_says(name: str) -> None:
    documents = [path.read_text() for path in DOCUMENTS]
    tables = [
        match
        for text in documents
        for match in reference().BLOCK.finditer(text)
        if match["name"] == name
    ]
    assert len(tables) == 1
    expected = f"{tables[0]['begin']}{reference().TABLES[name]()}\n{tables[0]['end']}"
    assert tables[0][0] == expected, "run `make docs`"


def test_every_setting_has_a_meaning_and_a_row() -> None:
    table = (ROOT / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"| `{reference().variable_of(name, field)}` |" in table


def test_every_endpoint_has_a_section() -> None:
    endpoints = [name for name, _ in reference().every_endpoint()]
    assert "POST /predict" in endpoints
    text = (ROOT / "docs" / "api.md").read_text()
    missing = [one for one in endpoints if f"### `{one}`" not in text and one != "GET /"]
    assert not missing


def test_every_command_and_option_says_what_it_is_for() -> None:
    for path, command in reference().every_command():
        assert command.help, path
        if not getattr(command, "commands", None):
            assert "Example:" in command.help, f"{path} has no example"
        for parameter in command.params:
            assert parameter.help, f"{path}: {parameter.name}"


def test_every_state_is_explained() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for state in [*SuggestionState, *Delivery]:
        assert f"| `{state}` |" in text


@lru_cache(maxsize=1)
def commands() -> dict[str, Any]:
    return dict(reference().every_command())


# A command in a code block or in backticks: up to the end of the line or the backtick.
COMMAND = re.compile(r"(?<![\w-])medsam3((?: +(?!#)[^\s`|#;,)]+)*)(?=[\s`|#;,)]|$)")


def code_of(path: Path) -> list[str]:
    """What stands in code blocks and in backticks."""
    text = path.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", prose)


def typed_commands(path: Path) -> list[list[str]]:
    """Each `medsam3 ...` in a document's code, as words."""
    found = [match[1].split() for line in code_of(path) for match in COMMAND.finditer(line)]
    return [words for words in found if words and words[0] != "COMMAND"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_exists(path: Path) -> None:
    for words in typed_commands(path):
        command, name = commands()["medsam3"], "medsam3"
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word.startswith("-"):
                options = {one for parameter in command.params for one in parameter.opts}
                assert word.partition("=")[0] in options | {"--help"}, f"{name} has no {word}"
            elif f"{name} {word}" in commands():
                name = f"{name} {word}"
                command = commands()[name]
            else:
                assert name != "medsam3", f"there is no command `medsam3 {word}`"


def test_the_readmes_commands_are_seen() -> None:
    # The test above would pass on a document in which it found nothing.
    words = typed_commands(ROOT / "README.md")
    assert {word[0] for word in words} >= {"serve", "connect", "preannotate", "doctor", "evaluate"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_make_target_exists(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    typed = [
        word
        for line in code_of(path)
        for match in re.finditer(r"(?<![\w.-])make ([a-z][\w-]*)", line)
        for word in [match[1]]
    ]
    assert set(typed) <= targets
    if path == ROOT / "README.md":
        assert {"demo", "test"} <= set(typed)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_variable_exists(path: Path) -> None:
    known = {reference().variable_of(name, field) for name, field in Settings.model_fields.items()}
    # Those of the demo, the tests and the compose file, which are no settings of a process.
    known |= {"MEDSAM3_LABEL_STUDIO_BIN", "MEDSAM3_DB_PASSWORD"}
    named = set(re.findall(r"\b(?:MEDSAM3_[A-Z_]+[A-Z])\b", path.read_text()))
    assert named <= known


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{target} is not there"
        assert found.is_relative_to(ROOT)
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{target}: no such heading"


def slug(heading: str) -> str:
    """The anchor that is made of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_image_can_be_seen(path: Path) -> None:
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", path.read_text()):
        assert len(alt) > 10, f"{target} says nothing to whoever cannot see it"
        with Image.open(path.parent / target) as image:
            image.verify()
            assert min(image.size) >= 300


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_file_that_is_named_exists(path: Path) -> None:
    named = re.findall(
        r"`((?:backend|medsam3_model|tests|docs|label_config)/[\w./-]*)`", path.read_text()
    )
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_document_can_be_found_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(([^)\s#]+)", README))
    found = {path for path in DOCUMENTS if name_of(path) in linked}
    reached = set(found)
    while found:
        text = {target for path in found for target in _targets(path)}
        found = {path for path in DOCUMENTS if path in text} - reached
        reached |= found
    assert set(DOCUMENTS) - reached == {ROOT / "README.md"}


def _targets(path: Path) -> set[Path]:
    return {
        (path.parent / target).resolve()
        for target in re.findall(r"\]\(([^)\s#]+)", path.read_text())
        if "://" not in target
    }


def test_the_readme_begins_with_a_picture_and_two_commands() -> None:
    picture, commands_, then = (README.find(part) for part in ("![", "make demo ", "**Then**"))
    assert 0 < picture < commands_ < then
    assert README.find("```sh\nmake demo") < README.find("make test ") < then
    assert len(README.split()) < 900, "short: the rest belongs into docs/"


def test_the_readme_says_what_it_is_not_for() -> None:
    assert "research use" in README.lower()
    assert "not for diagnosis" in README.lower()


def test_published_figures_are_marked_as_the_papers() -> None:
    before = README[: README.index(".2674")]
    assert "as its paper reports it" in before
    assert "not measured here" in before


def test_the_changelog_knows_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_queue_that_is_named_exists(path: Path) -> None:
    named = re.findall(r"--queue[ =](\w+)", path.read_text())
    assert set(named) <= set(QueueName)


# Folders of one developer's machine. A home folder with a made-up name is an example.
MACHINE = re.compile(
    rb"/work/|/root/(?!\.cache)|/Users/\w|/tmp/(?:plan|bash)|[\w.-]*/\.pyenv/|\.\./shared"
)
HERE = b"tests/unit/repository/test_docs.py"


def test_no_file_names_a_machine_or_what_lies_beside_the_repository() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.split(b"\0")
    found = []
    for name in listed:
        path = ROOT / name.decode()
        if not name or name == HERE or not path.is_file() or path.suffix in BINARY:
            continue
        found += [
            f"{path.relative_to(ROOT)}: {hit.decode()}"
            for hit in MACHINE.findall(path.read_bytes())
        ]
    assert not found


BINARY = {".png", ".safetensors", ".npz", ".gz", ".pt", ".nii"}


def test_the_script_writes_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = (
        "before\n<!-- made by docs/reference.py: settings -->\nwhat it was\n<!-- end -->\nafter\n"
    )
    (tmp_path / "one.md").write_text(stale)
    monkeypatch.setattr(reference(), "DOCS", tmp_path)
    reference().main()
    text = (tmp_path / "one.md").read_text()
    assert text.startswith("before\n<!-- made")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "what it was" not in text
    assert "`MEDSAM3_PORT`" in text


def test_the_python_that_is_asked_for_is_the_one_that_is_needed() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"Python {needed.removeprefix('>=')}" in README
    assert sys.version_info >= tuple(map(int, needed.removeprefix(">=").split(".")))
