"""Migrations, files that appear whole or not at all, and lists of values cut for IN queries."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from backend.database import (
    MOST_VALUES,
    Database,
    alembic_config,
    chunked,
    new_file,
    newest_revision,
    open_database,
    remove_drafts,
)
from backend.settings import Settings


def test_chunks_keep_the_order_and_lose_nothing() -> None:
    values = list(range(2 * MOST_VALUES + 1))
    chunks = list(chunked(values))
    assert [len(chunk) for chunk in chunks] == [MOST_VALUES, MOST_VALUES, 1]
    assert [value for chunk in chunks for value in chunk] == values
    assert list(chunked([])) == []


@pytest.mark.parametrize("durable", [False, True])
def test_a_new_file_appears_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "folder" / "file"
    for content in ("first", "second"):
        with new_file(path, durable=durable) as draft:
            draft.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_raises_leaves_no_file(tmp_path: Path) -> None:
    def write_half() -> None:
        with new_file(tmp_path / "file") as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_without_overwriting_the_first_writer_wins(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(number: int) -> str:
        with new_file(path, overwrite=False) as draft:
            draft.write_text(str(number))
        return path.read_text()

    with ThreadPoolExecutor(8) as threads:
        read = set(threads.map(write, range(64)))
    assert len(read) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    names = (f".{'a1' * 8}", f"ab/.{'0f' * 8}", f".{'b2' * 8}", ".hidden", "ab/mask.png")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        if "b2" not in name:
            os.utime(path, (0, 0))
    assert remove_drafts(tmp_path) == 2
    assert [name for name in names if (tmp_path / name).exists()] == list(names[2:])
    assert remove_drafts(tmp_path / "missing") == 0


def test_the_newest_migration_is_the_one_that_alembic_would_go_to(tmp_path: Path) -> None:
    scripts = ScriptDirectory.from_config(alembic_config("sqlite://"))
    assert newest_revision() == scripts.get_current_head()
    settings = Settings(data_dir=tmp_path)
    empty = Database(settings.database)
    assert empty.revision() is None
    empty.dispose()
    for _ in range(2):
        opened = open_database(settings)
        assert opened.revision() == newest_revision()
        opened.dispose()


def test_a_project_that_chose_a_removed_strategy_goes_by_the_setting(tmp_path: Path) -> None:
    database = Database(Settings(data_dir=tmp_path).database)
    config = alembic_config(database.url)
    removed = {"image_vectors", "task_ranks"}
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0015")
        assert removed <= {*inspect(connection).get_table_names()}
        chosen = ("tta", "diversity", "random-foreground", "random", "uncertainty", None)
        connection.execute(
            text("INSERT INTO training_policies (project_id, strategy) VALUES (:project, :chosen)"),
            [{"project": number, "chosen": name} for number, name in enumerate(chosen)],
        )
    database.migrate()
    with database.engine.begin() as connection:
        assert not removed & {*inspect(connection).get_table_names()}
        left = text("SELECT strategy FROM training_policies ORDER BY project_id")
        assert connection.scalars(left).all() == [None, None, None, "random", "uncertainty", None]
        config.attributes["connection"] = connection
        command.downgrade(config, "0015")
        assert removed <= {*inspect(connection).get_table_names()}
    database.migrate()
    assert database.revision() == newest_revision()
    database.dispose()
