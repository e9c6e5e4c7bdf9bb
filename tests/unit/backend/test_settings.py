"""Settings as people write them: what is wrong is one sentence, and what is empty the default."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.cli.main import app
from backend.errors import SettingsError
from backend.settings import Settings, get_settings, read_settings, variable_of

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No variable of this machine's, no `.env`, and nothing read before."""
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDSAM3_DATA_DIR", str(tmp_path / "data"))
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MEDSAM3_PORT", "http", "a valid integer, for example MEDSAM3_PORT=9090"),
        ("MEDSAM3_PORT", "70000", "less than or equal to 65535"),
        (
            "MEDSAM3_STRATEGY",
            "diversity",
            "'uncertainty' or 'random', for example MEDSAM3_STRATEGY=uncertainty",
        ),
        ("MEDSAM3_AUTO_PROMOTE", "perhaps", "a valid boolean"),
        ("MEDSAM3_IMAGE_TIMEOUT_S", "inf", "a finite number"),
        ("MEDSAM3_IMAGE_TIMEOUT_S", "nan", "a finite number"),
        ("MEDSAM3_RETENTION_DAYS", "0", "greater than or equal to 1"),
        ("LABEL_STUDIO_URL", "localhost:8080", "http.* LABEL_STUDIO_URL=http://localhost:8080"),
        ("LABEL_STUDIO_URL", "ftp://host", "begin with http:// or https://"),
        ("LABEL_STUDIO_URL", "http://", "the address of a server"),
        ("LABEL_STUDIO_URL", "http://host:port", "its port must be a number"),
        ("LABEL_STUDIO_URL", "http://[::1", "IPv6"),
        ("LABEL_STUDIO_URL", "http://host/?next=x", "without . and #"),
        ("LABEL_STUDIO_API_KEY", f"Token {SECRET}", "spaces, quotes"),
        ("LABEL_STUDIO_API_KEY", f'"{SECRET}"', "spaces, quotes"),
        ("MEDSAM3_LABEL_STUDIO_ALIASES", "ftp://host", "begin with http:// or https://"),
        ("MEDSAM3_ALLOWED_IMAGE_HOSTS", "https://host/a", "'https://host/a' is no host name"),
        ("MEDSAM3_ALLOWED_IMAGE_HOSTS", "*", "is no host name"),
        ("MEDSAM3_ALLOWED_IMAGE_HOSTS", '["host"', "a JSON list and is none"),
        ("MEDSAM3_ALLOWED_IMAGE_HOSTS", "[1]", "a valid string"),
        ("MEDSAM3_GROUP_PATTERN", "(", "no regular expression"),
        ("REDIS_URL", f"host:{SECRET}", "redis://"),
        ("DATABASE_URL", f"mysql://me:{SECRET}@host/x", "postgresql://"),
        ("DATABASE_URL", SECRET, "postgresql://"),
        ("DATABASE_URL", "postgresql+asyncpg://host/x", "postgresql://"),
        ("REDIS_URL", "redis://host:port", "redis://"),
        ("DATABASE_URL", f"postgresql://me:{SECRET}@host:port/x", "postgresql://"),
        ("STORAGE_URL", "s4://bucket", "s3://"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"^{variable} cannot be used: .*{words}") as caught:
        get_settings()
    message = str(caught.value)
    assert f", for example {variable}=" in message
    assert "\n" not in message
    assert SECRET not in message


def test_each_has_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSAM3_PORT", "x")
    monkeypatch.setenv("MEDSAM3_CONSENSUS", "y")
    with pytest.raises(SettingsError) as caught:
        get_settings()
    assert [line.partition(" ")[0] for line in str(caught.value).splitlines()] == [
        "MEDSAM3_PORT",
        "MEDSAM3_CONSENSUS",
    ]


@pytest.mark.parametrize("value", ["", "  "])
def test_empty_is_the_default(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    expected = Settings()
    for name in set(Settings.model_fields) - {"data_dir"}:
        monkeypatch.setenv(variable_of(name), value)
    assert Settings() == expected
    assert expected.label_studio_api_key is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("images.example.org", ("images.example.org",)),
        ("a.org, *.b.org ,10.0.0.5:8443,", ("a.org", "*.b.org", "10.0.0.5:8443")),
        ('["a.org", "b.org"]', ("a.org", "b.org")),
        ("[::1]:8080", ("[::1]:8080",)),
        ("::1", ("::1",)),
        ("localhost", ("localhost",)),
        ("bücher.example", ("bücher.example",)),
    ],
)
def test_lists(monkeypatch: pytest.MonkeyPatch, value: str, expected: tuple[str, ...]) -> None:
    monkeypatch.setenv("MEDSAM3_ALLOWED_IMAGE_HOSTS", value)
    assert Settings().allowed_image_hosts == expected


def test_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSAM3_ALLOWED_LOCAL_ROOTS", "/srv/images, /mnt/scans")
    assert Settings().allowed_local_roots == (Path("/srv/images"), Path("/mnt/scans"))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"MEDSAM3_MODEL=\xff\xfe")
    with pytest.raises(SettingsError, match=r"The file \.env in this folder cannot be read"):
        read_settings()


def every_command() -> list[list[str]]:
    """Each command that reads settings, with what it needs."""
    return [
        ["serve"],
        ["web"],
        ["worker"],
        ["trainer"],
        ["doctor"],
        ["connect", "1"],
        ["preannotate", "1"],
        ["train", "1"],
        ["models", "list"],
        ["corrections", "list"],
        ["corrections", "stats"],
        ["corrections", "sync"],
    ]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MEDSAM3_PORT", "x"),
        ("MEDSAM3_ALLOWED_IMAGE_HOSTS", "[1"),
        ("DATABASE_URL", "mysql://host"),
    ],
)
def test_no_command_answers_with_a_traceback(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    for command in every_command():
        answer = CliRunner().invoke(app, command)
        assert answer.exit_code == 1, command
        assert isinstance(answer.exception, SystemExit), command
        assert answer.output.startswith(f"medsam3: {variable} cannot be used: "), command
        get_settings.cache_clear()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MEDSAM3_DATA_DIR", "/proc/nothing/here", "MEDSAM3_DATA_DIR"),
        ("DATABASE_URL", f"postgresql://me:{SECRET}@127.0.0.1:1/x", "check DATABASE_URL"),
        ("DATABASE_URL", "sqlite:////proc/nothing/here.db", "set DATABASE_URL"),
        ("DATABASE_URL", "sqlite:////proc/version", "check DATABASE_URL"),
    ],
)
def test_what_is_not_there_is_a_sentence_too(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    answer = CliRunner().invoke(app, ["corrections", "list"])
    assert isinstance(answer.exception, SystemExit)
    assert words in answer.output
    assert SECRET not in answer.output
