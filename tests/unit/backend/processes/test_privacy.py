"""Log lines without what URLs carry."""

import logging

import pytest

from backend.processes.privacy import PrivateFormatter, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "GET https://s3.example/a.png?X-Amz-Signature=s3cret&b=2 200",
            "GET https://s3.example/a.png?… 200",
        ),
        ('"/data/upload/1.png?token=s3cret"', '"/data/upload/1.png?…"'),
        ("see 'http://h/a?sig=s3cret', then", "see 'http://h/a?…', then"),
        ("postgresql://user:s3cret@db:5432/medsam3", "postgresql://db:5432/medsam3"),
        ("no data:image/png;base64,s3cret/+= here", "no data:… here"),
        ("no data:image/svg+xml;charset=utf-8,%3Cs3cret here", "no data:… here"),
        ("task 7: is it there? a=b", "task 7: is it there? a=b"),
        ("no URL? None", "no URL? None"),
    ],
)
def test_urls_are_shown_without_their_secrets(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_traceback_is_shown_without_them_too() -> None:
    formatter = PrivateFormatter("%(message)s")
    try:
        raise ValueError("http://h/a.png?sig=s3cret")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "%s", ("http://h/?k=s3cret",), info)
    lines = formatter.format(record)
    assert "ValueError: http://h/a.png?…" in lines
    assert "s3cret" not in lines.replace('"http://h/a.png?sig=s3cret"', "")
