"""Settings of every process, from environment variables (or a `.env` file in the working folder).

Most carry the prefix `MEDSAM3_`; the five that other tools of the field read too
(`LABEL_STUDIO_URL`, `LABEL_STUDIO_API_KEY`, `REDIS_URL`, `DATABASE_URL`, `STORAGE_URL`) do not.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticUseDefault
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from backend.errors import SettingsError

Consensus = Literal["latest", "majority", "staple"]
Strategy = Literal["uncertainty", "random"]

# Written with commas or as a JSON list; see `Settings._listed`.
_Names = Annotated[tuple[str, ...], NoDecode]
_Folders = Annotated[tuple[Path, ...], NoDecode]


def _bare(name: str) -> AliasChoices:
    """The variable `name` without the prefix; the field's own name serves keyword arguments."""
    return AliasChoices(name, name.lower())


class Settings(BaseSettings):
    """One validated value per setting; see docs/settings.md for the list with defaults."""

    model_config = SettingsConfigDict(
        env_prefix="MEDSAM3_",
        env_file=".env",
        extra="ignore",
        populate_by_name=True,
        allow_inf_nan=False,
        # An error must not repeat what may be a password.
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(
        Path("~/.local/share/medsam3"),
        description="Folder for the SQLite database, caches, mask files and generated secrets.",
    )
    label_studio_url: str = Field(
        "http://localhost:8080",
        validation_alias=_bare("LABEL_STUDIO_URL"),
        description="Address at which this backend reaches Label Studio.",
    )
    label_studio_api_key: SecretStr | None = Field(
        None,
        validation_alias=_bare("LABEL_STUDIO_API_KEY"),
        description="Personal access token or legacy token of a Label Studio user.",
        examples=["0123456789abcdef0123456789abcdef01234567"],
    )
    label_studio_aliases: _Names = Field(
        (),
        description="Other addresses of the same Label Studio that tasks may carry, such as "
        "https://labels.example.org; the one in its LABEL_STUDIO_HOST is found by itself.",
        examples=["https://labels.example.org,http://label-studio:8080"],
    )
    redis_url: str | None = Field(
        None,
        validation_alias=_bare("REDIS_URL"),
        description="Redis for the job queues; empty: an embedded Redis below the data folder.",
        examples=["redis://redis:6379/0"],
    )
    database_url: str | None = Field(
        None,
        validation_alias=_bare("DATABASE_URL"),
        description="SQLAlchemy URL (SQLite or PostgreSQL); empty: SQLite in the data folder.",
        examples=["postgresql://user:password@host/medsam3"],
    )
    storage_url: str | None = Field(
        None,
        validation_alias=_bare("STORAGE_URL"),
        description="fsspec URL for mask files (folder or s3://bucket/prefix); empty: data folder.",
        examples=["s3://bucket/masks"],
    )

    host: str = Field("127.0.0.1", description="Address on which the web process listens.")
    port: int = Field(9090, ge=0, le=65535, description="Port on which the web process listens.")
    web_threads: int = Field(
        64, ge=1, description="Requests that the web process serves at the same time."
    )
    basic_auth_user: str = Field(
        "label-studio", description="User name that Label Studio sends to this backend."
    )
    basic_auth_password: SecretStr | None = Field(
        None, description="Its password; empty: generated once and kept in the data folder."
    )
    api_token: SecretStr | None = Field(
        None, description="Bearer token for scripts; empty: generated once and kept as well."
    )
    webhook_secret: SecretStr | None = Field(
        None, description="Secret header of Label Studio's webhook; empty: generated once."
    )
    console_gallery: bool = Field(
        True,
        description="Show images in the console: the worst suggestions, and what agents sent.",
    )
    max_request_mb: int = Field(
        256, ge=1, description="Largest request body; old predictions travel with their masks."
    )

    model: str = Field(
        "tiny", description="Checkpoint to serve: `tiny`, a file, a folder or a hub id."
    )
    adapter: str | None = Field(None, description="LoRA adapter merged into the checkpoint.")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` or `mps`.")
    dtype: str = Field("auto", description="`auto`, `float32` or `bfloat16`.")
    compile_encoder: bool = Field(
        False,
        description="Compile the image encoder with torch: a slow first image, faster ones after "
        "it. Needs a C++ compiler or CUDA.",
        examples=["/models/lora.safetensors"],
    )

    predict_budget_s: float = Field(
        60.0,
        gt=0,
        le=95,
        description="Seconds that a /predict may take before it answers [] and is pushed later; "
        "Label Studio gives up after 100.",
    )
    chunk_tasks: int = Field(
        8,
        ge=1,
        description="Tasks per batch job. An interactive prompt waits for those that are begun, "
        "not for the whole job.",
    )
    propagate_on_submit: bool = Field(
        False,
        description="Whether the rest of an imported stack is drawn, and pushed as a prediction, "
        "when somebody submits or updates an annotation with slices drawn by hand.",
    )
    min_volume_ml: float = Field(
        0.0,
        ge=0,
        description="Volume in millilitres below which an object that a text found on a stack is "
        "left out, for labels without a `min_volume_ml` of their own; stacks whose voxels have no "
        "known size keep all. 0: keep all.",
    )
    max_attempts: int = Field(
        3, ge=1, description="Times that a task may take its worker down before it is given up."
    )
    lease_s: float = Field(
        15.0, gt=1, description="Seconds without a sign of life after which a job starts again."
    )
    worker_memory_mb: int = Field(
        0,
        ge=0,
        description="Memory of each GPU and ingest worker (Linux), with model and caches: a task "
        "that needs more fails with that reason. 0: no limit.",
    )
    worker_max_jobs: int = Field(
        5000, ge=1, description="Jobs after which a worker is replaced by a fresh process."
    )

    allowed_image_hosts: _Names = Field(
        (),
        description="Hosts besides Label Studio from which images may be fetched.",
        examples=["images.example.org,*.example.net,10.0.0.5:8443"],
    )
    allowed_local_roots: _Folders = Field(
        (),
        description="Folders below which /data/local-files may be read directly.",
        examples=["/srv/images,/mnt/scans"],
    )
    max_image_mb: int = Field(512, ge=1, description="Largest image file.")
    max_image_megapixels: float = Field(
        100.0, gt=0, description="Largest image after decoding, in millions of pixels."
    )
    image_timeout_s: float = Field(30.0, gt=0, description="Seconds to fetch one image.")
    sync_minutes: float = Field(
        15.0,
        ge=0,
        description="Minutes between two syncs with Label Studio, which bring in corrections whose "
        "webhook was lost and remove masks past their retention time; 0: never.",
    )
    max_annotation_mb: int = Field(
        32, ge=1, description="Largest annotation; a larger one is quarantined with that reason."
    )
    group_field: str = Field(
        "group",
        description="Field of a task's data with what must stay on one side of a split, "
        "such as the patient's id.",
    )
    group_pattern: str | None = Field(
        None,
        description="Regular expression that finds the group in an image's address, for tasks "
        "without the field; its first group counts.",
        examples=["patient-(\\d+)_"],
    )
    retention_days: int | None = Field(
        None,
        ge=1,
        description="Days after which replaced and deleted corrections, and predictions that "
        "nobody got, are removed for good; empty: never.",
        examples=["365"],
    )
    prune_days: int | None = Field(
        None,
        ge=1,
        description="Days after which delivered predictions of versions that no longer serve their "
        "project are removed, unless a correction names them; empty: never.",
        examples=["90"],
    )
    audit_days: int = Field(
        365, ge=1, description="Days after which entries of the audit trail are removed."
    )
    image_cache_mb: int | None = Field(
        None,
        ge=0,
        description="Memory for fetched images in each GPU worker and trainer; empty: a 32nd of "
        "what the machine or container has, at most 512.",
        examples=["512"],
    )
    embedding_memory_mb: int | None = Field(
        None,
        ge=0,
        description="Memory for image embeddings in each GPU worker; empty: an eighth of what the "
        "machine or container has, at most 2048.",
        examples=["2048"],
    )
    embedding_disk_mb: int = Field(
        20480, ge=0, description="Disk for image embeddings below the data folder."
    )
    embedding_store_url: str | None = Field(
        None,
        description="fsspec URL (folder or s3://bucket/prefix) of image embeddings that all "
        "machines share, behind each one's disk; empty: none.",
        examples=["s3://bucket/embeddings"],
    )

    train_after_corrections: int = Field(
        0, ge=0, description="New corrections of a project that start a training run; 0: never."
    )
    train_schedule: str | None = Field(
        None,
        description="Cron line (UTC) at which projects with new corrections are trained.",
        examples=["0 3 * * *"],
    )
    train_steps: int = Field(
        2000,
        ge=1,
        description="Ceiling of a training run in optimiser steps; it ends sooner where more steps "
        "bring nothing.",
    )
    train_minutes: float = Field(
        10.0,
        gt=0,
        description="Ceiling of a training run in minutes; time that it waits for "
        "annotators does not count.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Learning rate; empty: what suits the model's width.",
        examples=["0.0001"],
    )
    train_seed: int = Field(0, description="Seed of a training run.")
    train_replay: bool = Field(
        True, description="Train on earlier concepts too, so that they are not forgotten."
    )
    consensus: Consensus = Field(
        "latest", description="What several annotators' masks of one image become for training."
    )
    strategy: Strategy = Field(
        "uncertainty",
        description="Which tasks come first once a project has a version of its own; before, any.",
    )
    gate_min_images: int = Field(
        5, ge=1, description="Validation images below which no version is promoted automatically."
    )
    gate_tolerance: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Mean Dice that any one concept may lose in a promotion, and share of foreign "
        "names that may be answered more, beyond four.",
    )
    auto_promote: bool = Field(
        True, description="Put a version that passes the gate into service automatically."
    )
    detectors_in_memory: int = Field(
        8, ge=1, description="Trained detectors that a GPU worker keeps loaded."
    )

    agent_url: str | None = Field(
        None,
        description="Address of a Chat Completions API whose language model may guide the "
        "segmentation; empty: no agent.",
        examples=["http://localhost:8000/v1"],
    )
    agent_model: str | None = Field(
        None,
        description="Name of a model of that server that sees images.",
        examples=["qwen3-vl"],
    )
    agent_api_key: SecretStr | None = Field(None, description="Bearer token for that server.")
    agent_send_images: bool = Field(
        False, description="Whether images may be sent to it; without it there is no agent."
    )
    agent_allowed_hosts: _Names = Field(
        (),
        description="Hosts besides this machine to which images may be sent for the agent.",
        examples=["llm.example.org,10.0.0.7"],
    )
    agent_rounds: int = Field(
        3, ge=1, le=5, description="Times that an agent may ask for new masks of one label."
    )
    agent_task_s: float = Field(
        90.0, gt=0, le=600, description="Seconds that an agent may take for one task."
    )
    agent_request_timeout_s: float = Field(
        30.0, gt=0, le=300, description="Seconds to one answer of the agent's server."
    )
    agent_image_px: int = Field(
        1024, ge=256, le=1024, description="Longer side of the pictures that are sent to it."
    )
    agent_blank_border: float = Field(
        0.0,
        ge=0,
        le=0.4,
        description="Share of width and height that is black along each side in those pictures, "
        "for names and dates that are burnt in; 0: nothing.",
    )

    agent_below: float = Field(
        0.7,
        ge=0,
        le=1,
        description="Confidence of the model's own answer for a label, below which an agent looks "
        "at the task; 1: always.",
    )
    agent_requests_per_day: int = Field(
        1000, ge=0, description="Requests that one project's agent may make in a day (UTC)."
    )
    agent_tokens_per_day: int = Field(
        3_000_000, ge=0, description="Tokens that one project's agent may use in a day (UTC)."
    )
    agent_price_prompt: float | None = Field(
        None,
        ge=0,
        description="Price of a million tokens that are sent to the agent's server, for the costs "
        "in transcripts; empty: none are shown.",
        examples=["0.3"],
    )
    agent_price_completion: float | None = Field(
        None, ge=0, description="The same of a million tokens that it answers.", examples=["1.2"]
    )
    agent_keep_pictures: bool = Field(
        False, description="Keep the pictures that were sent to the agent with its transcripts."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        """`NAME=` says nothing; an empty line of a file sets nothing."""
        if isinstance(value, str):
            value = value.strip()
            if not value:
                raise PydanticUseDefault
        return value

    @field_validator(
        "label_studio_aliases",
        "allowed_image_hosts",
        "allowed_local_roots",
        "agent_allowed_hosts",
        mode="before",
    )
    @classmethod
    def _listed(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.startswith("[") and not re.match(r"\[[0-9a-fA-F.]*:", value):  # an IPv6 address
            try:
                return tuple(json.loads(value))
            except ValueError:
                raise ValueError("it begins like a JSON list and is none") from None
        return tuple(entry.strip() for entry in value.split(",") if entry.strip())

    @field_validator("label_studio_url", "agent_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        _check_address(value)
        return value.rstrip("/")

    @field_validator("label_studio_aliases")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            _check_address(entry if "://" in entry else f"http://{entry}")
        return tuple(entry.rstrip("/") for entry in value)

    @field_validator("allowed_image_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not re.fullmatch(
                r"(\*\.)?[\w-]+(\.[\w-]+)*\.?(:\d+)?|\[?[0-9a-fA-F:.]+\]?(:\d+)?", entry
            ):
                raise ValueError(
                    f"{entry[:60]!r} is no host name: write it without http:// and path"
                )
        return value

    @field_validator("label_studio_api_key", "agent_api_key")
    @classmethod
    def _is_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(
            r"[\w.~+/=-]+", value.get_secret_value(), re.ASCII
        ):
            raise ValueError("it holds spaces, quotes or other characters that no token has")
        return value

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str | None) -> str | None:
        from redis.connection import parse_url

        if value is not None:
            try:
                parse_url(value)
            except ValueError:
                raise ValueError("it must be redis://host:port, rediss:// or unix://") from None
        return value

    @field_validator("database_url")
    @classmethod
    def _is_database(cls, value: str | None) -> str | None:
        if value is not None:
            # Imported for a value alone: most commands need neither.
            from sqlalchemy import make_url
            from sqlalchemy.exc import ArgumentError

            try:
                kind = make_url(value).drivername
            except (ArgumentError, ValueError):  # ValueError: a port that is no number
                kind = ""
            if kind not in ("postgresql", "postgresql+psycopg", "sqlite", "sqlite+pysqlite"):
                raise ValueError("it must be a URL that begins with postgresql:// or sqlite:///")
        return value

    @field_validator("storage_url", "embedding_store_url")
    @classmethod
    def _is_storage(cls, value: str | None) -> str | None:
        if value and "://" in value:
            from fsspec import available_protocols

            if value.partition("://")[0] not in available_protocols():
                raise ValueError(
                    "it must be a folder, or begin with a protocol of fsspec such as s3://"
                )
        return value

    @field_validator("group_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"it is no regular expression: {error}") from None
        return value

    @field_validator("train_schedule")
    @classmethod
    def _comes_due(cls, value: str | None) -> str | None:
        return checked_schedule(value) if value else value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def database(self) -> str:
        """The database's SQLAlchemy URL, with the default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir / 'medsam3.db'}"

    @property
    def redis_socket(self) -> Path:
        """The embedded Redis's socket, when no `REDIS_URL` is set."""
        return self.data_dir / "redis.sock"

    @property
    def redis(self) -> str:
        """The URL at which every process reaches Redis."""
        return self.redis_url or f"unix://{self.redis_socket}"

    @property
    def storage(self) -> str:
        """The fsspec URL of the mask files, with the default filled in."""
        return self.storage_url or str(self.data_dir / "masks")

    @property
    def training_dir(self) -> Path:
        """Folder in which training runs keep what they need to resume."""
        return self.data_dir / "training"

    @property
    def embedding_dir(self) -> Path:
        """Folder of the image embeddings' disk cache."""
        return self.data_dir / "embeddings"


def _check_address(value: str) -> None:
    parts = urlsplit(value)  # ValueError: brackets without an address in them
    if parts.scheme not in ("http", "https"):
        raise ValueError("it must begin with http:// or https://")
    if not parts.hostname or re.search(r"\s", value) or parts.query or parts.fragment:
        raise ValueError("it must be the address of a server, without ? and #")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("its port must be a number from 0 to 65535") from None


def checked_schedule(line: str) -> str:
    """A cron line that comes due.

    Raises:
        ValueError: it is no cron line, or names a day that never comes, such as 30 February.
    """
    from croniter import CroniterBadDateError, CroniterError, croniter

    try:
        croniter(line, datetime.now(UTC)).get_next(datetime)
    except CroniterBadDateError:
        raise ValueError("this cron line never comes due; one that does is 0 3 * * *") from None
    except (CroniterError, ValueError, OverflowError):
        raise ValueError("this is no cron line such as 0 3 * * *") from None
    return line


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read once.

    Raises:
        SettingsError: a value cannot be used; one sentence for each, with an example.
    """
    return read_settings()


def read_settings(**values: Any) -> Settings:
    """Settings from the environment, the file `.env`, and `values`, which go before both.

    Raises:
        SettingsError: see `get_settings`.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise SettingsError("\n".join(dict.fromkeys(map(_sentence, faults)))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"The file .env in this folder cannot be read ({type(error).__name__}): it is text in "
            "UTF-8, one NAME=value a line."
        ) from None


def variable_of(name: str) -> str:
    """The environment variable that a field of `Settings` is read from."""
    alias = Settings.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return f"{Settings.model_config['env_prefix']}{name}".upper()


def _sentence(fault: ErrorDetails) -> str:
    """What is wrong with one value, without the value: it may be a secret."""
    place = str(fault["loc"][0]) if fault["loc"] else ""
    name = next((name for name in Settings.model_fields if place in _names_of(name)), "")
    if not name:
        return f"The settings cannot be used: {fault['msg']}."
    field, variable = Settings.model_fields[name], variable_of(name)
    reason = fault["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    reason = reason.partition(", unable to")[0]
    example = (field.examples or [field.default])[0]
    shown = "" if example is None else f", for example {variable}={example}"
    return f"{variable} cannot be used: {reason[0].lower()}{reason[1:]}{shown}."


def _names_of(field: str) -> Iterator[str]:
    yield field
    yield variable_of(field)
    yield variable_of(field).lower()
