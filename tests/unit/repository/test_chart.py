"""The Helm chart: what it makes is valid, asks for no more rights than it needs, and fits the code.

There is no cluster here; the objects are checked against Kubernetes' own schemas.
"""

import copy
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import typer
import yaml

from backend.cli.main import app
from backend.settings import Settings, variable_of
from tests.support.chart import CHART, EXAMPLES, example, one, render, rendered
from tests.support.repository import ROOT

# Their schemas come with their operators, not with Kubernetes.
OPERATORS = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor"}
WORKERS = ("ingest", "gpu", "trainer")


def pod(made: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = made["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_object_is_valid_for_kubernetes(path: Path) -> None:
    objects = rendered(path)
    assert {"Deployment", "Service", "Job"} <= {made["kind"] for made in objects}
    for made in objects:
        if made["kind"] not in OPERATORS:
            kubernetes_validate.validate(made, "1.37", strict=True)
    names = [(made["kind"], made["metadata"]["name"]) for made in objects]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_pod_is_root_or_writes_where_it_should_not(path: Path) -> None:
    for made in rendered(path):
        if made["kind"] not in ("Deployment", "Job"):
            continue
        assert pod(made)["securityContext"]["runAsNonRoot"] is True
        assert pod(made)["automountServiceAccountToken"] is False
        (container,) = pod(made)["containers"]
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] is True
        assert rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}


def test_no_secret_is_a_value() -> None:
    for made in rendered(CHART / "examples" / "gpu.yaml"):
        assert made["kind"] != "Secret"
        if made["kind"] in ("Deployment", "Job"):
            for variable in pod(made)["containers"][0]["env"]:
                secret = any(word in variable["name"] for word in ("PASSWORD", "TOKEN", "API_KEY"))
                assert ("valueFrom" in variable) == (secret or "SECRET" in variable["name"])


def test_commands_and_settings_exist() -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    settings = {variable_of(name) for name in Settings.model_fields}
    # What libraries read, and what is put together out of two.
    others = {"PG_PASSWORD", "REDIS_PASSWORD", "HF_TOKEN", "AWS_ACCESS_KEY_ID"}
    others.add("AWS_SECRET_ACCESS_KEY")
    for path in EXAMPLES:
        for made in rendered(path):
            if made["kind"] in ("Deployment", "Job"):
                (container,) = pod(made)["containers"]
                assert container["args"][0] == "medsam3"
                assert container["args"][1] in commands
                names = {variable["name"] for variable in container["env"]}
                assert names <= settings | others


def test_a_value_that_is_missing_is_named() -> None:
    for keys in (
        ("image", "web"),
        ("labelStudioUrl",),
        ("labelStudioApiKey",),
        ("pgConfig", "host"),
        ("pgConfig", "password"),
        ("redisConfig", "host"),
        ("storageUrl",),
        ("apiToken",),
    ):
        values = copy.deepcopy(example("cpu"))
        inner = values["global"]
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        with pytest.raises(helm_python.HelmError, match=rf"global\.{'.'.join(keys)}: "):
            render(values)


def test_an_agent_has_its_worker_where_one_is_wanted() -> None:
    wanted = one(rendered(CHART / "examples" / "fixed.yaml"), "Deployment", "agent")
    (container,) = pod(wanted)["containers"]
    assert container["args"] == ["medsam3", "worker", "--queue", "agent"]
    assert "MEDSAM3_AGENT_URL" in {variable["name"] for variable in container["env"]}
    others = rendered(CHART / "examples" / "cpu.yaml")
    assert not [made for made in others if made["metadata"]["name"].endswith("-agent")]


def test_gpu_workers_are_scaled_by_rows_and_end_in_peace() -> None:
    objects = rendered(CHART / "examples" / "gpu.yaml")
    deployment = one(objects, "Deployment", "gpu")
    scaled = one(objects, "ScaledObject", "gpu")["spec"]
    # KEDA decides on the number; a fixed one would undo it at every upgrade.
    assert "replicas" not in deployment["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert scaled["minReplicaCount"] < scaled["maxReplicaCount"]
    (trigger,) = scaled["triggers"]
    assert trigger["type"] == "postgresql"
    assert set(trigger["metadata"]) >= {"host", "port", "userName", "dbName", "query"}
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert "suggestions" in trigger["metadata"]["query"]
    access = one(objects, "TriggerAuthentication", "gpu")
    assert trigger["authenticationRef"]["name"] == access["metadata"]["name"]
    assert access["spec"]["secretTargetRef"] == [
        {"parameter": "password", "name": "masks", "key": "database-password"}
    ]
    # A chunk of tasks at full size takes half a minute each on slow machines.
    assert pod(deployment)["terminationGracePeriodSeconds"] >= 120
    assert (
        one(rendered(CHART / "examples" / "fixed.yaml"), "Deployment", "gpu")["spec"]["replicas"]
        == 2
    )


def test_prometheus_reads_the_web_process_with_its_token() -> None:
    objects = rendered(CHART / "examples" / "gpu.yaml")
    (endpoint,) = one(objects, "ServiceMonitor", "web")["spec"]["endpoints"]
    service = one(objects, "Service", "web")
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["authorization"]["credentials"] == {"name": "masks", "key": "api-token"}
    selector = one(objects, "ServiceMonitor", "web")["spec"]["selector"]["matchLabels"]
    assert selector.items() <= service["metadata"]["labels"].items()
    assert (
        service["spec"]["selector"].items()
        <= one(objects, "Deployment", "web")["spec"]["template"]["metadata"]["labels"].items()
    )


def test_workers_are_watched_by_their_own_queue() -> None:
    objects = rendered(CHART / "examples" / "gpu.yaml")
    for part in WORKERS:
        (container,) = pod(one(objects, "Deployment", part))["containers"]
        queue = container["livenessProbe"]["exec"]["command"][-1]
        assert queue == ("train" if part == "trainer" else part)
        assert one(objects, "PodDisruptionBudget", part)["spec"]["maxUnavailable"] == 1


def test_every_value_is_documented() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    names = {f"global.{name}" for name in values["global"]} | set(values) - {"global"}
    assert not [name for name in sorted(names) if f"`{name}" not in text]
