"""`medsam3 trainer`: takes training runs from the queue, one after the other.

A run has four stages, each of which leaves its result in the database before the next begins:
dataset version, training, gate, promotion. A trainer that is killed at any point leaves a row whose
lease runs out; whoever takes it next goes on where the trace ends, and training itself resumes from
its own state. A version's file and row appear complete or not at all.
"""

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError

from backend.corrections import store
from backend.database import insert_or_ignore
from backend.errors import (
    BackendError,
    CancelledError,
    ImageUnavailableError,
    LabelStudioUnavailableError,
    StoppedError,
    StorageUnavailableError,
    TrainingError,
)
from backend.labeling.config import parse_label_config
from backend.models import promotion, versions
from backend.models.detectors import DetectorStore
from backend.models.loading import Models
from backend.processes.leases import Periodic, renewing
from backend.processes.queues import QueueName, waiting_row_ids
from backend.processes.spinning import spin_briefly
from backend.processes.stopping import stopping
from backend.processes.worker import work
from backend.services import Services, current_services
from backend.tables import GateVerdict, ModelVersion, PromotionKind
from backend.training import examples, roll_out, runs, triggers
from backend.training.examples import Images
from backend.training.judging import Judge
from backend.training.learn import fine_tune
from backend.training.options import RunOptions
from backend.training.run_log import RunLog, note
from backend.training.tables import RunState, Stage, TrainingRun

log = logging.getLogger(__name__)

# Seconds after which nobody writes to the folder of an ended run.
_LEFTOVER_S = 86400

LOCK_KEY = "medsam3:training-recovery"
INTERVAL_S = 5.0
# While Label Studio or the database are away, a run waits this long, then twice as long, and so on.
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 120.0
# Interactive prompts come first: on a CPU the trainer only takes what they leave,
NICENESS = 10
# and one of so many cores: threads that wait for each other at a barrier burn the others' time.
CORES_PER_THREAD = 2


def train(ids: Sequence[str]) -> None:
    """Handler on queue `train`: do these runs, as far as they are not done."""
    services = current_services()
    for run_id in ids:
        train_run(services, run_id)


def train_run(services: Services, run_id: str) -> None:
    """Take one run through all of its stages; errors end in the run's row, not here.

    Args:
        services: database and Redis.
        run_id: a row of `training_runs`; nothing happens if somebody else is at it.
    """
    from medsam3_model.errors import MedSAM3Error

    run = runs.claim(services, run_id)
    if run is None:
        return
    if run.attempts > runs.MOST_DEATHS:
        _end(
            services,
            run_id,
            RunState.FAILED,
            f"the trainer died {run.attempts - 1} times in a row on this run without a step in "
            "between; look at its memory and log",
        )
        return
    attempt = f", attempt {run.attempts}" if run.attempts > 1 else ""
    note(services.redis, run_id, f"a trainer takes the run{attempt}")
    try:
        with renewing(partial(runs.renew, services, run_id), runs.LEASE_S / 4):
            _patiently(services, run)
    except CancelledError:
        _end(services, run_id, RunState.CANCELLED)
    except StoppedError:
        runs.put_back(services, run_id)
        note(services.redis, run_id, "waits: the trainer was told to stop")
        return
    except (BackendError, MedSAM3Error) as error:
        log.warning("training run %s failed: %s", run_id, error)
        _end(services, run_id, RunState.FAILED, str(error))
    except Exception as error:
        log.exception("training run %s failed", run_id)
        message = f"unexpected {type(error).__name__}; the trainer's log has the traceback"
        _end(services, run_id, RunState.FAILED, message)
    else:
        _end(services, run_id, RunState.DONE)
    shutil.rmtree(_state_folder(services, run_id), ignore_errors=True)


def _end(services: Services, run_id: str, state: RunState, error: str | None = None) -> None:
    """End a run, in its row and in its log."""
    note(services.redis, run_id, f"{state}: {error}" if error else str(state))
    runs.finish(services, run_id, state, error)


def _patiently(services: Services, run: TrainingRun) -> None:
    """Take a run through its stages; where a server that it needs is away, wait for it.

    The trainer waits with the run: whatever else it could do needs them too. Each stage goes on
    where its trace ends.
    """
    pause_s = FIRST_PAUSE_S
    run_log, waits_for = RunLog(services.redis, run.id), ""
    without_image_since: float | None = None
    while True:
        began = time.monotonic()
        try:
            _Stages(services, run, run_log).do()
            return
        except LabelStudioUnavailableError as error:
            reason = f"waiting for Label Studio: {error}"
        except StorageUnavailableError as error:
            reason = f"waiting for the object store: {error}"
        except ImageUnavailableError as error:
            without_image_since = without_image_since or began
            if time.monotonic() - without_image_since > error.PATIENCE_S:
                raise
            reason = f"waiting for an image: {error}"
        except (OperationalError, InterfaceError) as error:
            # Its text would hold the statement's values.
            reason = f"waiting for the database ({type(error).__name__})"
        if time.monotonic() - began > LONGEST_PAUSE_S:
            # It was there for a while.
            pause_s, waits_for, without_image_since = FIRST_PAUSE_S, "", None
        log.warning("training run %s: %s", run.id, reason)
        if reason != waits_for:
            run_log.note(reason)
            waits_for = reason
        _pause(services, run.id, pause_s, reason)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _pause(services: Services, run_id: str, seconds: float, reason: str) -> None:
    """Wait, unless somebody wants the run or the trainer to end."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        with suppress(OperationalError, InterfaceError):
            runs.report(services, run_id, error=reason, attempts=0)
        if stopping.wait(min(left, 1.0)):
            raise StoppedError("the trainer was told to stop")


class _Stages:
    def __init__(self, services: Services, run: TrainingRun, run_log: RunLog) -> None:
        self._services, self._log = services, run_log
        self._run = run
        self._options = RunOptions.from_json(run.options)
        self._models = Models(services)
        self._images = Images(services)

    def do(self) -> None:
        training_set = self._training_set()
        candidate = self._candidate(training_set)
        if candidate is None:
            return
        accepted = self._accepted(candidate, training_set)
        if accepted is not None and self._options.auto_promote:
            self._promote(accepted)

    def _begin(self, stage: Stage, doing: str) -> None:
        """Enter a stage, and say so in the log."""
        runs.at_stage(self._services, self._run.id, stage)
        self._log.note_once(doing)

    def _training_set(self) -> examples.TrainingSet:
        """Make the dataset version, or read the one that was made before the trainer died."""
        self._begin(Stage.DATASET, "collects corrections")
        incumbent = versions.in_service(self._services, self._run.project_id)
        with self._services.database.session() as session:
            run = session.get_one(TrainingRun, self._run.id, with_for_update=True)
            # A dataset version and its incumbent belong together: both are from the first attempt.
            if run.dataset_id is None:
                examples.take(session, run)
                run.incumbent = incumbent
            self._run = run
        with self._services.database.reading() as session:
            config = store.current_config(session, self._run.project_id)
            if config is None:
                raise TrainingError(
                    f"The labeling config of project {self._run.project_id} is not known: connect "
                    "it again (`medsam3 connect`)."
                )
            dataset_id = self._run.dataset_id or 0
            training_set = examples.load(session, dataset_id, parse_label_config(config))
        if not training_set.of("train"):
            raise TrainingError(
                f"All {len(training_set.examples)} annotated images belong to groups that are kept "
                "for validation: annotate images of other patients, too."
            )
        self._log.note_once(
            f"dataset version {dataset_id}: {len(training_set.of('train'))} images to train on, "
            f"{len(training_set.of('val'))} to validate with"
        )
        return training_set

    def _candidate(self, training_set: examples.TrainingSet) -> str | None:
        """Train, publish and register a version, or find the one that this run made already."""
        if self._run.candidate:
            return self._run.candidate
        parent = self._run.incumbent or ""
        self._begin(Stage.TRAINING, f"training from {parent}")
        model = self._models.get(parent)
        source = self._models.source(parent)
        folder = _state_folder(self._services, self._run.id)
        folder.mkdir(parents=True, exist_ok=True)
        trained = fine_tune(
            self._services, self._run, model, source, training_set, self._images, folder, self._log
        )
        card = _card(training_set, self._options, trained.figures)
        self._register(trained.file, trained.version, card)
        with self._services.database.session() as session:
            run = session.get_one(TrainingRun, self._run.id)
            run.candidate, run.stopped = trained.version, trained.figures["stopped"]
            self._run = run
        return trained.version if trained.version != parent else None

    def _register(self, draft: Path, version: str, card: Mapping[str, Any]) -> None:
        """Publish a version's detector, and make its row; both may be there already."""
        DetectorStore(self._services.settings).publish(draft, version)
        parent = self._run.incumbent or ""
        source = self._models.source(parent)
        with self._services.database.session() as session:
            insert_or_ignore(
                session,
                ModelVersion,
                {
                    "version": version,
                    "checkpoint": source.checkpoint,
                    "adapter": source.adapter,
                    "detector": version,
                    "project_id": self._run.project_id,
                    "parent": parent,
                    "run_id": self._run.id,
                    "card": card,
                },
            )

    def _accepted(self, candidate: str, training_set: examples.TrainingSet) -> str | None:
        """The version that passes the gate, if one does; read, if it was judged already."""
        incumbent = self._run.incumbent or ""
        self._begin(Stage.GATE, f"gate: compares {candidate} with {incumbent}")
        with self._services.database.reading() as session:
            known = session.get(GateVerdict, self._run.id)
        if known is not None:
            return known.candidate if known.passed else None
        judge = Judge(self._services, self._run, self._images, self._log, training_set.of("val"))
        base = self._models.source(incumbent).checkpoint
        judged = judge.judge(self._models.get(candidate), self._models.get(incumbent), base)
        if judged.half_way is not None:
            draft = _state_folder(self._services, self._run.id) / "half_way.safetensors"
            draft.parent.mkdir(parents=True, exist_ok=True)
            notes = {"project": self._run.project_id, "run": self._run.id, "parent": incumbent}
            name = judged.half_way.name
            judged.half_way.save_detector(draft, base=base, name=name, notes=notes)
            self._register(draft, judged.version, self._card_half_way(candidate))
        verdict = judged.verdict
        with self._services.database.session() as session:
            insert_or_ignore(
                session,
                GateVerdict,
                {
                    "run_id": self._run.id,
                    "candidate": judged.version,
                    "incumbent": incumbent,
                    "passed": verdict.passed,
                    "reasons": list(verdict.reasons),
                    "figures": verdict.figures(),
                },
            )
            run = session.get_one(TrainingRun, self._run.id)
            run.candidate = judged.version
            self._run = run
        return judged.version if verdict.passed else None

    def _card_half_way(self, candidate: str) -> dict[str, Any]:
        """The candidate's card, for the version half of the way to it."""
        with self._services.database.reading() as session:
            row = session.scalar(select(ModelVersion).where(ModelVersion.version == candidate))
        card = dict((row.card if row else None) or {})
        return card | {"training": card.get("training", {}) | {"half_way_to": candidate}}

    def _promote(self, candidate: str) -> None:
        self._begin(Stage.PROMOTION, f"promotion of {candidate}")
        serving = versions.in_service(self._services, self._run.project_id)
        if serving == candidate:
            return
        if serving != self._run.incumbent:
            raise TrainingError(
                f"{candidate} passed the gate against {self._run.incumbent}, but {serving} came "
                "into service in the meantime: train again, or promote it by hand."
            )
        promotion.promote(self._services, self._run.project_id, candidate, kind=PromotionKind.GATE)


def recover(services: Services) -> int:
    """Queue the runs that wait without a job or lost their trainer; returns how many."""
    waiting = waiting_row_ids(services.redis, QueueName.TRAIN)
    orphans = [run for run in runs.orphans(services) if run[0] not in waiting]
    for run_id, attempts in orphans:
        runs.enqueue_run(services, run_id, attempts)
    return len(orphans)


def remove_leftovers(services: Services) -> None:
    """Remove the folders of ended runs a day later: a trainer that was killed could not."""
    before = time.time() - _LEFTOVER_S
    for folder in (services.settings.training_dir / "runs").glob("*"):
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime >= before:
                continue
        with services.database.reading() as session:
            run = session.get(TrainingRun, folder.name)
        if run is None or run.state in runs.ENDED:
            shutil.rmtree(folder, ignore_errors=True)


def run_trainer(services: Services, *, burst: bool = False) -> None:
    """Work on queue `train` until told to stop.

    Args:
        services: the process's database and Redis.
        burst: stop when the queue is empty.
    """
    _make_way()
    recovery = Periodic(
        services,
        recover,
        remove_leftovers,
        roll_out.enqueue_pending,
        triggers.start_due,
        lock=LOCK_KEY,
        every_s=INTERVAL_S,
    )
    work(services, QueueName.TRAIN, recovery, burst=burst)


def _make_way() -> None:
    """Lower this process's priority and the number of its threads; before torch is imported."""
    os.nice(NICENESS)
    # Where Linux schedules by session, niceness counts inside of one only, and `medsam3 serve`
    # gives each of its processes its own. A shell's session is not ours to change.
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(NICENESS))
    threads = max(1, (os.cpu_count() or 1) // CORES_PER_THREAD)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    spin_briefly()


def _card(
    training_set: examples.TrainingSet, options: RunOptions, training: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of a model card that is known when training ends; JSON values."""
    present: Counter[str] = Counter()
    absent: Counter[str] = Counter()
    for example in training_set.examples:
        for phrase, drawn in example.masks.items():
            (present if any(drawn) else absent)[phrase] += 1
    return {
        "data": {
            "dataset": training_set.dataset_id,
            "digest": training_set.digest,
            "consensus": options.consensus,
            "training_images": len(training_set.of("train")),
            "validation_images": len(training_set.of("val")),
            "groups": len({example.group for example in training_set.examples}),
            "concepts": {
                phrase: {"present": present[phrase], "absent": absent[phrase]}
                for phrase in sorted({*present, *absent})
            },
        },
        "training": {"options": options.as_json(), **training},
    }


def _state_folder(services: Services, run_id: str) -> Path:
    return services.settings.training_dir / "runs" / run_id
