"""What a version was made from and what it can do: kept with it, shown as Markdown."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from backend.tables import GateVerdict, ModelVersion, Promotion
from backend.training.examples import Snapshot
from backend.training.options import RunOptions


def make(snapshot: Snapshot, options: RunOptions, training: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a card that is known when training ends; JSON values."""
    return {
        "data": {
            "dataset": snapshot.dataset_id,
            "digest": snapshot.digest,
            "consensus": options.consensus,
            "training_images": len(snapshot.of("train")),
            "validation_images": len(snapshot.of("val")),
            "groups": len({example.group for example in snapshot.examples}),
            "concepts": _counts(snapshot),
        },
        "training": {"options": options.as_json(), **training},
    }


def markdown(
    version: ModelVersion, verdict: GateVerdict | None, promotions: list[Promotion]
) -> str:
    """A version's card for people."""
    card = version.card or {}
    lines = [f"# {version.version}", ""]
    lines += [
        f"- base checkpoint: {version.checkpoint}"
        + (f" + {version.adapter}" if version.adapter else "")
    ]
    if version.parent:
        lines += [f"- parent: {version.parent}", f"- project: {version.project_id}"]
    lines += [f"- made: {version.created_at:%Y-%m-%d %H:%M} UTC", ""]
    if data := card.get("data"):
        lines += [
            "## Data",
            "",
            f"{data['training_images']} training and {data['validation_images']} validation images "
            f"of {data['groups']} groups; snapshot {data['dataset']} (`{data['digest'][:12]}`), "
            f"consensus of annotators: {data['consensus']}.",
            "",
            "| concept | images with it | images without it |",
            "| --- | --- | --- |",
        ]
        lines += [
            f"| {name} | {count['present']} | {count['absent']} |"
            for name, count in data["concepts"].items()
        ]
        lines += [""]
    if training := card.get("training"):
        lines += ["## Training", ""]
        lines += [f"- {name}: {value}" for name, value in training.items() if name != "options"]
        lines += [f"- {name}: {value}" for name, value in training.get("options", {}).items()]
        lines += [""]
    if verdict:
        lines += [
            "## Gate",
            "",
            f"{'Passed' if verdict.passed else 'Not passed'}, against {verdict.incumbent}:",
            "",
        ]
        lines += [f"- {reason}" for reason in verdict.reasons]
        lines += [
            "",
            "| concept | mode | images | before | after | change (95 %) |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {one['concept']} | {one['mode']} | {one['images']} | {one['incumbent']:.3f} | "
            f"{one['candidate']:.3f} | {one['difference']:+.3f} ({one['low']:+.3f} to "
            f"{one['high']:+.3f}) |"
            for one in verdict.figures["concepts"]
        ]
        lines += [""]
    if promotions:
        lines += ["## In service", ""]
        lines += [
            f"- {one.created_at:%Y-%m-%d %H:%M} UTC, project {one.project_id}: {one.kind}"
            for one in promotions
        ]
    return "\n".join(lines).rstrip() + "\n"


def _counts(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    present: Counter[str] = Counter()
    absent: Counter[str] = Counter()
    for example in snapshot.examples:
        for phrase, drawn in example.masks.items():
            (present if any(drawn) else absent)[phrase] += 1
    return {
        phrase: {"present": present[phrase], "absent": absent[phrase]}
        for phrase in snapshot.concepts
    }
