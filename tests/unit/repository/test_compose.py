"""docker-compose.yml and Dockerfile, as far as they can be checked without a Docker engine.

What the services run is run by tests/integration/processes/test_compose.py, outside containers;
tests/integration/repository/test_compose.py runs what checks and builds.
"""

import re
import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from backend.cli.main import app
from backend.settings import Settings
from tests.support.compose import (
    COMPOSE_FILE,
    SECRETS,
    STAGES,
    MissingVariableError,
    compose,
    services,
)
from tests.support.repository import ROOT

OURS = {
    "web",
    "ingest-worker",
    "agent-worker",
    "gpu-worker",
    "cpu-worker",
    "gpu-trainer",
    "cpu-trainer",
}
ALL = OURS | {"label-studio", "postgres", "redis"}


def test_has_every_process() -> None:
    assert services().keys() == ALL


def test_a_missing_secret_stops_with_a_sentence() -> None:
    for name in SECRETS:
        others = {key: secret for key, secret in SECRETS.items() if key != name}
        for given in (others, {**others, name: ""}):
            with pytest.raises(MissingVariableError, match=rf"{name}: write .*\.env"):
                compose(given)


def test_no_secret_has_a_default() -> None:
    text = COMPOSE_FILE.read_text()
    names = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    required = set(re.findall(r"(?<!\$)\$\{(\w+):\?", text))
    assert required == set(SECRETS)
    assert not [name for name in names - required if re.search("PASSWORD|KEY|TOKEN", name)]


def test_every_variable_is_documented() -> None:
    names = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE_FILE.read_text()))
    documented = (ROOT / "docs" / "deployment.md").read_text()
    assert not [name for name in sorted(names) if f"`{name}`" not in documented]


def test_services_have_no_more_rights_than_they_need() -> None:
    refused = {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"}
    assert not [
        name
        for name, service in services().items()
        if service["cap_drop"] != ["ALL"]
        or service["security_opt"] != ["no-new-privileges:true"]
        or refused & service.keys()
        or any("docker.sock" in volume for volume in service["volumes"])
    ]


def test_services_are_watched_and_restarted() -> None:
    timing = {"interval", "timeout", "retries", "start_period"}
    assert not [
        name
        for name, service in services().items()
        if service["restart"] != "unless-stopped"
        or service["healthcheck"]["test"][0] != "CMD"
        or not timing < service["healthcheck"].keys()
    ]


def test_services_wait_for_what_they_need() -> None:
    healthy = {"condition": "service_healthy"}
    for name in OURS:
        assert services()[name]["depends_on"] == {"postgres": healthy, "redis": healthy}
    assert services()["label-studio"]["depends_on"] == {"postgres": healthy}


def test_ours_are_read_only_and_write_to_their_volume() -> None:
    writable = {
        "read_only": True,
        "tmpfs": ["/tmp"],
        "volumes": ["medsam3-data:/data", "models:/models:ro"],
    }
    assert not [name for name in OURS if not writable.items() <= services()[name].items()]


def test_only_label_studio_can_be_reached_and_only_from_this_machine() -> None:
    published = {
        name: service["ports"] for name, service in services().items() if "ports" in service
    }
    assert published == {"label-studio": ["127.0.0.1:8080:8080"]}


def test_label_studio_shares_one_network_with_the_backend_and_none_with_redis() -> None:
    # Two shared networks would give the name `web` two addresses, one of which is refused.
    networks = {name: set(service["networks"]) for name, service in services().items()}
    assert networks["label-studio"] & networks["web"] == {"front"}
    assert networks["label-studio"] & networks["redis"] == set()
    for name in OURS:
        assert networks[name] == {"front", "backend"}
    defined = compose(SECRETS)["networks"]
    assert defined["backend"] == {"internal": True}
    assert defined["label-studio-database"] == {"internal": True}
    assert set().union(*networks.values()) == defined.keys()


def test_label_studios_list_of_refused_networks_leaves_out_the_backends_alone() -> None:
    environment = services()["label-studio"]["environment"]
    assert environment["LABEL_STUDIO_USE_DEFAULT_BANNED_SUBNETS"] == "false"
    assert "LABEL_STUDIO_ML_BLOCK_LOCAL_IP" not in environment
    assert "LABEL_STUDIO_SSRF_PROTECTION_ENABLED" not in environment
    listed = environment["LABEL_STUDIO_USER_ADDITIONAL_BANNED_SUBNETS"].split(",")
    refused = {ip_network(entry) for entry in listed if ":" not in entry}
    front = ip_network(compose(SECRETS)["networks"]["front"]["ipam"]["config"][0]["subnet"])
    private = ip_network("172.16.0.0/12")
    holed = {network for network in refused if network.subnet_of(private)}
    assert holed == set(private.address_exclude(front))


def test_database_and_queue_lose_nothing() -> None:
    command = services()["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    for name, folder in [
        ("redis", "/data"),
        ("postgres", "/var/lib/postgresql/data"),
        ("label-studio", "/label-studio/data"),
    ]:
        volume, _, target = services()[name]["volumes"][0].partition(":")
        assert target == folder
        assert volume in compose(SECRETS)["volumes"]


def test_one_of_two_has_the_gpu_the_other_needs_none() -> None:
    for kind in ("worker", "trainer"):
        gpu, cpu = services()[f"gpu-{kind}"], services()[f"cpu-{kind}"]
        assert (gpu["profiles"], cpu["profiles"]) == (["gpu"], ["cpu"])
        (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        assert "deploy" not in cpu
        assert cpu["build"]["args"]["TORCH_INDEX"].endswith("/whl/cpu")
        assert gpu["command"] == cpu["command"]


def test_the_commands_of_services_are_ours() -> None:
    commands = typer.main.get_group(app).commands
    for name in OURS:
        program, command, *arguments = services()[name]["command"]
        assert program == "medsam3", name
        # Raises where there is no such command, or where it does not take the arguments.
        context = commands[command].make_context(command, [*arguments])
        chosen = {"web": "host", "worker": "queue"}.get(command)
        assert chosen is None or context.params[chosen] == arguments[-1], name


def test_the_environment_of_services_is_what_the_settings_read() -> None:
    read = {
        "label_studio_url": "http://label-studio:8080",
        "redis": "redis://redis:6379/0",
        "database": f"postgresql://medsam3:{SECRETS['MEDSAM3_DB_PASSWORD']}@postgres:5432/medsam3",
        "data_dir": Path("/data"),
        "worker_memory_mb": 16384,
    }
    for name in OURS:
        environment = services()[name]["environment"]
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in environment.items():
                patch.setenv(variable, value)
            settings = Settings(_env_file=None)
        assert {field: getattr(settings, field) for field in read} == read, name
        assert settings.label_studio_api_key is not None, name
        key = settings.label_studio_api_key.get_secret_value()
        assert key == SECRETS["LABEL_STUDIO_API_KEY"], name
        assert len(environment) == len(read) + 1, f"{name}: a variable that nothing above knows"


@pytest.mark.parametrize("mb", ["", "8000"])
def test_workers_are_ended_where_they_pass_the_limit_that_they_set_themselves(mb: str) -> None:
    filled = compose({**SECRETS, "WORKER_MEMORY_MB": mb})["services"]
    for name in ("ingest-worker", "gpu-worker", "cpu-worker"):
        service = filled[name]
        assert service["environment"]["MEDSAM3_WORKER_MEMORY_MB"] == (mb or "16384")
        assert service["mem_limit"] == f"{mb or 16384}m"


def test_both_databases_have_a_user_of_their_own() -> None:
    postgres, label_studio = services()["postgres"], services()["label-studio"]
    environment = label_studio["environment"]
    assert environment["POSTGRE_NAME"] == postgres["environment"]["POSTGRES_DB"]
    assert environment["POSTGRE_USER"] == postgres["environment"]["POSTGRES_USER"]
    assert environment["POSTGRE_PASSWORD"] == postgres["environment"]["POSTGRES_PASSWORD"]
    assert "medsam3:" not in str(environment)
    # Compose cannot write a config into a container whose root is read-only.
    assert postgres["configs"]
    assert "read_only" not in postgres


def test_images_are_built_and_run_without_root() -> None:
    for name in OURS:
        build = services()[name]["build"]
        stage = STAGES[build["target"]]
        assert re.findall(r"^USER (\S+)", stage, re.MULTILINE) == ["10001:10001"], name
        for argument in build.get("args", {}):
            assert f"ARG {argument}" in STAGES[f"build-{build['target']}"], name


def test_the_images_context_holds_what_the_build_needs_and_no_more() -> None:
    first, *rest = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert first == "*"
    kept = {line[1:] for line in rest if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        pattern.rstrip("*")
        for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    files = {"pyproject.toml", "constraints.txt", project["project"]["readme"]}
    assert kept == packages | files | set(project["project"]["license-files"])
    for name in kept:
        assert (ROOT / name).exists(), name


def test_another_torch_is_pinned_to_the_version_that_is_tested() -> None:
    pinned = re.findall(r"^(torch|torchvision)==", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned == ["torch", "torchvision"]


def test_the_file_uses_no_key_twice() -> None:
    # YAML readers keep the last of two equal keys; Compose refuses the file.
    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if key.value != "<<"]
            assert len(keys) == len(set(keys)), f"{keys} in line {node.start_mark.line + 1}"
            return super().construct_mapping(node, deep)

    yaml.load(COMPOSE_FILE.read_text(), Strict)  # noqa: S506 a safe loader's subclass
