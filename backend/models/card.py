"""Model cards: what a version was made from and what it can do, as Markdown."""

from backend.tables import GateVerdict, ModelVersion, Promotion


def markdown(
    version: ModelVersion, verdict: GateVerdict | None, promotions: list[Promotion]
) -> str:
    """A version's card for people."""
    card = version.card or {}
    adapter = f" + {version.adapter}" if version.adapter else ""
    origin = [f"- base checkpoint: {version.checkpoint}{adapter}"]
    if version.parent:
        origin += [f"- parent: {version.parent}", f"- project: {version.project_id}"]
    origin += [f"- made: {version.created_at:%Y-%m-%d %H:%M} UTC"]
    blocks = [[f"# {version.version}"], origin]
    if data := card.get("data"):
        sentence = (
            f"{data['training_images']} training and {data['validation_images']} validation images "
            f"of {data['groups']} groups; dataset version {data['dataset']} "
            f"(`{data['digest'][:12]}`), consensus of annotators: {data['consensus']}."
        )
        rows = [
            f"| {name} | {count['present']} | {count['absent']} |"
            for name, count in data["concepts"].items()
        ]
        head = ["| concept | images with it | images without it |", "| --- | --- | --- |"]
        blocks += [["## Data"], [sentence], head + rows]
    if training := card.get("training"):
        figures = {name: value for name, value in training.items() if name != "options"}
        values = [*figures.items(), *training.get("options", {}).items()]
        blocks += [["## Training"], [f"- {name}: {value}" for name, value in values]]
    if verdict:
        passed = "Passed" if verdict.passed else "Not passed"
        blocks += [["## Gate"], [f"{passed}, against {verdict.incumbent}:"]]
        blocks += [[f"- {reason}" for reason in verdict.reasons]]
        head = ["| concept | mode | images | before | after | change (95 %) |"]
        rows = [
            f"| {part['concept']} | {part['mode']} | {part['images']} | {part['incumbent']:.3f} | "
            f"{part['candidate']:.3f} | {part['difference']:+.3f} ({part['low']:+.3f} to "
            f"{part['high']:+.3f}) |"
            for part in verdict.figures["concepts"]
        ]
        blocks += [[*head, "| --- | --- | --- | --- | --- | --- |", *rows]]
        if foreign := verdict.figures.get("foreign_names"):
            sentence = (
                f"Asked {foreign['asked']} times for things that are not there, it marked "
                f"something {foreign['candidate']} times, the version before "
                f"{foreign['incumbent']} times."
            )
            blocks += [[sentence]]
    if promotions:
        served = [
            f"- {row.created_at:%Y-%m-%d %H:%M} UTC, project {row.project_id}: {row.kind}"
            for row in promotions
        ]
        blocks += [["## In service"], served]
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"
