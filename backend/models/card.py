"""Model cards: what a version was made from and what it can do, as Markdown."""

from backend.tables import GateVerdict, ModelVersion, Promotion


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
            f"of {data['groups']} groups; dataset version {data['dataset']} "
            f"(`{data['digest'][:12]}`), consensus of annotators: {data['consensus']}.",
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
            f"| {part['concept']} | {part['mode']} | {part['images']} | {part['incumbent']:.3f} | "
            f"{part['candidate']:.3f} | {part['difference']:+.3f} ({part['low']:+.3f} to "
            f"{part['high']:+.3f}) |"
            for part in verdict.figures["concepts"]
        ]
        lines += [""]
    if promotions:
        lines += ["## In service", ""]
        lines += [
            f"- {row.created_at:%Y-%m-%d %H:%M} UTC, project {row.project_id}: {row.kind}"
            for row in promotions
        ]
    return "\n".join(lines).rstrip() + "\n"
