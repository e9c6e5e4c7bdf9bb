"""Evaluation of propagation: 3D Dice after one, two, three corrected slices, beside what is sober.

The first corrected slice is where the object is largest, each further one where propagation left
the most wrong pixels. The same slices are given to nearest-slice copy and shape interpolation,
which know nothing of the picture; text per slice is asked for every slice on its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsam3_model.errors import DatasetError
from medsam3_model.evaluation.report import figures_table
from medsam3_model.evaluation.volumes import LabelledVolume
from medsam3_model.types import ImageEmbedding
from medsam3_model.video.shapes import interpolated, nearest_copy
from medsam3_model.video.slices import CorrectedSlice
from medsam3_model.video.stacks import propagate_stack

if TYPE_CHECKING:
    from rich.console import Group

    from medsam3_model.predictor import MedSAM3

Volume = NDArray[np.bool_]
SLICES = 3


@dataclass(frozen=True)
class PropagatedObject:
    """One object of one volume after some corrected slices: 3D Dice of each way.

    Attributes:
        corrected: places of the corrected slices, from 0.
        slices: slices that hold the object, of `pages`.
        text: of text per slice; None without a phrase.
    """

    volume: str
    name: str
    pages: int
    slices: int
    corrected: tuple[int, ...]
    propagation: float
    copy: float
    interpolation: float
    text: float | None


@dataclass(frozen=True)
class PropagationReport:
    """What `medsam3 evaluate --mode propagate` measured; the same input gives the same one.

    `seconds_per_slice` is what a slice of one object took on this machine, encoding left out.
    """

    model: str
    dataset: str
    seconds_per_slice: float
    objects: tuple[PropagatedObject, ...]

    def to_json(self, *, indent: int | None = 2) -> str:
        """All of it as JSON; numbers are finite."""
        return json.dumps(asdict(self), indent=indent, allow_nan=False, ensure_ascii=False)

    def render(self) -> Group:
        """Tables for a terminal."""
        from rich.console import Group
        from rich.text import Text

        table = figures_table(
            f"{self.model} on {self.dataset}: 3D Dice, mean over volumes",
            *("object", "corrected", "volumes", "propagation", "copy", "interpolation", "text"),
        )
        for (name, count), rows in _grouped(self.objects).items():
            texts = [row.text for row in rows if row.text is not None]
            table.add_row(
                name,
                str(count),
                str(len(rows)),
                f"{np.mean([row.propagation for row in rows]):.3f}",
                f"{np.mean([row.copy for row in rows]):.3f}",
                f"{np.mean([row.interpolation for row in rows]):.3f}",
                f"{np.mean(texts):.3f}" if texts else "–",
            )
        note = (
            "Corrected: slices whose true mask was given, the largest first, then the worst. "
            f"{1000 * self.seconds_per_slice:.0f} ms for an object on an encoded slice."
        )
        return Group(table, Text(note, style="dim"))


def evaluate_propagation(
    model: MedSAM3,
    volumes: Iterable[LabelledVolume],
    dataset: str,
    *,
    slices: int = SLICES,
    progress: Callable[[int], None] | None = None,
) -> PropagationReport:
    """Propagate the true masks of some slices, and compare what comes with the truth.

    Args:
        model: the model that is judged.
        volumes: with true masks.
        dataset: its name, for the report.
        slices: how many are corrected in the end.
        progress: called with the number of volumes done.

    Raises:
        DatasetError: there is no volume.
    """
    objects: list[PropagatedObject] = []
    spent: list[float] = []
    for done, volume in enumerate(volumes, start=1):
        encoded = _Encoded(model, volume.pages)
        for name, truth in volume.masks.items():
            phrase = volume.phrases.get(name)
            objects += _propagated(model, volume, name, truth, phrase, encoded, slices, spent)
        if progress is not None:
            progress(done)
    if not objects:
        raise DatasetError(f"{dataset} holds no volume")
    return PropagationReport(model.version, dataset, float(np.mean(spent)), tuple(objects))


class _Encoded:
    """The embeddings of a volume's pages, each encoded once."""

    def __init__(self, model: MedSAM3, pages: Sequence[NDArray[np.uint8]]) -> None:
        self._model, self._pages = model, pages
        self._known: dict[int, ImageEmbedding] = {}

    def __call__(self, place: int) -> ImageEmbedding:
        if place not in self._known:
            page = self._pages[place]
            rgb = np.repeat(page[:, :, None], 3, axis=2) if page.ndim == 2 else page
            self._known[place] = self._model.encode_image(rgb)
        return self._known[place]


def _propagated(
    model: MedSAM3,
    volume: LabelledVolume,
    name: str,
    truth: Volume,
    phrase: str | None,
    encoded: _Encoded,
    slices: int,
    spent: list[float],
) -> list[PropagatedObject]:
    """One object with more and more of its slices corrected."""
    text = None if phrase is None else model.encode_text([phrase])
    by_text: float | None = None
    if text is not None:
        answers = [model.detect_all(encoded(place), text)[0] for place in range(len(truth))]
        by_text = dice_3d(np.stack([answer.concept_mask()[0] for answer in answers]), truth)
    for place in range(len(truth)):  # what follows is timed, and all of it is encoded then
        encoded(place)
    areas = truth.sum((1, 2))
    corrected = [int(areas.argmax())]
    rows = []
    for _ in range(min(slices, int((areas > 0).sum()))):
        known = {place: truth[place] for place in corrected}
        drawn = np.zeros_like(truth)
        started = time.perf_counter()
        for one in propagate_stack(
            model,
            encoded,
            len(truth),
            [CorrectedSlice(place, 1, mask) for place, mask in known.items()],
            texts={} if text is None else {1: text},
            pictures=volume.pages.__getitem__,
        ):
            drawn[one.place] = one.mask
        spent.append((time.perf_counter() - started) / len(truth))
        rows.append(
            PropagatedObject(
                volume=volume.name,
                name=name,
                pages=len(truth),
                slices=int((areas > 0).sum()),
                corrected=tuple(sorted(corrected)),
                propagation=dice_3d(drawn, truth),
                copy=dice_3d(np.stack(nearest_copy(known, len(truth))), truth),
                interpolation=dice_3d(np.stack(interpolated(known, len(truth))), truth),
                text=by_text,
            )
        )
        wrong = (drawn != truth).sum((1, 2))
        wrong[corrected] = -1
        corrected.append(int(wrong.argmax()))
    return rows


def dice_3d(drawn: Volume, truth: Volume) -> float:
    """Dice of two volumes (pages, H, W); 1 where both are empty."""
    total = int(drawn.sum()) + int(truth.sum())
    return 2 * int((drawn & truth).sum()) / total if total else 1.0


def _grouped(
    objects: Sequence[PropagatedObject],
) -> Mapping[tuple[str, int], list[PropagatedObject]]:
    grouped: dict[tuple[str, int], list[PropagatedObject]] = {}
    for row in objects:
        grouped.setdefault((row.name, len(row.corrected)), []).append(row)
    return grouped
