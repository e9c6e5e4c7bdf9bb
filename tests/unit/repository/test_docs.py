"""Documents name what exists: settings, commands, targets, queues, files, links, pictures.

Tables that are made from a running backend are compared in tests/integration/repository.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from backend.processes.queues import QueueName
from backend.settings import Settings, variable_of
from backend.tables import Delivery, SuggestionState
from tests.support.import_graph import modules
from tests.support.repository import DOCUMENTS, ROOT, name_of, reference

TEXTS = {path: path.read_text() for path in DOCUMENTS}
README = ROOT / "README.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def offenders(pattern: str, known: set[str]) -> list[str]:
    """What documents name by a pattern's group and nobody knows, with the document's name."""
    named = {(path, name) for path, text in TEXTS.items() for name in re.findall(pattern, text)}
    assert named, "no document names any: the pattern is wrong"
    return sorted(f"{name_of(path)}: {name}" for path, name in named if name not in known)


# -- what the code has is in the documents --------------------------------------------------------


def test_every_setting_has_a_meaning_and_a_row() -> None:
    table = TEXTS[ROOT / "docs" / "settings.md"]
    assert not [
        name
        for name, field in Settings.model_fields.items()
        if not field.description or f"| `{variable_of(name)}` |" not in table
    ]


def test_every_command_and_option_says_what_it_is_for() -> None:
    silent = []
    for name, command in reference().every_command():
        if not command.help:
            silent.append(name)
        elif not getattr(command, "commands", None) and "Example:" not in command.help:
            silent.append(f"{name} has no example")
        silent += [f"{name}: {option.name}" for option in command.params if not option.help]
    assert not silent


def test_every_endpoint_says_what_it_takes_and_answers() -> None:
    methods = {"get", "post", "put", "patch", "delete"}
    endpoints = {
        f"{module}.{function.name}": {
            getattr(decorator.func, "attr", getattr(decorator.func, "id", ""))
            for decorator in function.decorator_list
            if isinstance(decorator, ast.Call)
        }
        for module, tree in modules().items()
        if module.startswith("backend") and not module.startswith("backend.web.console")
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
    }
    found = {name: names for name, names in endpoints.items() if names & methods}
    assert "backend.web.contract.predict" in found
    silent = [name for name, names in found.items() if "operation" not in names]
    assert not silent, "put `@operation(...)` above these; see backend/web/operations.py"


def test_every_state_is_explained() -> None:
    text = TEXTS[ROOT / "docs" / "architecture.md"]
    assert not [state for state in [*SuggestionState, *Delivery] if f"| `{state}` |" not in text]


def test_the_changelog_knows_this_version() -> None:
    assert f"## {PROJECT['version']}" in TEXTS[ROOT / "CHANGELOG.md"]


def test_the_readme_says_what_the_product_is_not_for() -> None:
    text = " ".join(TEXTS[README].lower().split())
    assert "research use" in text
    assert "not for diagnosis" in text


# -- what the documents name exists ---------------------------------------------------------------

# A command in code: up to the end of the line, or to what cannot belong to it.
COMMAND = re.compile(r"(?<![\w-])medsam3((?: +(?!#)[^\s`|#;,)]+)*)(?=[\s`|#;,)]|$)")


def code_of(text: str) -> list[str]:
    """What stands in code blocks, by line, and in backticks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", prose_of(text))


def prose_of(text: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def typed_commands(text: str) -> list[list[str]]:
    """Each `medsam3 ...` in a document's code, as words."""
    typed = [
        # What follows a colon says what the command does.
        match[1].partition(":")[0].split()
        for line in code_of(text)
        for match in COMMAND.finditer(line)
    ]
    return [words for words in typed if words and words[0] != "COMMAND"]


def mistake_in(words: list[str], commands: dict[str, Any]) -> str | None:
    """What is wrong with `medsam3 WORDS`: a command or an option that does not exist."""
    name = "medsam3"
    for word in words:
        if word.startswith("-"):
            options = {option for parameter in commands[name].params for option in parameter.opts}
            if word.partition("=")[0] not in options | {"--help"}:
                return f"{name} has no {word}"
        elif f"{name} {word}" in commands:
            name = f"{name} {word}"
        elif name == "medsam3":
            return f"there is no command medsam3 {word}"
    return None


def test_every_command_exists() -> None:
    commands = dict(reference().every_command())
    typed = [(path, words) for path, text in TEXTS.items() for words in typed_commands(text)]
    # A check that sees no command passes on any document.
    assert {words[0] for _, words in typed} >= {"serve", "connect", "train", "doctor"}
    assert not [
        f"{name_of(path)}: {mistake}"
        for path, words in typed
        if (mistake := mistake_in(words, commands))
    ]


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    typed = {
        (name_of(path), target)
        for path, text in TEXTS.items()
        for line in code_of(text)
        for target in re.findall(r"(?<![\w.-])make ([a-z][\w-]*)", line)
    }
    assert {target for _, target in typed} >= {"demo", "test"}
    assert not [(name, target) for name, target in sorted(typed) if target not in targets]


def test_every_variable_exists() -> None:
    known = {variable_of(name) for name in Settings.model_fields}
    # Those of the demo, the tests and the compose file, which are no settings of a process.
    known |= {"MEDSAM3_LABEL_STUDIO_BIN", "MEDSAM3_DB_PASSWORD"}
    assert not offenders(r"\bMEDSAM3_[A-Z_]+[A-Z]\b", known)


def test_every_queue_exists() -> None:
    assert not offenders(r"--queue[ =](\w+)", set(QueueName))


def test_every_file_that_is_named_exists() -> None:
    folders = "backend|medsam3_model|tests|docs|label_config"
    named = {
        (path, name)
        for path, text in TEXTS.items()
        for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    }
    assert named
    assert not [f"{name_of(path)}: {name}" for path, name in named if not (ROOT / name).exists()]


def test_every_module_that_is_named_exists() -> None:
    named = {
        (path, name)
        for path, text in TEXTS.items()
        for name in re.findall(r"`((?:backend|medsam3_model)(?:\.\w+)+)", text)
    }
    # The last part may be a class or a function of the module before it.
    assert not [
        f"{name_of(path)}: {name}"
        for path, name in named
        if name not in modules() and name.rpartition(".")[0] not in modules()
    ]


def test_the_pythons_that_documents_ask_for_are_those_that_work() -> None:
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert not offenders(r"\bPython (3\.\d+(?: to 3\.\d+)?)", {f"{named[0]} to {named[-1]}"})


# -- links and pictures ---------------------------------------------------------------------------


def links_of(path: Path) -> Iterator[str]:
    """Targets of a document's links and pictures within the repository, in Markdown or HTML."""
    pattern = r"\]\(([^)\s]+)\)|(?:href|src)=\"([^\"]+)\""
    for target in re.findall(pattern, prose_of(TEXTS[path])):
        if "://" not in (link := "".join(target)):
            yield link


def slug(heading: str) -> str:
    """The anchor that is made of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def leads_somewhere(path: Path, link: str) -> bool:
    """Whether a link of a document has a file of the repository at its end, and its heading."""
    file, _, anchor = link.partition("#")
    target = (path.parent / file).resolve() if file else path
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor else []
    return not anchor or anchor in {slug(heading) for heading in headings}


def test_every_link_leads_somewhere() -> None:
    links = [(path, link) for path in DOCUMENTS for link in links_of(path)]
    assert links
    assert not [
        f"{name_of(path)}: {link}" for path, link in links if not leads_somewhere(path, link)
    ]


def test_every_document_can_be_found_from_the_readme() -> None:
    reached, to_read = {README}, [README]
    while to_read:
        path = to_read.pop()
        linked = {(path.parent / link.partition("#")[0]).resolve() for link in links_of(path)}
        new = (linked & TEXTS.keys()) - reached
        reached |= new
        to_read += new
    assert not [name_of(path) for path in DOCUMENTS if path not in reached]


def pictures_of(text: str) -> Iterator[tuple[str, str]]:
    """Target and description of a document's pictures, in Markdown or HTML."""
    for description, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", text):
        yield target, description
    for attributes in re.findall(r"<img([^>]*)>", text):
        named = dict(re.findall(r"(\w+)=\"([^\"]*)\"", attributes))
        yield named["src"], named.get("alt", "")


def test_every_picture_can_be_seen_and_is_described() -> None:
    pictures = [
        (path, target, description)
        for path, text in TEXTS.items()
        for target, description in pictures_of(text)
        if "://" not in target
    ]
    assert pictures
    assert not [
        f"{name_of(path)}: {target}"
        for path, target, description in pictures
        if len(description) <= 10 or not can_be_seen(path.parent / target)
    ]


def can_be_seen(picture: Path) -> bool:
    """Whether a file is an image that can be decoded."""
    try:
        with Image.open(picture) as image:
            image.load()
    except OSError:
        return False
    return True


# -- the repository's own files -------------------------------------------------------------------


def test_no_file_names_somebodys_folders() -> None:
    folders = re.compile(r"/(?:home|Users|tmp)/\w+")
    own = ("backend", "medsam3_model", "label_config", "docs", "tests")
    paths = [path for name in own for path in (ROOT / name).rglob("*")]
    suffixes = {".py", ".md", ".toml", ".json", ".xml", ".mako", ".yml", ".txt"}
    texts = [path for path in [*paths, *ROOT.glob("*")] if path.suffix in suffixes]
    assert not [
        f"{name_of(path)}: {folder}"
        for path in texts
        for folder in folders.findall(path.read_text())
    ]
