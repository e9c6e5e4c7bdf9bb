"""`medsam3 simulate`: an annotator who knows the truth corrects and trains, round after round.

Only Label Studio is played: it serves the lowest score first, and returns what the annotator
submitted. Prediction, ingest, dataset version, training, gate and promotion are the real ones, in a
data folder of their own that is removed afterwards.
"""

import base64
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from backend.corrections.ingest import Hint, Ingest
from backend.corrections.mask_store import MaskStore
from backend.errors import BackendError
from backend.labeling import brush_rle
from backend.labeling.region_masks import union_mask
from backend.models import versions
from backend.models.serving_order import strategy_of
from backend.processes.redis_server import RedisServer
from backend.services import Services, open_services, use_services
from backend.settings import Strategy, read_settings
from backend.simulation import baseline_unet, report
from backend.simulation.report import Figures, JudgedAnswer
from backend.tables import (
    Delivery,
    GateVerdict,
    LabelConfigText,
    Project,
    Suggestion,
    SuggestionState,
    TrainingPolicy,
    config_hash,
)
from backend.training import runs
from backend.training.tables import TrainingRun, Trigger
from backend.training.trainer import train_run

if TYPE_CHECKING:
    from backend.predictions.inference import Inference
    from medsam3_model.data.samples import Dataset, Sample

PROJECT = 1
_Played = tuple[list[Figures], Figures | None]


@dataclass(frozen=True)
class SimulationOptions:
    """What to play; see `medsam3 simulate --help`."""

    data: Path
    prompts: tuple[str, ...] = ()
    rounds: int = 5
    per_round: int = 10
    strategies: tuple[str, ...] = ("uncertainty",)
    seeds: int = 1
    steps: int | None = None
    validation: int = 40
    baseline: str | None = None
    jobs: int = 1


@dataclass(frozen=True, eq=False)
class _Task:
    id: int
    sample: "Sample"
    rgb: NDArray[np.uint8]
    masks: Mapping[str, NDArray[np.bool_]]  # by label
    reference: str

    @property
    def data(self) -> dict[str, Any]:
        return {"image": self.reference, "group": self.sample.group}


class _Studio:
    """What `Ingest` asks Label Studio."""

    def __init__(self, config: str, tasks: Mapping[int, _Task]) -> None:
        self._config, self._tasks = config, tasks
        self.annotations: dict[int, dict[str, Any]] = {}
        self._clock = datetime(2026, 1, 1, tzinfo=UTC)

    def submit(self, task_id: int, result: list[dict[str, Any]]) -> int:
        self._clock += timedelta(seconds=30)
        id_, moment = len(self.annotations) + 1, self._clock.isoformat().replace("+00:00", "Z")
        self.annotations[id_] = {
            "id": id_,
            "task": task_id,
            "project": PROJECT,
            "result": result,
            "completed_by": 1,
            "created_at": moment,
            "updated_at": moment,
            "was_cancelled": False,
            "ground_truth": False,
            "parent_prediction": None,
        }
        return id_

    def annotation(self, annotation_id: int) -> Any:
        return self.annotations.get(annotation_id)

    def task_data(self, project_id: int, task_id: int) -> Mapping[str, Any] | None:
        return self._tasks[task_id].data

    def project(self, project_id: int) -> Mapping[str, Any]:
        return {"id": project_id, "label_config": self._config}

    def prediction(self, prediction_id: int) -> None:
        return None

    def image(self, reference: str, *, project_id: int, task_id: int) -> bytes:
        return base64.b64decode(reference.partition(",")[2])


def simulate(options: SimulationOptions, out: Path, say: Callable[[str], None]) -> Figures:
    """Play all strategies with all seeds; writes figures.json, figures.csv and dice.png to `out`.

    Returns:
        `{strategy: {seed: [{round, corrected, dice, apl, accepted, seconds, ...}]}, "baseline":
        {seed: {dice, seconds, ...}}}`; `answers` are the (concept, group, Dice, added path
        length in pixels) behind a mean; the U-Net's without the last. `boxed` are those of the
        first and the last round to drawn boxes, `uncalibrated` those of the last round with the
        model's own threshold for every label.

    Raises:
        BackendError, MedSAM3Error: with a sentence that says what to change.
    """
    from medsam3_model.data.datasets import load_dataset
    from medsam3_model.evaluation.evaluation import parse_prompts

    # What is wrong with options, data or installation is said before anything is started.
    if unknown := [name for name in options.strategies if name not in get_args(Strategy)]:
        offered = ", ".join(get_args(Strategy))
        raise BackendError(f"There is no strategy {unknown[0]!r}; there are {offered}.")
    parse_prompts(options.prompts, load_dataset(options.data))
    if options.baseline:
        baseline_unet.check_installed()
    plays = list(product(options.strategies, range(options.seeds)))
    figures: Figures = {strategy: {} for strategy in options.strategies}
    baseline: Figures = {}
    with ExitStack() as stack:
        played: Iterable[_Played] = (_play(options, *play, say) for play in plays)
        if options.jobs > 1:
            # Not forked: threads of torch do not survive that.
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(options.jobs, spawn, _share_cores, (options.jobs,))
            arguments = zip(*plays, strict=True)
            played = stack.enter_context(pool).map(_play, repeat(options), *arguments)
        for (strategy, seed), (rows, unet) in zip(plays, played, strict=True):
            figures[strategy][str(seed)] = rows
            if unet is not None:
                baseline[str(seed)] = unet
    figures["baseline"] = baseline or None
    out.mkdir(parents=True, exist_ok=True)
    (out / "figures.json").write_text(json.dumps(figures, indent=1))
    report.write_csv(figures, out / "figures.csv")
    report.plot(figures, out / "dice.png")
    return figures


def _share_cores(jobs: int) -> None:
    """In a process that plays beside others: its part of the cores, before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))


def _play(
    options: SimulationOptions,
    strategy: str,
    seed: int,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
) -> _Played:
    """One strategy with one seed: its rows, and the U-Net's figures with the first strategy."""
    from medsam3_model.data.datasets import load_dataset
    from medsam3_model.evaluation.evaluation import parse_prompts

    dataset = load_dataset(options.data)
    prompts = parse_prompts(options.prompts, dataset)
    with tempfile.TemporaryDirectory(prefix="m3-") as folder:
        play = _Play(options, prompts, strategy, seed, Path(folder), dataset)
        with RedisServer(play.settings.redis_socket):
            rows = play.run(lambda line: say(f"{strategy} {seed}: {line}"))
        if not options.baseline or strategy != options.strategies[0]:
            return rows, None
        unet = play.baseline(rows)
        say(f"U-Net {seed}: Dice {unet['dice']:.3f}")
        return rows, unet


class _Play:
    """One strategy with one seed."""

    def __init__(
        self,
        options: SimulationOptions,
        prompts: Mapping[str, str],
        strategy: str,
        seed: int,
        folder: Path,
        dataset: "Dataset",
    ) -> None:
        self.options, self.strategy, self.seed = options, strategy, seed
        self.settings = read_settings(
            data_dir=folder,
            label_studio_api_key="0" * 40,
            **({} if options.steps is None else {"train_steps": options.steps}),
            train_seed=seed,
            redis_url=None,
            database_url=None,
            storage_url=None,
        )
        self.prompts, self.config = prompts, _config(prompts)
        rng = np.random.default_rng(seed)
        samples = {split: list(dataset.split(split)) for split in ("train", "val")}
        most = {"train": 4 * options.rounds * options.per_round, "val": options.validation}
        self.tasks: dict[int, _Task] = {}
        self.pool: list[int] = []
        self.judged: list[int] = []
        for split, into in (("train", self.pool), ("val", self.judged)):
            order = rng.permutation(len(samples[split]))[: most[split]]
            for index in order:
                task = _task(len(self.tasks) + 1, samples[split][int(index)], prompts)
                self.tasks[task.id] = task
                into.append(task.id)
        self.corrected: list[int] = []
        self.dataset = dataset
        self.studio = _Studio(self.config, self.tasks)

    def run(self, say: Callable[[str], None]) -> list[Figures]:
        from backend.predictions.inference import Inference

        services = open_services(self.settings)
        use_services(services)
        try:
            with services.database.session() as session:
                session.add(Project(id=PROJECT, label_config=self.config))
                session.add(TrainingPolicy(project_id=PROJECT, strategy=self.strategy))
            inference = Inference(services)
            own = inference.model(versions.in_service(services, PROJECT)).settings.score_threshold
            # A label's own threshold goes before the calibrated one.
            self.uncalibrated = _config(self.prompts, own)
            with services.database.session() as session:
                session.add_all(
                    LabelConfigText(hash=config_hash(config), xml=config)
                    for config in (self.config, self.uncalibrated)
                )
            ingest = Ingest(
                services.database,
                MaskStore(self.settings.storage),
                self.studio,  # type: ignore[arg-type]
                self.settings,
            )
            # Validation images are annotated once, before anything is learned.
            for task_id in self.judged:
                self._annotate(ingest, task_id, [])
            rows = [self._measure(services, inference, 0, 0.0)]
            rows[0]["boxed"] = self._boxed(services, inference)
            for number in range(1, self.options.rounds + 1):
                started = time.monotonic()
                self._correct(services, inference, ingest)
                spent = self._train(services, say)
                rows.append(self._measure(services, inference, number, spent))
                took = time.monotonic() - started
                say(f"round {number}: Dice {rows[-1]['dice']:.3f} ({took:.0f} s)")
            rows[-1]["boxed"] = self._boxed(services, inference)
            rows[-1]["uncalibrated"] = self._answers(services, inference, self.uncalibrated)
            return rows
        finally:
            use_services(None)
            services.close()

    def baseline(self, rows: Sequence[Figures]) -> Figures:
        """The U-Net on the same corrected images, for the seconds that training took."""
        from medsam3_model.preprocessing import tells_sides

        seconds = sum(row["seconds"] for row in rows)
        labels = list(next(iter(self.tasks.values())).masks)

        def pairs(ids: Sequence[int]) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
            tasks = [self.tasks[id_] for id_ in ids]
            return [(task.rgb, np.stack([task.masks[label] for label in labels])) for task in tasks]

        scores = baseline_unet.unet_dice(
            pairs(self.corrected),
            pairs(self.judged),
            seconds=seconds,
            seed=self.seed,
            sided=any(map(tells_sides, self.prompts.values())),
        )
        groups = [self.tasks[id_].sample.group for id_ in self.judged]
        return {
            "dice": float(np.mean(scores)),
            "seconds": seconds,
            "answers": [
                (label, group, round(dice, 4))
                for group, image in zip(groups, scores, strict=True)
                for label, dice in zip(labels, image, strict=True)
            ],
        }

    def _predict(
        self, services: Services, inference: "Inference", id_: int, config: str | None = None
    ) -> Suggestion:
        """A task's prediction by the version in service, stored as the worker stores it."""
        config = config or self.config
        row = Suggestion(
            project_id=PROJECT,
            task_id=id_,
            config_hash=config_hash(config),
            task_data=self.tasks[id_].data,
            model_version=versions.in_service(services, PROJECT),
            state=SuggestionState.DONE,
            delivery=Delivery.NONE,
            finished_at=datetime(2025, 12, 31, tzinfo=UTC),
        )
        outcome = inference.predict(row, config)
        row.result, row.score, row.image_hash = outcome.regions, outcome.score, outcome.image_hash
        with services.database.session() as session:
            session.add(row)
        return row

    def _correct(self, services: Services, inference: "Inference", ingest: Ingest) -> None:
        """Take the next tasks by the strategy; accept what is good, redraw the rest."""
        with services.database.reading() as session:
            strategy = strategy_of(session, self.settings, PROJECT)
        # The pool has no order to begin with.
        left = [id_ for id_ in self.pool if id_ not in self.corrected]
        asked = left if strategy == "uncertainty" else left[: self.options.per_round]
        rows = {id_: self._predict(services, inference, id_) for id_ in asked}
        if strategy == "uncertainty":
            asked.sort(key=lambda id_: (rows[id_].score or 0.0, id_))
        for id_ in asked[: self.options.per_round]:
            self._annotate(ingest, id_, rows[id_].result or [])
            self.corrected.append(id_)

    def _annotate(self, ingest: Ingest, task_id: int, suggested: list[dict[str, Any]]) -> None:
        from medsam3_model.boxes import connected_instances
        from medsam3_model.evaluation.metrics import dice

        task, result = self.tasks[task_id], []
        for label, truth in task.masks.items():
            regions = _with_label(suggested, label)
            if regions and dice(union_mask(regions, *truth.shape), truth) >= report.ACCEPTED_DICE:
                result += regions
                continue
            # Redrawn, one region for each object; specks below ten pixels nobody would draw.
            numbers = connected_instances(truth)
            for number in range(1, int(numbers.max()) + 1):
                if np.count_nonzero(numbers == number) >= 10:
                    result.append(_region(f"t{task_id}{label}{number}", label, numbers == number))
        id_ = self.studio.submit(task_id, result)
        ingest.take_in(Hint(id_, task_id, PROJECT))

    def _train(self, services: Services, say: Callable[[str], None]) -> float:
        started = time.monotonic()
        id_ = runs.request_run(services, PROJECT, Trigger.SIMULATION).run_id
        train_run(services, id_)
        with services.database.reading() as session:
            run = session.get_one(TrainingRun, id_)
            verdict = session.get(GateVerdict, id_)
        if run.error:
            say(run.error)
        if verdict is not None and not verdict.passed:
            say(f"after {run.step} steps: {'; '.join(verdict.reasons)}")
        return time.monotonic() - started

    def _measure(
        self, services: Services, inference: "Inference", number: int, seconds: float
    ) -> Figures:
        answers = self._answers(services, inference)
        dices, paths = [answer[2] for answer in answers], [answer[3] for answer in answers]
        return {
            "round": number,
            "corrected": len(self.corrected),
            "version": versions.in_service(services, PROJECT),
            "dice": float(np.mean(dices)),
            "apl": float(np.mean(paths)),
            "accepted": float(np.mean([dice >= report.ACCEPTED_DICE for dice in dices])),
            "seconds": seconds,
            "answers": answers,
        }

    def _answers(
        self, services: Services, inference: "Inference", config: str | None = None
    ) -> list[JudgedAnswer]:
        """Concept, group, Dice and added path length (pixels) of every validation image."""
        from medsam3_model.evaluation.metrics import score_mask

        answers = []
        for id_ in self.judged:
            task = self.tasks[id_]
            result = self._predict(services, inference, id_, config).result or []
            for label, truth in task.masks.items():
                score = score_mask(union_mask(_with_label(result, label), *truth.shape), truth)
                dice, path = round(score.dice, 4), score.added_path_length
                answers.append((label, task.sample.group, dice, path))
        return answers

    def _boxed(self, services: Services, inference: "Inference") -> list[JudgedAnswer]:
        """The same where each object is asked for by a box as a person draws it, with its name."""
        from medsam3_model.evaluation.evaluation import evaluate

        judged = tuple(self.tasks[id_].sample for id_ in self.judged)
        report = evaluate(
            inference.model(versions.in_service(services, PROJECT)),
            replace(self.dataset, samples=judged),
            self.prompts,
            "ti-jitter",
            seed=self.seed,
        )
        return [
            (one.concept, one.group, round(one.scores.dice, 4), one.scores.added_path_length)
            for one in report.images
            if one.scores is not None
        ]


def _config(prompts: Mapping[str, str], score_threshold: float | None = None) -> str:
    """A labeling config that asks for every concept; a threshold goes before calibrated ones."""
    shown = "" if score_threshold is None else f' score_threshold="{score_threshold}"'
    labels = "".join(
        f"<Label value={quoteattr(name)} prompt={quoteattr(phrase)}{shown}/>"
        for name, phrase in prompts.items()
    )
    return (
        '<View><Image name="image" value="$image"/><BrushLabels name="mask" toName="image">'
        f"{labels}</BrushLabels></View>"
    )


def _task(id_: int, sample: "Sample", prompts: Mapping[str, str]) -> _Task:
    from PIL import Image

    rgb = sample.image()
    masks = {}
    for concept in prompts:
        drawn = sample.read(concept)
        masks[concept] = np.zeros(rgb.shape[:2], bool) if drawn is None else drawn.mask
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    reference = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return _Task(id_, sample, rgb, masks, reference)


def _region(id_: str, label: str, mask: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "id": id_.replace(" ", "_"),
        "from_name": "mask",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": brush_rle.encode(mask), "brushlabels": [label]},
    }


def _with_label(regions: Sequence[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    return [region for region in regions if label in region["value"]["brushlabels"]]
