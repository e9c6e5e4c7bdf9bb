"""`medsam3 evaluate`: the figures of a model on a folder of images with masks."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from backend.cli.output import AsJson, progress_bar

DataOption = Annotated[
    Path,
    typer.Option(
        help="Folder with images/ and masks/ (or masks/CONCEPT/), a COCO .json file, or "
        "`template` for held-out brain slices.",
        show_default=False,
    ),
]
PromptOption = Annotated[
    list[str] | None,
    typer.Option(
        help="What to ask for: a phrase, or `concept=phrase`; may be repeated. "
        "Default: every concept by its own name.",
        show_default=False,
    ),
]
ModeOption = Annotated[
    Literal["t", "ti", "ti-jitter", "clicks", "box-clicks"],
    typer.Option(
        help="`t` asks with text alone, `ti` with text and the true boxes, `ti-jitter` with "
        "boxes as a person draws them: each side off by a normal error of 8 % of the size. "
        "`clicks` clicks on each object, then on the largest error; `box-clicks` begins with "
        "such a box."
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
ClicksOption = Annotated[
    int, typer.Option(min=1, max=100, help="On each object, in modes `clicks` and `box-clicks`.")
]
MaskOption = Annotated[
    Literal["instances", "semantic"],
    typer.Option(
        help="In mode t. `instances`: the union of what passed the threshold, else the "
        "semantic map. `semantic`: that map alone."
    ),
]


def evaluate(
    data: DataOption,
    prompt: PromptOption = None,
    model: Annotated[
        str,
        typer.Option(help="A bundled model, a checkpoint's file or folder, or a hub id."),
    ] = "tiny",
    adapter: Annotated[
        Path | None, typer.Option(help="LoRA adapter to merge into the checkpoint.")
    ] = None,
    mode: ModeOption = "t",
    clicks: ClicksOption = 5,
    split: SplitOption = "all",
    negatives: NegativesOption = None,
    mask: MaskOption = "instances",
    seed: Annotated[int, typer.Option(min=0, help="Of the boxes' errors and the bootstrap.")] = 0,
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda` or `mps`.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a model on images with masks, beside what its boxes alone are worth.

    Dice, IoU, surface Dice, HD95 and presence per concept with 95 % intervals; `--json` prints
    every image's figures too. In modes `clicks` and `box-clicks`: Dice after each click, and how
    many clicks it takes to .85 and .90.

    Example: `medsam3 evaluate --data polyps/ --prompt polyp --mode ti-jitter`
    """
    from rich.console import Console

    from medsam3_model.data.datasets import load_dataset, load_images
    from medsam3_model.evaluation.click_evaluation import ClickReport, evaluate_clicks
    from medsam3_model.evaluation.evaluation import evaluate as run
    from medsam3_model.evaluation.evaluation import parse_prompts
    from medsam3_model.evaluation.report import EvaluationReport

    prompts = prompt or []
    if negatives and mode != "t":
        raise typer.BadParameter("--negatives are asked by text alone: use --mode t.")
    # A folder of masks without a concept's name is about the one that is asked for.
    only = prompts[0].partition("=")[0].strip() if len(prompts) == 1 else ""
    dataset = load_dataset(data, concept=only or "object")
    phrases = parse_prompts(prompts, dataset)
    others = [load_images(folder) for folder in negatives or []]

    # Last: loading torch takes seconds, and what is wrong with the data shows before.
    from medsam3_model import MedSAM3

    judged = MedSAM3.from_pretrained(model, adapter=adapter, device=device)
    with progress_bar("Evaluating", quiet=as_json) as progress:
        report: EvaluationReport | ClickReport
        if mode == "clicks" or mode == "box-clicks":
            report = evaluate_clicks(
                judged,
                dataset,
                phrases,
                mode,
                clicks=clicks,
                split=split,
                seed=seed,
                progress=progress,
            )
        else:
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
    if as_json:
        typer.echo(report.to_json())
    else:
        Console().print(report.render())
