"""`medsam3 evaluate`: how good a model is on a folder of images with masks."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

ModeOption = Annotated[
    Literal["t", "ti", "ti-jitter"],
    typer.Option(
        help="`t` asks with text alone, `ti` with text and the true boxes, `ti-jitter` with "
        "boxes as a person draws them: each side off by a normal error of 8 % of the size."
    ),
]
SplitOption = Annotated[
    Literal["all", "val"],
    typer.Option(help="`val` takes only the groups that training keeps for judging."),
]
NegativesOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Images without the concepts, to count false alarms in mode `t`: a folder of "
        "images or another data set; may be repeated.",
        show_default=False,
    ),
]
MaskOption = Annotated[
    Literal["instances", "semantic"],
    typer.Option(
        help="In mode t. `instances`: the union of what passed the threshold, else the "
        "semantic map. `semantic`: that map alone."
    ),
]


def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with images/ and masks/ (or masks/CONCEPT/), a COCO .json file, or "
            "`template` for held-out brain slices.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="What to ask for: a phrase, or `concept=phrase`; may be repeated. "
            "Default: every concept by its own name.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="A bundled model, a checkpoint's file or folder, or a hub id."),
    ] = "tiny",
    adapter: Annotated[
        Path | None, typer.Option(help="LoRA adapter to merge into the checkpoint.")
    ] = None,
    mode: ModeOption = "t",
    split: SplitOption = "all",
    negatives: NegativesOption = None,
    mask: MaskOption = "instances",
    seed: Annotated[int, typer.Option(min=0, help="Of the boxes' errors and the bootstrap.")] = 0,
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda` or `mps`.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with every image's figures.")
    ] = False,
) -> None:
    """Score a model on images with masks, beside what its boxes alone are worth.

    Dice, IoU, surface Dice, HD95 and presence per concept with 95 % intervals.

    Example: `medsam3 evaluate --data polyps/ --prompt polyp --mode ti-jitter`
    """
    from rich.console import Console

    from medsam3_model.data.datasets import load_dataset, load_images
    from medsam3_model.errors import MedSAM3Error
    from medsam3_model.evaluation.evaluation import evaluate as run
    from medsam3_model.evaluation.evaluation import parse_prompts

    prompts = prompt or []
    if negatives and mode != "t":
        raise typer.BadParameter("--negatives are asked by text alone: use --mode t.")
    try:
        # A folder of masks without a concept's name is about the one that is asked for.
        only = prompts[0].partition("=")[0].strip() if len(prompts) == 1 else ""
        dataset = load_dataset(data, concept=only or "object")
        phrases = parse_prompts(prompts, dataset)
        others = [load_images(folder) for folder in negatives or []]

        from medsam3_model import MedSAM3

        judged = MedSAM3.from_pretrained(model, adapter=adapter, device=device)
        with _progress_bar() as progress:
            report = run(
                judged,
                dataset,
                phrases,
                mode,
                split=split,
                others=others,
                mask=mask,
                seed=seed,
                progress=progress,
            )
    except MedSAM3Error as error:
        typer.echo(f"medsam3: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(report.to_json())
    else:
        Console(file=sys.stdout).print(report.render())


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on the error stream, so that --json leaves one object on the output."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("Evaluating", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
