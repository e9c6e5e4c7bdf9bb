"""The Helm chart, rendered as helm renders it."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.repository import ROOT

CHART = ROOT / "deploy" / "helm"
EXAMPLES = tuple(sorted((CHART / "examples").glob("*.yaml")))


def example(name: str) -> dict[str, Any]:
    """The values of one of the chart's examples."""
    values: dict[str, Any] = yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text())
    return values


def render(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects that the chart makes of these values, as release `demo` in namespace `prod`."""
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(dict(values), name="demo", namespace="prod")
    return [
        made
        for name, text in sorted(files.items())
        if name.endswith(".yaml")
        for made in yaml.safe_load_all(text)
        if made
    ]


@cache
def rendered(path: Path) -> list[dict[str, Any]]:
    """The objects that the chart makes of a file of values."""
    return render(yaml.safe_load(path.read_text()))


def one(objects: list[dict[str, Any]], kind: str, part: str) -> dict[str, Any]:
    """The only object of a kind for a part of the product, such as `gpu`."""
    (found,) = (
        made
        for made in objects
        if made["kind"] == kind and made["metadata"]["name"] == f"demo-medsam3-{part}"
    )
    return found
