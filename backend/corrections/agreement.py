"""Agreement between annotators of the same tasks: pairwise Dice, Krippendorff's alpha, gold tasks.

Compared is what each annotator last said about a task. What two masks share is counted once and
kept, and so is the report: decoding is the dear part, and masks are named by their content. What
decodes is loaded with the first count: the web process only reads reports.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.corrections.tables import (
    AgreementReport,
    Annotation,
    AnnotationState,
    ConceptMask,
    MaskOverlap,
    Revision,
    is_correction,
)
from backend.database import chunked, insert_or_ignore
from backend.errors import MaskError
from backend.services import Services, current_services
from backend.tables import now

if TYPE_CHECKING:
    from backend.corrections.cropped_mask import CroppedMask
    from backend.corrections.mask_store import MaskStore

# Tasks in dispute that a report names, worst first.
MOST_DISPUTED = 50
# Tasks whose masks' names are in memory at the same time.
_TASKS_TOGETHER = 200


@dataclass(frozen=True)
class LabelAgreement:
    """Agreement about one label.

    Attributes:
        comparisons: pairs of annotations of one task of which at least one has the label.
        dice: their mean; None without any.
        alpha: Krippendorff's, of the label being there at all; None where it cannot be told.
    """

    label: str
    comparisons: int
    dice: float | None
    alpha: float | None


@dataclass(frozen=True)
class AnnotatorAgreement:
    """One annotator against the others, and against gold annotations; Dice are means over tasks."""

    annotator: int
    tasks: int
    dice: float | None
    gold_tasks: int
    gold_dice: float | None


@dataclass(frozen=True)
class AnnotatorPair:
    """Two annotators on the tasks that both did; `dice` is the mean over tasks."""

    first: int
    second: int
    tasks: int
    dice: float | None


@dataclass(frozen=True)
class DisputedTask:
    """A task with the mean Dice of its annotators, and the label on which they differ most."""

    task_id: int
    annotators: int
    dice: float
    label: str
    label_dice: float


@dataclass(frozen=True)
class Agreement:
    """Agreement in one project.

    Attributes:
        tasks: annotated by at least two people.
        left_out: of them, those whose masks cannot be compared: their images differ in size, or a
            mask is missing.
        gold_tasks: with an annotation marked as ground truth, and one of somebody else.
        dice: mean over tasks; None where nobody drew anything in any of them.
        alpha: over all labels, see `LabelAgreement`.
        disputed: worst first, at most `MOST_DISPUTED`.
    """

    project_id: int
    tasks: int
    left_out: int
    gold_tasks: int
    dice: float | None
    alpha: float | None
    labels: list[LabelAgreement]
    annotators: list[AnnotatorAgreement]
    pairs: list[AnnotatorPair]
    disputed: list[DisputedTask]


@dataclass(frozen=True)
class NamedMask:
    """A label's mask on one page, by the name of its file."""

    hash: str
    height: int
    width: int
    area: int


# What one annotation says of a task: label and page → mask; a label that is not there is absent.
Drawn = Mapping[str, Mapping[int, NamedMask]]


@dataclass(frozen=True)
class TaskAnnotations:
    """One task: what each annotator drew, and the gold annotation with its annotator, if any."""

    task_id: int
    by_annotator: Mapping[int, Drawn]
    gold: tuple[int | None, Drawn] | None = None


def compute_agreement(services: Services, project_id: int) -> Agreement:
    """The agreement in a project now; it is kept as an `AgreementReport`."""
    with services.database.reading() as session:
        stamp = current_stamp(session, project_id)
    found = _tally(services, project_id).result(project_id)
    with services.database.session() as session:
        row = session.get(AgreementReport, project_id) or AgreementReport(project_id=project_id)
        row.stamp, row.report, row.computed_at = stamp, asdict(found), now()
        session.add(row)
    return found


def task_dice(services: Services, project_id: int) -> dict[int, float]:
    """The mean Dice of every task's annotators, by its id, for the tasks that can be compared."""
    return _tally(services, project_id).by_task


def _tally(services: Services, project_id: int) -> "Tally":
    """Compare all that several people annotated."""
    from backend.corrections.mask_store import MaskStore

    masks = MaskStore(services.settings.storage)
    with services.database.reading() as session:
        revisions = _compared_revisions(session, project_id)
    tally = Tally()
    for start in range(0, len(revisions), _TASKS_TOGETHER):
        with services.database.reading() as session:
            tasks = _with_masks(session, revisions[start : start + _TASKS_TOGETHER])
            known = _known_overlaps(session, tasks)
        shared = SharedPixels(masks, known)
        for task in tasks:
            tally.add(task, shared)
        _keep(services, shared.new)
    return tally


def compute_job(ids: Sequence[str]) -> None:
    """Handler on queue `ingest`: compute these projects' agreement, unless it is up to date."""
    services = current_services()
    for project_id in map(int, ids):
        with services.database.reading() as session:
            row = session.get(AgreementReport, project_id)
            if row is not None and row.stamp == current_stamp(session, project_id):
                continue
        compute_agreement(services, project_id)


def current_stamp(session: Session, project_id: int | None = None) -> str:
    """What tells one state of a project's annotations, or of all, from another.

    As in `AgreementReport.stamp`.
    """
    of_project = [] if project_id is None else [Annotation.project_id == project_id]
    counted = select(
        func.count(), func.max(Annotation.revision_id), func.sum(Annotation.revision_id)
    ).where(*of_project, Annotation.state == AnnotationState.VALID)
    return "-".join(str(value or 0) for value in session.execute(counted).one())


def nominal_alpha(units: Iterable[tuple[int, int]]) -> float | None:
    """Krippendorff's alpha for a nominal value that is there or not.

    Args:
        units: for each unit how many raters saw the value, and how many rated it at all. A unit
            with a single rater says nothing about agreement.

    Returns:
        1 at perfect agreement, 0 where it is as good as by chance; None where every rater said
        the same of every unit: then nothing could have been disagreed on.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section B.
    """
    present = absent = 0
    observed = 0.0
    for seen, raters in units:
        if raters < 2:
            continue
        present, absent = present + seen, absent + raters - seen
        # Pairs within the unit that differ, in both orders, each weighted by 1 / (raters - 1).
        observed += 2 * seen * (raters - seen) / (raters - 1)
    # Pairs of any two ratings that differ, in both orders.
    by_chance = 2 * present * absent
    if not by_chance:
        return None
    return 1 - (present + absent - 1) * observed / by_chance


class SharedPixels:
    """How many pixels two masks share, from what is `known` or by decoding both.

    At most two masks are in memory at the same time, cut to what they show. `new` has what was
    counted here.
    """

    def __init__(self, masks: "MaskStore", known: Mapping[tuple[str, str], int]) -> None:
        self._masks, self._known = masks, known
        self._last: tuple[str, CroppedMask] | None = None
        self.new: dict[tuple[str, str], int] = {}

    def __call__(self, one: NamedMask, other: NamedMask) -> int:
        """Pixels in both masks.

        Raises:
            MaskError: they belong to images of different sizes, or a file is missing or damaged.
        """
        if (one.height, one.width) != (other.height, other.width):
            raise MaskError("two masks of one page belong to images of different sizes")
        if one.hash == other.hash:
            return one.area
        if not one.area or not other.area:
            return 0
        from backend.corrections.cropped_mask import CroppedMask, overlap

        key = ordered(one.hash, other.hash)
        count = self._known.get(key, self.new.get(key))
        if count is None:
            count = overlap(self._decoded(one.hash), CroppedMask.of(self._masks.get(other.hash)))
            self.new[key] = count
        return count

    def _decoded(self, name: str) -> "CroppedMask":
        from backend.corrections.cropped_mask import CroppedMask

        # The same mask is compared with several others in a row.
        if self._last is None or self._last[0] != name:
            self._last = name, CroppedMask.of(self._masks.get(name))
        return self._last[1]


def ordered(one: str, other: str) -> tuple[str, str]:
    """Two masks' names in the order of `MaskOverlap`."""
    return (one, other) if one < other else (other, one)


def compared(
    first: Drawn, second: Drawn, shared: Callable[[NamedMask, NamedMask], int]
) -> dict[str, float]:
    """Dice of every label that at least one of two annotations has, over all pages of the task.

    A label that only one of them has gets 0. Raises as `shared` does.
    """
    found = {}
    for label in sorted({*first, *second}):
        pages, others = first.get(label, {}), second.get(label, {})
        both = sum(shared(pages[page], others[page]) for page in pages.keys() & others.keys())
        found[label] = 2 * both / sum(mask.area for mask in (*pages.values(), *others.values()))
    return found


@dataclass
class Tally:
    """Counts tasks one after the other; holds figures only, no masks."""

    tasks: int = 0
    left_out: int = 0
    gold_tasks: int = 0
    by_task: dict[int, float] = field(default_factory=dict)
    by_label: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    by_pair: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    by_annotator: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    by_gold: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    tasks_of: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    tasks_of_pair: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    presence: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    disputed: list[DisputedTask] = field(default_factory=list)

    def add(self, task: TaskAnnotations, shared: Callable[[NamedMask, NamedMask], int]) -> None:
        """Compare the annotations of one task."""
        several = len(task.by_annotator) > 1
        self.tasks += several
        try:
            pairs = {
                pair: compared(task.by_annotator[pair[0]], task.by_annotator[pair[1]], shared)
                for pair in combinations(sorted(task.by_annotator), 2)
            }
            gold = self._against_gold(task, shared)
        except MaskError:
            self.left_out += several
            return
        self.gold_tasks += bool(gold)
        for annotator, dice in gold.items():
            if dice:
                self.by_gold[annotator].append(fmean(dice.values()))
        if several:
            self._add_pairs(task, pairs)

    def _add_pairs(
        self, task: TaskAnnotations, pairs: Mapping[tuple[int, int], Mapping[str, float]]
    ) -> None:
        seen: dict[str, int] = defaultdict(int)
        for annotator, drawn in task.by_annotator.items():
            self.tasks_of[annotator] += 1
            for label in drawn:
                seen[label] += 1
        self.presence.append((len(task.by_annotator), dict(seen)))
        of_task: dict[str, list[float]] = defaultdict(list)
        of_annotator: dict[int, list[float]] = defaultdict(list)
        for pair, dice in pairs.items():
            self.tasks_of_pair[pair] += 1
            for label, value in dice.items():
                self.by_label[label].append(value)
                of_task[label].append(value)
            if dice:
                self.by_pair[pair].append(fmean(dice.values()))
                for annotator in pair:
                    of_annotator[annotator].append(fmean(dice.values()))
        for annotator, values in of_annotator.items():
            self.by_annotator[annotator].append(fmean(values))
        if of_task:
            means = {label: fmean(values) for label, values in of_task.items()}
            worst = min(means, key=lambda label: (means[label], label))
            score = fmean(means.values())
            self.by_task[task.task_id] = score
            if score < 1:
                self.disputed.append(
                    DisputedTask(task.task_id, len(task.by_annotator), score, worst, means[worst])
                )

    def _against_gold(
        self, task: TaskAnnotations, shared: Callable[[NamedMask, NamedMask], int]
    ) -> dict[int, dict[str, float]]:
        if task.gold is None:
            return {}
        expert, truth = task.gold
        return {
            annotator: compared(truth, drawn, shared)
            for annotator, drawn in task.by_annotator.items()
            if annotator != expert
        }

    def result(self, project_id: int) -> Agreement:
        """What was counted."""
        labels = sorted({label for _, seen in self.presence for label in seen})
        units = {
            label: [(seen.get(label, 0), raters) for raters, seen in self.presence]
            for label in labels
        }
        everyone = sorted({*self.tasks_of, *self.by_gold})
        return Agreement(
            project_id=project_id,
            tasks=self.tasks,
            left_out=self.left_out,
            gold_tasks=self.gold_tasks,
            dice=_mean(list(self.by_task.values())),
            alpha=nominal_alpha(unit for of_label in units.values() for unit in of_label),
            labels=[
                LabelAgreement(
                    label,
                    len(self.by_label[label]),
                    _mean(self.by_label[label]),
                    nominal_alpha(units[label]),
                )
                for label in labels
            ],
            annotators=[
                AnnotatorAgreement(
                    one,
                    self.tasks_of[one],
                    _mean(self.by_annotator[one]),
                    len(self.by_gold[one]),
                    _mean(self.by_gold[one]),
                )
                for one in everyone
            ],
            pairs=[
                AnnotatorPair(*pair, count, _mean(self.by_pair[pair]))
                for pair, count in sorted(self.tasks_of_pair.items())
            ],
            disputed=sorted(self.disputed, key=lambda task: (task.dice, task.task_id))[
                :MOST_DISPUTED
            ],
        )


@dataclass(frozen=True)
class _Compared:
    """The revisions of one task that are compared: of each annotator, and the gold one."""

    task_id: int
    by_annotator: Mapping[int, int]
    gold: tuple[int | None, int] | None


def _compared_revisions(session: Session, project_id: int) -> list[_Compared]:
    """Tasks with several annotators, or with a gold annotation and one of somebody else."""
    rows = session.execute(
        select(Revision.task_id, Revision.annotator, Revision.ground_truth, Revision.id)
        .join(Annotation, Annotation.revision_id == Revision.id)
        .where(
            Annotation.project_id == project_id,
            is_correction(),
        )
        # The last one of an annotator stays.
        .order_by(Revision.task_id, Revision.updated_at, Revision.annotation_id)
    )
    found = []
    for task_id, of_task in groupby(rows, key=lambda row: row.task_id):
        by_annotator: dict[int, int] = {}
        gold = None
        for row in of_task:
            if row.annotator is not None:
                by_annotator[row.annotator] = row.id
            if row.ground_truth:
                gold = (row.annotator, row.id)
        if len(by_annotator) > 1 or (gold and by_annotator.keys() - {gold[0]}):
            found.append(_Compared(task_id, by_annotator, gold))
    return found


def _with_masks(session: Session, tasks: Sequence[_Compared]) -> list[TaskAnnotations]:
    ids = {
        revision
        for task in tasks
        for revision in (*task.by_annotator.values(), *(task.gold[1:] if task.gold else ()))
    }
    drawn: dict[int, dict[str, dict[int, NamedMask]]] = {}
    for chunk in chunked(sorted(ids)):
        # Areas above zero: a brush stroke that was erased again says that the label is absent.
        rows = session.scalars(
            select(ConceptMask).where(ConceptMask.revision_id.in_(chunk), ConceptMask.area > 0)
        )
        for row in rows:
            mask = NamedMask(row.mask_hash, row.height, row.width, row.area)
            pages = drawn.setdefault(row.revision_id, {}).setdefault(row.label, {})
            pages[row.item_index] = mask
    return [
        TaskAnnotations(
            task.task_id,
            {one: drawn.get(revision, {}) for one, revision in task.by_annotator.items()},
            (task.gold[0], drawn.get(task.gold[1], {})) if task.gold else None,
        )
        for task in tasks
    ]


def _known_overlaps(
    session: Session, tasks: Sequence[TaskAnnotations]
) -> dict[tuple[str, str], int]:
    names = {mask.hash for task in tasks for mask in _masks_of(task)}
    return {
        (row.first_hash, row.second_hash): row.pixels
        for chunk in chunked(sorted(names))
        for row in session.scalars(select(MaskOverlap).where(MaskOverlap.first_hash.in_(chunk)))
    }


def _masks_of(task: TaskAnnotations) -> Iterator[NamedMask]:
    for drawn in (*task.by_annotator.values(), *(task.gold[1:] if task.gold else ())):
        for pages in drawn.values():
            yield from pages.values()


def _keep(services: Services, counted: Mapping[tuple[str, str], int]) -> None:
    """Store what was counted, but for masks that were forgotten meanwhile."""
    from backend.corrections import store

    for chunk in chunked(counted):
        with services.database.session() as session:
            store.lock_files(session, shared=True)
            names = {name for pair in chunk for name in pair}
            named = {
                name
                for part in chunked(names)
                for name in session.scalars(
                    select(ConceptMask.mask_hash).where(ConceptMask.mask_hash.in_(part))
                )
            }
            rows: list[dict[str, Any]] = [
                {"first_hash": pair[0], "second_hash": pair[1], "pixels": counted[pair]}
                for pair in chunk
                if named.issuperset(pair)
            ]
            if rows:
                insert_or_ignore(session, MaskOverlap, rows)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
