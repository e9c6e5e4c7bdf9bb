"""Fine-tuning of a run: its images, its progress, and the waiting while annotators prompt."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from backend.corrections import store
from backend.errors import StoppedError
from backend.labeling.config import parse_label_config
from backend.models import versions
from backend.models.loading import VersionWeights
from backend.processes.stopping import stopping
from backend.services import Services
from backend.settings import Consensus
from backend.tables import Promotion
from backend.training import examples, runs
from backend.training.annotators import Annotators
from backend.training.curves import CurvePoint, add_point
from backend.training.examples import Images
from backend.training.options import RunOptions
from backend.training.run_log import RunLog, waited
from backend.training.tables import TrainingRun

if TYPE_CHECKING:
    from medsam3_model import MedSAM3
    from medsam3_model.training.fine_tuning import (
        TrainingImage,
        TrainingProgress,
    )
    from medsam3_model.training.settings import TrainingSettings

log = logging.getLogger(__name__)

# Rows are not written for every step: some people watch, nobody that closely.
REPORT_EVERY_S = 1.0


@dataclass(frozen=True)
class Trained:
    """A finished detector: `file` under a draft's name, `version`, and `figures` for its card."""

    file: Path
    version: str
    figures: dict[str, Any]


def fine_tune(
    services: Services,
    run: TrainingRun,
    model: "MedSAM3",
    source: VersionWeights,
    training_set: examples.TrainingSet,
    images: Images,
    folder: Path,
    run_log: RunLog,
) -> Trained:
    """Train a run's candidate, resuming what an earlier trainer left in `folder`.

    Args:
        services: for progress, and to see whether annotators are waiting.
        run: its options and project.
        model: the incumbent, from which it starts.
        source: where the incumbent comes from.
        training_set: what to train on.
        images: pixels, masks and embeddings.
        folder: for the state and the draft of the detector.
        run_log: where it says what it does.

    Raises:
        CancelledError: the run is to end.
        StoppedError: this trainer is to end.
        BackendError, MedSAM3Error: an image or a mask cannot be had.
    """
    from medsam3_model.training import fine_tuning
    from medsam3_model.training.endings import ENDINGS

    options = RunOptions.from_json(run.options)
    as_image = partial(_training_image, images, options.consensus)
    current = [as_image(example) for example in training_set.of("train") if example.masks]
    replay = list(_replay(services, run, model, training_set, as_image)) if options.replay else []
    reporter = _Reporter(services, run, run_log)
    run_log.note_once(
        f"trains on {len(current)} images and repeats {len(replay)} older ones"
        + (f", from step {run.step} on" if run.step else "")
    )
    started = time.monotonic()
    # The base's name without its hash is the first part of all its versions' names.
    base_name = versions.version_name(source.checkpoint, source.adapter).rpartition("-")[0]
    tuned = fine_tuning.fine_tune(
        model,
        current,
        name=f"{base_name}-p{run.project_id}",
        base=source.checkpoint,
        cache=images.cache,
        replay=replay,
        settings=_settings(options),
        state=folder / "state.pt",
        on_progress=reporter,
        make_way=reporter.make_way,
        make_way_within_step=reporter.make_way_within_step,
    )
    log.info("training run %s: %d steps; %s", run.id, tuned.steps, ENDINGS[tuned.stopped])
    reporter.note(f"training ended after {tuned.steps} steps: {ENDINGS[tuned.stopped]}")
    draft = folder / "detector.safetensors"
    tuned.model.save_detector(
        draft,
        base=source.checkpoint,
        name=tuned.model.name,
        notes={"project": run.project_id, "run": run.id, "parent": run.incumbent},
    )
    figures = {
        "steps": tuned.steps,
        "stopped": tuned.stopped,
        "seconds": round(time.monotonic() - started, 1),
        "images": len(current),
        "replayed_images": len(replay),
        "thresholds": tuned.model.thresholds,
        "second_looks": _second_looks(tuned.model, training_set),
        "history": [list(row) for row in tuned.history],
    }
    return Trained(draft, tuned.model.version, figures)


def _settings(options: RunOptions) -> "TrainingSettings":
    from medsam3_model.training.settings import TrainingSettings

    return TrainingSettings(
        steps=options.steps,
        minutes=options.minutes,
        learning_rate=options.learning_rate,
        seed=options.seed,
        adapter=options.adapter,
    )


def _second_looks(model: "MedSAM3", training_set: examples.TrainingSet) -> dict[str, float]:
    """Those of the phrases that the run was about."""
    phrases = {phrase for example in training_set.examples for phrase in example.masks}
    looks = {phrase: model.second_look_of(phrase) for phrase in sorted(phrases)}
    return {phrase: room for phrase, room in looks.items() if room is not None}


class _Reporter:
    """Called before and after every step: makes way, writes progress, ends the run."""

    def __init__(self, services: Services, run: TrainingRun, run_log: RunLog) -> None:
        self._services, self._run_id, self._log = services, run.id, run_log
        self._annotators = Annotators(services.redis)
        self._reached = run.step
        self._written = 0.0
        self._dice = run.validation_dice
        self._waited_s = 0.0

    def note(self, text: str) -> None:
        """Write a line of the run's log."""
        self._log.note(text + waited(self._waited_s))
        self._waited_s = 0.0

    def make_way(self) -> None:
        """Wait for annotators; the log's next line says for how long."""
        self._waited_s += self._annotators.wait()

    def make_way_within_step(self) -> None:
        """The same within a step, for as long as a prompt waits or is under way."""
        self._waited_s += self._annotators.wait(between_prompts=False)

    def __call__(self, progress: "TrainingProgress") -> None:
        moment = time.monotonic()
        if progress.validation_dice is not None and progress.validation_dice != self._dice:
            self._dice = progress.validation_dice
            self.note(
                f"step {progress.step} of at most {progress.steps}: loss {progress.loss:.3f}, "
                f"Dice of the spared images {progress.validation_dice:.3f}"
            )
        if moment - self._written > REPORT_EVERY_S or progress.step == progress.steps:
            self._written = moment
            # Further than the trainer before it: whatever ended that one is no fault of the run.
            beyond = {"attempts": 0} if progress.step > self._reached else {}
            # Its fields are columns of the run.
            runs.report(self._services, self._run_id, **dataclasses.asdict(progress), **beyond)
            point = CurvePoint(progress.step, progress.loss, progress.validation_dice)
            add_point(self._services.redis, self._run_id, point)
        if stopping.is_set():
            raise StoppedError("the trainer was told to stop")


def _training_image(images: Images, rule: Consensus, example: examples.Example) -> "TrainingImage":
    from medsam3_model.training.fine_tuning import TrainingImage

    # Both are called when they are needed: an image whose embeddings are in the cache is not read.
    return TrainingImage(
        example.key,
        partial(images.rgb, example),
        partial(images.layers, example, rule),
        example.group,
    )


def _replay(
    services: Services,
    run: TrainingRun,
    model: "MedSAM3",
    training_set: examples.TrainingSet,
    as_image: "Callable[[examples.Example], TrainingImage]",
) -> Iterator["TrainingImage"]:
    """Images of what the incumbent was trained on: earlier dataset versions, and drawn ones."""
    current = {example.key for example in training_set.examples}
    for example in _earlier(services, run):
        if example.split == "train" and example.masks and example.key not in current:
            yield as_image(example)
    if versions.BUNDLED[0] == model.name.partition("-p")[0]:
        from medsam3_model.training.replay import bundled_replay

        yield from bundled_replay()


def _earlier(services: Services, run: TrainingRun) -> Iterator[examples.Example]:
    """Examples of the dataset versions behind this project's promotions, newest first."""
    with services.database.reading() as session:
        rows = session.execute(
            select(TrainingRun.dataset_id, TrainingRun.project_id)
            .join(Promotion, Promotion.run_id == TrainingRun.id)
            .where(
                Promotion.project_id == run.project_id,
                TrainingRun.dataset_id.is_not(None),
                TrainingRun.id != run.id,
            )
            .order_by(Promotion.id.desc())
        ).all()
        seen: set[str] = set()
        for row in rows:
            config = store.current_config(session, row.project_id)
            if config is None or row.dataset_id is None:
                continue
            earlier = examples.load(session, row.dataset_id, parse_label_config(config))
            for example in earlier.examples:
                if example.key not in seen:
                    seen.add(example.key)
                    yield example
