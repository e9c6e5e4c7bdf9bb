"""`medsam3 agent ...`: a language model guides the segmentation of one image, and what it did."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from backend.cli.output import AsJson, print_json, say

agent = typer.Typer(
    name="agent",
    help="A language model that looks at masks and prompts again; see docs/agent.md.",
    no_args_is_help=True,
)


@agent.command("try")
def try_image(
    image: Annotated[Path, typer.Argument(help="An image file.", show_default=False)],
    prompt: Annotated[
        str, typer.Option(help="What to outline, a short noun phrase.", show_default=False)
    ],
    instruction: Annotated[
        str, typer.Option(help="In words, for the language model alone.", show_default=False)
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Where the mask is written, as PNG.", show_default=False)
    ] = None,
    model: Annotated[
        str, typer.Option(help="A bundled model, a checkpoint's file or folder, or a hub id.")
    ] = "tiny",
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda` or `mps`.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Let the agent's server outline something in one image, and print what it did.

    `--json` prints the transcript: what was asked and answered, hashes instead of pictures,
    tokens and seconds.

    Example: `medsam3 agent try scan.png --prompt "breast tumor" --instruction "the larger one"`
    """
    from backend.agent.asking import ask_server
    from backend.agent.consent import check_consent
    from backend.agent.loop import Question
    from backend.agent.segmenter import ModelSegmenter
    from backend.settings import get_settings
    from medsam3_model.images.reading import read_image

    settings = get_settings()
    check_consent(settings)
    pixels = read_image(image)
    # Last: loading torch takes seconds, and what is wrong before shows first.
    from medsam3_model import MedSAM3

    segmenting = MedSAM3.from_pretrained(model, device=device)
    segmenter = ModelSegmenter(segmenting, segmenting.encode_image(pixels), prompt)
    asked = ask_server(segmenter, pixels, Question(prompt, prompt, instruction), settings)
    result = asked.result
    if out is not None:
        from PIL import Image

        Image.fromarray(result.board.union(c.number for c in result.masks)).save(out, "PNG")
        say(f"The mask is in {out}.")
    summary: dict[str, Any] = {
        "ending": str(result.ending),
        "reason": result.reason,
        "masks": [candidate.number for candidate in result.masks],
        "rounds": result.rounds,
        "requests": asked.requests,
        "seconds": round(result.seconds, 3),
        "log": list(result.log),
    }
    if as_json:
        print_json({**summary, "transcript": [asdict(exchange) for exchange in asked.transcript]})
        return
    for line in result.log:
        typer.echo(f"  {line}")
    typer.echo(f"{summary['ending']}: {result.reason}")
    typer.echo(f"{asked.requests} requests, {result.seconds:.1f} s")


@agent.command("show")
def show(
    task: Annotated[int, typer.Argument(help="A task's id in Label Studio.", show_default=False)],
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder for the pictures that were kept, as JPEG.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what agents did on a task, newest run first; `--json` has the whole transcripts.

    Example: `medsam3 agent show 487`
    """
    from sqlalchemy import select

    from backend.errors import AgentError
    from backend.predictions.agent_transcripts import runs_of, transcript
    from backend.services import open_services
    from backend.tables import AgentPicture

    with open_services().database.reading() as session:
        shown = [transcript(run) for run in runs_of(session, None, task, 100)]
        kept = select(AgentPicture).where(AgentPicture.run_id.in_([run["id"] for run in shown]))
        files = {row.sha256: row.jpeg for row in session.scalars(kept)} if pictures else {}
    if not shown:
        raise AgentError(
            f"No agent has looked at task {task}; see docs/agent.md for when one does."
        )
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for sha256, jpeg in files.items():
            (pictures / f"{sha256}.jpg").write_bytes(jpeg)
        say(f"{len(files)} pictures are in {pictures}.")
    if as_json:
        print_json(shown)
        return
    for run in shown:
        _print_run(run)


def _print_run(run: dict[str, Any]) -> None:
    typer.echo(f"{run['created_at'][:19]}  {run['state']}  {run['error'] or ''}".rstrip())
    if run["instruction"]:
        typer.echo(f"  instruction: {_printable(run['instruction'])}")
    for outcome in run["outcomes"]:
        for line in outcome["log"]:
            typer.echo(f"  {_printable(line)}")
        reason = _printable(outcome["reason"])
        typer.echo(f"  {outcome['label']}: {outcome['ending']}, {reason}")
    tokens = run["prompt_tokens"] + run["completion_tokens"]
    cost = "" if run["cost"] is None else f", cost {run['cost']:.4f}"
    typer.echo(f"  {run['requests']} requests, {tokens} tokens, {run['seconds']:.1f} s{cost}")


def _printable(text: str) -> str:
    """A language model's words without what a terminal would carry out."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
