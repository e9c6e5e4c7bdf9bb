"""Docstrings of tables, held against their columns."""

import inspect
import re

import backend.corrections.tables
import backend.people.tables
import backend.predictions.tables
import backend.training.tables
import backend.volumes.tables  # noqa: F401 all tables are known
from backend.tables import Base

COLUMNS = {
    mapper.class_.__name__: {column.key for column in mapper.column_attrs}
    for mapper in Base.registry.mappers
}
ALL_COLUMNS = {name for columns in COLUMNS.values() for name in columns}


def test_docstrings_of_tables_name_columns_that_exist() -> None:
    unknown = []
    for mapper in Base.registry.mappers:
        table = mapper.class_.__name__
        text, _, attributes = (inspect.getdoc(mapper.class_) or "").partition("Attributes:")
        for line in re.findall(r"^    (\w[\w, ]*):", attributes, re.MULTILINE):
            unknown += [(table, name) for name in line.split(", ") if name not in COLUMNS[table]]
        # A name with an underscore in backticks is a column, perhaps of another table.
        named = re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text + attributes)
        unknown += [(table, name) for name in named if name not in ALL_COLUMNS]
    assert not unknown
