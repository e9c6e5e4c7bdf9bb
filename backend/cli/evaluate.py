"""`medsam3 evaluate`: the figures of a model on a folder of images with masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from backend.cli.output import AsJson, progress_bar
from backend.settings import get_settings

if TYPE_CHECKING:
    from backend.agent.evaluation import AgentReport
    from medsam3_model import MedSAM3
    from medsam3_model.data.samples import Dataset
    from medsam3_model.evaluation.click_evaluation import ClickReport
    from medsam3_model.evaluation.propagation import PropagationReport
    from medsam3_model.evaluation.report import EvaluationReport

DataOption = Annotated[
    Path,
    typer.Option(
        help="Folder with images/ and masks/ (or masks/CONCEPT/), a COCO .json file, or "
        "`template` for held-out brain slices. In mode `propagate`: a NIfTI file, a folder with "
        "images/ and labels/, or `template` for the whole brain.",
        show_default=False,
    ),
]
PromptOption = Annotated[
    list[str] | None,
    typer.Option(
        help="What to ask for: a phrase, or `concept=phrase`; may be repeated. "
        "Default: every concept by its own name. In mode `propagate` a label's value stands for "
        "the concept: `5=liver`, `1+2=hippocampus`.",
        show_default=False,
    ),
]
ImageMode = Literal["t", "ti", "ti-jitter", "clicks", "box-clicks", "agent"]
ModeName = Literal["t", "ti", "ti-jitter", "clicks", "box-clicks", "propagate", "agent"]
ModeOption = Annotated[
    ModeName,
    typer.Option(
        help="`t` asks with text alone, `ti` with text and the true boxes, `ti-jitter` with "
        "boxes as a person draws them: each side off by a normal error of 8 % of the size. "
        "`clicks` clicks on each object, then on the largest error; `box-clicks` begins with "
        "such a box. `propagate` gives some slices of a volume and draws the others. `agent` has "
        "a partner prompt and choose, beside `t` and `ti`."
    ),
]
AgentOption = Annotated[
    str,
    typer.Option(
        help="Who prompts in mode `agent`: `server` (see docs/agent.md), or to measure the loop "
        "itself `oracle`, `noisy:0.2`, `random` or `first`."
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
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        help="In mode `propagate`: the NIfTI file, or the folder, with the true masks.",
        show_default=False,
    ),
]
SlicesOption = Annotated[
    int, typer.Option(min=1, max=20, help="Corrected slices, in mode `propagate`.")
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
    labels: LabelsOption = None,
    slices: SlicesOption = 3,
    agent: AgentOption = "server",
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
    many clicks it takes to .85 and .90. In mode `propagate`: 3D Dice after one, two, three
    corrected slices, beside what needs no model.

    Example: `medsam3 evaluate --data polyps/ --prompt polyp --mode ti-jitter`

    Example: `medsam3 evaluate --mode propagate --data ct.nii.gz --labels organs.nii.gz --prompt
    5=liver`
    """
    if labels is not None and mode != "propagate":
        raise typer.BadParameter("--labels are a volume's: use --mode propagate.")
    if mode == "propagate":
        volumes = _Volumes(data, labels, prompt or [], slices)
        _propagate(volumes, model, adapter, device, as_json=as_json)
        return
    from medsam3_model.data.datasets import load_dataset, load_images
    from medsam3_model.evaluation.evaluation import parse_prompts

    prompts = prompt or []
    if negatives and mode != "t":
        raise typer.BadParameter("--negatives are asked by text alone: use --mode t.")
    # A folder of masks without a concept's name is about the one that is asked for.
    only = prompts[0].partition("=")[0].strip() if len(prompts) == 1 else ""
    dataset = load_dataset(data, concept=only or "object")
    asked = _Asked(
        dataset=dataset,
        phrases=parse_prompts(prompts, dataset),
        others=[load_images(folder) for folder in negatives or []],
        mode=mode,
        clicks=clicks,
        partner=agent,
        split=split,
        mask=mask,
        seed=seed,
    )

    # Last: loading torch takes seconds, and what is wrong with the data shows before.
    from medsam3_model import MedSAM3

    judged = MedSAM3.from_pretrained(model, adapter=adapter, device=device)
    with progress_bar("Evaluating", quiet=as_json) as progress:
        report = _report(judged, asked, progress)
    _print(report, as_json=as_json)


@dataclass(frozen=True)
class _Volumes:
    """What mode `propagate` is to judge."""

    data: Path
    labels: Path | None
    prompts: Sequence[str]
    slices: int


def _propagate(
    asked: _Volumes, model: str, adapter: Path | None, device: str, *, as_json: bool
) -> None:
    """Judge propagation on volumes with masks."""
    from medsam3_model import MedSAM3
    from medsam3_model.evaluation.propagation import evaluate_propagation
    from medsam3_model.evaluation.volumes import TEMPLATE, read_volumes, volume_pairs

    template = str(asked.data) == TEMPLATE
    total = 1 if template else len(volume_pairs(asked.data, asked.labels))
    judged = MedSAM3.from_pretrained(model, adapter=adapter, device=device)
    with progress_bar("Evaluating", quiet=as_json) as progress:
        report = evaluate_propagation(
            judged,
            read_volumes(asked.data, asked.labels, asked.prompts),
            asked.data.name,
            slices=asked.slices,
            progress=lambda done: progress(done, total),
        )
    _print(report, as_json=as_json)


def _print(
    report: "EvaluationReport | ClickReport | AgentReport | PropagationReport", *, as_json: bool
) -> None:
    if as_json:
        typer.echo(report.to_json())
    else:
        from rich.console import Console

        Console().print(report.render())


@dataclass(frozen=True)
class _Asked:
    """What the options ask for."""

    dataset: "Dataset"
    phrases: Mapping[str, str]
    others: "Sequence[Dataset]"
    mode: ImageMode
    clicks: int
    partner: str
    split: Literal["all", "val"]
    mask: Literal["instances", "semantic"]
    seed: int


def _report(
    model: "MedSAM3", asked: _Asked, progress: Callable[[int, int], None]
) -> "EvaluationReport | ClickReport | AgentReport":
    """The report of the mode that was asked for."""
    options: Any = {"split": asked.split, "seed": asked.seed, "progress": progress}
    if asked.mode == "agent":
        from backend.agent.evaluation import evaluate_agent

        return evaluate_agent(
            model, asked.dataset, asked.phrases, asked.partner, get_settings(), **options
        )
    if asked.mode == "clicks" or asked.mode == "box-clicks":
        from medsam3_model.evaluation.click_evaluation import evaluate_clicks

        return evaluate_clicks(
            model, asked.dataset, asked.phrases, asked.mode, clicks=asked.clicks, **options
        )
    from medsam3_model.evaluation.evaluation import evaluate as run

    return run(
        model,
        asked.dataset,
        asked.phrases,
        asked.mode,
        others=asked.others,
        mask=asked.mask,
        **options,
    )
