"""Tables of the documents say what a running backend says, and the script writes them."""

from pathlib import Path

import pytest

from tests.support.repository import DOCUMENTS, ROOT, name_of, reference


def test_every_table_says_what_the_code_says() -> None:
    blocks = [
        (path, block)
        for path in DOCUMENTS
        for block in reference().BLOCK.finditer(path.read_text())
    ]
    assert sorted(block["name"] for _, block in blocks) == sorted(reference().TABLES)
    tables = {name: table() for name, table in reference().TABLES.items()}
    stale = [
        f"{name_of(path)}: {block['name']}"
        for path, block in blocks
        if block[0] != f"{block['begin']}{tables[block['name']]}\n{block['end']}"
    ]
    assert not stale, "run `make docs`"


def test_every_endpoint_has_a_section() -> None:
    endpoints = [name for name, _ in reference().every_endpoint()]
    assert "POST /predict" in endpoints
    text = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in endpoints if f"### `{name}`" not in text and name != "GET /"]
    assert not missing


def test_the_script_writes_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "document.md"
    document.write_text(
        "before\n<!-- made by docs/reference.py: settings -->\nwhat it was\n<!-- end -->\nafter\n"
    )
    monkeypatch.setattr(reference(), "DOCS", tmp_path)
    reference().main()
    text = document.read_text()
    assert text.startswith("before\n<!-- made")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "what it was" not in text
    assert "`MEDSAM3_PORT`" in text
