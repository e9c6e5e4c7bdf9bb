"""Evaluation of the loop: Dice of an agent beside text alone and text with true boxes, in one run.

Whether a partner is worth its requests shows only on the same images: each is encoded once, and
all three answers come from that.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.agent.asking import ask_server
from backend.agent.consent import check_consent
from backend.agent.loop import Limits, LoopResult, Partner, PartnerView, Question, run_loop
from backend.agent.partner import Exchange
from backend.agent.partners import built_in_partner
from backend.agent.segmenter import ModelSegmenter
from backend.agent.tools import Action
from backend.settings import Settings

if TYPE_CHECKING:
    from rich.console import Group

    from medsam3_model import MedSAM3
    from medsam3_model.data.masks import ConceptTruth
    from medsam3_model.data.samples import Dataset, Sample
    from medsam3_model.evaluation.metrics import Interval, PairedDifference
    from medsam3_model.types import ImageEmbedding, Window


@dataclass(frozen=True)
class AgentImage:
    """One concept in one image: three Dice values, and how the loop went.

    Attributes:
        text, boxes, agent: Dice of text alone, of text and the true boxes, and of the loop.
        ending, reason: how the loop ended; see `backend.agent.loop.Ending`.
        log: what happened, one sentence for each action.
        transcript: what was asked and answered, without pixels; of a server.
    """

    name: str
    group: str
    concept: str
    text: float
    boxes: float
    agent: float
    ending: str
    reason: str
    rounds: int
    requests: int
    seconds: float
    log: tuple[str, ...]
    transcript: tuple[Exchange, ...] = ()


@dataclass(frozen=True)
class AgentConcept:
    """Means over the images that hold a concept, with 95 % intervals over groups.

    Attributes:
        text, boxes, agent: Dice of text alone, of text and the true boxes, and of the loop.
        over_text, over_boxes: the loop's Dice minus theirs, image by image.
        endings: how many loops ended how.
        requests, seconds: of an image, in the mean.
    """

    concept: str
    phrase: str
    images: int
    text: "Interval"
    boxes: "Interval"
    agent: "Interval"
    over_text: "PairedDifference"
    over_boxes: "PairedDifference"
    endings: Mapping[str, int]
    requests: float
    seconds: float


@dataclass(frozen=True)
class AgentReport:
    """Everything that `medsam3 evaluate --mode agent` measured."""

    model: str
    dataset: str
    split: Literal["all", "val"]
    partner: str
    rounds: int
    seed: int
    concepts: tuple[AgentConcept, ...]
    images: tuple[AgentImage, ...]

    def to_json(self, *, indent: int | None = 2) -> str:
        """All of it as JSON, with the published figure and that it was not measured."""
        from medsam3_model.evaluation.report import PUBLISHED, PUBLISHED_SETS, PUBLISHED_SOURCE

        published = {
            "source": PUBLISHED_SOURCE,
            "measured_here": False,
            "sets": list(PUBLISHED_SETS),
            "dice": list(PUBLISHED["MedSAM-3 Agent"]),
        }
        values = asdict(self) | {"mode": "agent", "published": published}
        return json.dumps(values, indent=indent, allow_nan=False, ensure_ascii=False)

    def render(self) -> "Group":
        """Tables for a terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=f"{self.model} on {self.dataset} ({self.split}), agent: {self.partner}",
            title_justify="left",
            box=SIMPLE_HEAD,
        )
        headings = ("images", "T", "T+I", "agent", "agent − T", "agent − T+I", "requests", "s")
        table.add_column("concept")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.concepts:
            table.add_row(
                row.concept,
                str(row.images),
                *(f"{value.mean:.3f}" for value in (row.text, row.boxes, row.agent)),
                *(f"{value.mean:+.3f}" for value in (row.over_text, row.over_boxes)),
                f"{row.requests:.1f}",
                f"{row.seconds:.1f}",
            )
        endings: Counter[str] = Counter()
        for row in self.concepts:
            endings.update(row.endings)
        counted = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
        notes = (
            f"Mean Dice; T+I with the true boxes; requests and seconds of the loop for an image.\n"
            f"How the loops ended: {counted}.\n"
            "Published for MedSAM-3's agent on BUSI, not measured here: .806."
        )
        return Group(table, Text(notes, style="dim"))


class _Counted:
    """A partner whose actions are counted."""

    def __init__(self, partner: Partner) -> None:
        self._partner = partner
        self.requests = 0

    def act(self, view: PartnerView, timeout_s: float) -> Action:
        self.requests += 1
        return self._partner.act(view, timeout_s)


def evaluate_agent(
    model: "MedSAM3",
    dataset: "Dataset",
    prompts: Mapping[str, str],
    partner: str,
    settings: Settings,
    *,
    split: Literal["all", "val"] = "all",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> AgentReport:
    """Run the loop on every image that holds a concept.

    Args:
        model: the segmenter.
        dataset: images with masks.
        prompts: the phrase to ask with, by concept.
        partner: `server` for the one of the settings, or a built-in one.
        settings: of the server and the rounds.
        split: "val" takes the groups that `datasets.split_of_group` keeps for judging.
        seed: of random actions and of the bootstrap.
        progress: called with the number of images done and their total.

    Raises:
        AgentConsentError: the settings do not allow that anything is sent to the server.
        SettingsError: there is no such partner.
        DatasetError, ImageError: the data cannot be read, or nothing is left to evaluate.
    """
    from medsam3_model.errors import DatasetError

    if partner == "server":
        check_consent(settings)
    else:
        built_in_partner(partner, np.zeros((1, 1), np.bool_), np.zeros((0, 4), np.float32), "")
    dataset.check_concepts(prompts)
    judged = dataset.split("val") if split == "val" else dataset
    samples = [sample for sample in judged if sample.concepts & set(prompts)]
    if not samples:
        raise DatasetError(f"{dataset.name} has no images for split '{split}' in mode 'agent'.")
    images: list[AgentImage] = []
    for done, sample in enumerate(samples, start=1):
        pixels = sample.image()
        embedding = model.encode_image(pixels)
        for concept, phrase in prompts.items():
            truth = sample.read(concept)
            if truth is None:
                continue
            sample.check_size(concept, truth, pixels)
            judge = _Judge(model, pixels, embedding, settings, partner, seed)
            images.append(judge.image(sample, concept, phrase, truth))
        if progress is not None:
            progress(done, len(samples))
    return AgentReport(
        model=model.version,
        dataset=dataset.name,
        split=split,
        partner=partner,
        rounds=settings.agent_rounds,
        seed=seed,
        concepts=tuple(
            _summarise(concept, phrase, images, seed) for concept, phrase in prompts.items()
        ),
        images=tuple(images),
    )


@dataclass(frozen=True, eq=False)
class _Judge:
    """Asks for one image three times."""

    model: "MedSAM3"
    pixels: NDArray[np.uint8]
    embedding: "ImageEmbedding"
    settings: Settings
    partner: str
    seed: int

    def image(
        self, sample: "Sample", concept: str, phrase: str, truth: "ConceptTruth"
    ) -> AgentImage:
        from medsam3_model.evaluation.metrics import dice

        segmenter = ModelSegmenter(self.model, self.embedding, phrase, self._encode_window)
        height, width = segmenter.size
        fractions = truth.boxes / [width, height, width, height]
        drawn = segmenter.by_boxes([tuple(box) for box in fractions.tolist()])
        key = f"{self.seed}/{sample.name}/{concept}"
        question = Question(phrase, concept)
        result, requests, transcript = self._loop(segmenter, question, truth, key)
        board = result.board
        boxed = np.zeros(segmenter.size, np.bool_)
        for found in drawn.masks:
            boxed |= found.mask
        return AgentImage(
            name=sample.name,
            group=sample.group,
            concept=concept,
            text=dice(board.union(board.own), truth.mask),
            boxes=dice(boxed, truth.mask),
            agent=dice(board.union(c.number for c in result.masks), truth.mask),
            ending=result.ending,
            reason=result.reason,
            rounds=result.rounds,
            requests=requests,
            seconds=result.seconds,
            log=result.log,
            transcript=transcript,
        )

    def _loop(
        self, segmenter: ModelSegmenter, question: Question, truth: "ConceptTruth", key: str
    ) -> tuple[LoopResult, int, tuple[Exchange, ...]]:
        rounds = self.settings.agent_rounds
        if self.partner != "server":
            built_in = built_in_partner(self.partner, truth.mask, truth.boxes, key)
            counted = _Counted(built_in)
            # However slow the machine is, the same figures.
            limits = Limits(rounds, math.inf, math.inf)
            return run_loop(segmenter, counted, question, limits), counted.requests, ()
        asked = ask_server(segmenter, self.pixels, question, self.settings)
        return asked.result, asked.requests, tuple(asked.transcript)

    def _encode_window(self, window: "Window") -> "ImageEmbedding":
        x0, y0, x1, y1 = window
        return self.model.encode_image(self.pixels[y0:y1, x0:x1])


def _summarise(concept: str, phrase: str, images: list[AgentImage], seed: int) -> AgentConcept:
    from medsam3_model.evaluation.metrics import bootstrap_mean, paired_bootstrap

    rows = [image for image in images if image.concept == concept]
    groups = [row.group for row in rows]
    text, boxes, agent = ([getattr(row, of) for row in rows] for of in ("text", "boxes", "agent"))

    def mean(values: list[float]) -> Any:
        return bootstrap_mean(values, groups, seed=seed)

    return AgentConcept(
        concept=concept,
        phrase=phrase,
        images=len(rows),
        text=mean(text),
        boxes=mean(boxes),
        agent=mean(agent),
        over_text=paired_bootstrap(agent, text, groups, seed=seed),
        over_boxes=paired_bootstrap(agent, boxes, groups, seed=seed),
        endings=dict(Counter(row.ending for row in rows)),
        requests=float(np.mean([row.requests for row in rows])),
        seconds=float(np.mean([row.seconds for row in rows])),
    )
