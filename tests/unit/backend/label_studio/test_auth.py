"""Tokens of Label Studio, as far as they can be read without asking it."""

import pytest

from backend.label_studio.auth import token_expiry
from tests.support.tokens import LEGACY_TOKEN, jwt


@pytest.mark.parametrize(
    ("token", "ends"),
    [
        (jwt(exp=1700000000), 1700000000.0),
        (LEGACY_TOKEN, None),
        ("a.b.c", None),
        (jwt(iat=1), None),
        ("", None),
        ("..", None),
        ("é.é.é", None),
    ],
)
def test_when_a_token_ends(token: str, ends: float | None) -> None:
    assert token_expiry(token) == ends
