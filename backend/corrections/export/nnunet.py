"""nnU-Net's raw data: `DatasetNNN_Name/` with `imagesTr/`, `labelsTr/` and `dataset.json`.

As its documentation says for two-dimensional images: PNG without loss, one number per label in a
map as large as the image, 0 for background and no number left out. nnU-Net would make its folds
without regard to groups, so `splits_final.json` has the version's own split as its only fold.
"""

import csv
import io
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export import OverlapRule
from backend.corrections.export.pages import ExportPage, PagesWithImages, write_file, write_json
from backend.corrections.export.pictures import pixels_of, png
from backend.corrections.mask_store import MaskStore
from backend.errors import DatasetVersionError

_BACKGROUND = "background"
# Names that nnU-Net gives a meaning of its own.
_RESERVED = (_BACKGROUND, "ignore")
_LARGEST_NUMBER = 999


def write(
    version: ExportedVersion,
    pages: PagesWithImages,
    folder: Path,
    masks: MaskStore,
    *,
    overlap: OverlapRule,
) -> None:
    """Write a dataset version into a folder.

    Raises:
        DatasetVersionError: masks of different labels overlap and `overlap` refuses that, or a
            label has a name that means something else to nnU-Net.
    """
    root = folder / dataset_name(version)
    numbers = _numbers(version)
    splits: dict[str, list[str]] = {"train": [], "val": []}
    lost: list[tuple[str, str, int]] = []
    coloured: dict[Path, bool] = {}
    for page, content in pages:
        if content is not None:
            pixels = pixels_of(page, content)
            path = root / "imagesTr" / f"{page.stem}_0000.png"
            write_file(path, png(pixels))
            coloured[path] = pixels.ndim == 3
        numbered, lost_here = _label_map(page, masks, numbers, overlap)
        write_file(root / "labelsTr" / f"{page.stem}.png", png(numbered))
        splits[page.item.split].append(page.stem)
        lost += lost_here
    in_colours = any(coloured.values())
    if in_colours:
        # All images of a set have the same channels.
        for path in (path for path, has_colours in coloured.items() if not has_colours):
            _repeat_grey(path)
    channels = ("R", "G", "B") if in_colours else ("grey",)
    write_json(
        root / "dataset.json",
        {
            "name": version.name,
            "channel_names": {str(number): name for number, name in enumerate(channels)},
            "labels": {_BACKGROUND: 0, **numbers},
            "numTraining": sum(map(len, splits.values())),
            "file_ending": ".png",
        },
    )
    write_json(root / "splits_final.json", [splits])
    if overlap is not OverlapRule.REFUSE:
        write_file(folder / "overlaps.csv", _table(lost))


def dataset_name(version: ExportedVersion) -> str:
    """`DatasetNNN_Name`: the project's number, its last three digits if it has more."""
    plain = unicodedata.normalize("NFKD", version.name).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9-]+", "-", plain).strip("-") or "corrections"
    number = version.project_id % (_LARGEST_NUMBER + 1) or _LARGEST_NUMBER
    return f"Dataset{number:03d}_{name}"


def _numbers(version: ExportedVersion) -> dict[str, int]:
    labels = {concept.label for item in version.items for concept in item.task.concepts} - {""}
    for label in sorted(labels):
        if label.strip().lower() in _RESERVED:
            raise DatasetVersionError(
                f'nnU-Net gives "{label}" a meaning of its own: rename the label, or export in '
                "another format"
            )
    return {label: number for number, label in enumerate(sorted(labels), start=1)}


def _label_map(
    page: ExportPage, masks: MaskStore, numbers: dict[str, int], overlap: OverlapRule
) -> tuple[NDArray[Any], list[tuple[str, str, int]]]:
    """A page's labels as numbers, and by label how many of its pixels went to another one."""
    # Few labels fit into 8 bits, which every reader of PNG takes.
    numbered = np.zeros(page.size, np.uint8 if len(numbers) < 256 else np.uint16)
    concepts = [concept for concept in page.concepts if concept.label and concept.area]
    # The largest first, so that smaller ones are painted over it; by name where they are equal.
    concepts.sort(key=lambda concept: (-concept.area, concept.label))
    drawn = {concept.label: masks.get(concept.mask_hash) for concept in concepts}
    for label, mask in drawn.items():
        if overlap is OverlapRule.REFUSE and (taken := numbered[mask]).any():
            other = next(name for name, number in numbers.items() if number == taken.max())
            raise DatasetVersionError(
                f'in task {page.item.task.task_id} "{other}" and "{label}" have '
                f"{np.count_nonzero(taken)} pixels in common, and nnU-Net keeps one label of a "
                "pixel: export with --overlap smallest, or correct the task"
            )
        numbered[mask] = numbers[label]
    lost = [
        (page.stem, label, int(np.count_nonzero(numbered[mask] != numbers[label])))
        for label, mask in sorted(drawn.items())
    ]
    return numbered, [row for row in lost if row[2]]


def _repeat_grey(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        grey = np.asarray(image)
    path.write_bytes(png(np.repeat(grey[..., None], 3, axis=2)))


def _table(lost: list[tuple[str, str, int]]) -> bytes:
    """`overlaps.csv`: what labels lost to smaller ones."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("name", "label", "pixels"))
    rows.writerows(lost)
    return table.getvalue().encode()
