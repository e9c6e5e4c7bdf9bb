"""COCO's instance annotations (https://cocodataset.org/#format-data) as a data set."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3_model.boxes import MINIMUM_AREA, tight_box
from medsam3_model.data.masks import ConceptTruth
from medsam3_model.data.samples import Dataset, Sample, other_columns, read_groups
from medsam3_model.errors import DatasetError


@dataclass(frozen=True, eq=False)
class CocoTruth:
    """The annotations of one category on one image; calling it paints them."""

    source: str
    height: int
    width: int
    segmentations: tuple[Any, ...] = field(repr=False)

    def __call__(self) -> ConceptTruth:
        """Mask, boxes and numbered instances; each box is its instance's own, overlapped or not.

        Raises `DatasetError` where a segmentation is malformed.
        """
        labels = np.zeros((self.height, self.width), np.int32)
        boxes = []
        largest: tuple[int, NDArray[np.float32]] | None = None
        for number, segmentation in enumerate(self.segmentations, start=1):
            painted = self._paint(segmentation)
            area = int(np.count_nonzero(painted))
            if area == 0:
                continue
            labels[painted] = number
            box = tight_box(painted)
            if area >= MINIMUM_AREA:
                boxes.append(box)
            if largest is None or area > largest[0]:
                largest = (area, box)
        if not boxes and largest is not None:
            boxes = [largest[1]]
        return ConceptTruth(labels != 0, np.array(boxes, np.float32).reshape(-1, 4), labels)

    def _paint(self, segmentation: Any) -> NDArray[np.bool_]:
        try:
            if isinstance(segmentation, list):
                painted = np.zeros((self.height, self.width), bool)
                for polygon in segmentation:
                    corners = np.asarray(polygon, np.float64).reshape(-1, 2)
                    painted |= fill_polygon(corners, self.height, self.width)
                return painted
            if tuple(segmentation["size"]) != (self.height, self.width):
                raise ValueError(f"its size is {segmentation['size']}")
            counts = segmentation["counts"]
            return decode_runs(
                unpack_counts(counts) if isinstance(counts, str) else counts,
                self.height,
                self.width,
            )
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise DatasetError(
                f"A segmentation in {self.source} cannot be read ({error}). Expected are polygons "
                f"or run lengths for {self.width}×{self.height} pixels."
            ) from error


def fill_polygon(corners: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Pixels whose centre lies inside the polygon, bool (H, W), by the even-odd rule.

    `corners` are (N, 2) x and y at pixel edges, as COCO has them, without repeating the first.
    Raises `ValueError` for fewer than three corners or coordinates that are not finite.
    """
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError("a polygon has at least three corners with finite coordinates")
    x0, y0 = corners.T
    x1, y1 = np.roll(corners, -1, axis=0).T
    centres = np.arange(height)[:, None] + 0.5
    crossed = (y0 <= centres) != (y1 <= centres)  # (H, N): edges that a row of centres crosses
    rows, edges = np.nonzero(crossed)
    slope = (x1 - x0)[edges] / (y1 - y0)[edges]
    crossings = x0[edges] + (rows + 0.5 - y0[edges]) * slope
    # A centre is inside where an odd number of crossings lies to its left.
    first_right = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
    # Each crossing flips all that lies to its right; the sum along a row counts the flips.
    flips = np.zeros((height, width + 1), np.int32)
    np.add.at(flips, (rows, first_right), 1)
    return np.cumsum(flips, axis=1)[:, :width] % 2 == 1


def decode_runs(counts: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """COCO's run lengths, down the columns and beginning with background, as bool (H, W).

    Raises `ValueError` where they do not add up to the image.
    """
    lengths = np.asarray(counts, np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError("its run lengths do not add up to the image")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T


def unpack_counts(packed: str) -> list[int]:
    """The run lengths of COCO's compressed string.

    Five bits a character from "0" on, the sixth says that more follow, the sign is the fifth of
    the last; from the fourth number on the difference to the last but one (`rleFrString` in
    pycocotools' maskApi.c). Raises `ValueError` where it ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in packed:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its compressed run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        # The number is complete; its last character's fifth bit makes it negative.
        if bits & 16:
            value -= 1 << shift
        # Three numbers stand for themselves, the others for the difference to two numbers before.
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its compressed run lengths end within a number")
    return counts


def annotation_files(root: Path) -> list[Path]:
    """The COCO files of a folder and of its annotations/, judged by their keys."""
    candidates = [*sorted(root.glob("*.json")), *sorted(root.glob("annotations/*.json"))]
    return [file for file in candidates if {"images", "annotations"} <= set(_keys(file))]


def load_coco(path: Path) -> Dataset:
    """The images of a COCO JSON file, each category a concept.

    Images are looked up by `file_name` beside the file, in images/ there, and the same one folder
    higher. A group comes from groups.csv beside the file, else from the image's own key "group"
    or "patient_id", else the image is its own group. Raises `DatasetError` where the file is not
    COCO, or images are missing.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
        raise DatasetError(f"{path} is not a COCO file: 'images' and 'annotations' are missing.")
    try:
        names = {int(item["id"]): str(item["name"]) for item in content.get("categories", [])}
        shapes: dict[int, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for item in content["annotations"]:
            if item.get("segmentation"):
                shapes[int(item["image_id"])][names[int(item["category_id"])]].append(
                    item["segmentation"]
                )
        groups = read_groups(path.parent)
        samples = [
            _sample(path, item, shapes.get(int(item["id"]), {}), groups)
            for item in content["images"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{path} is not a valid COCO file: {error!r}.") from error
    if not names:
        raise DatasetError(f"{path} has no categories, so there is no concept to look for.")
    if not samples:
        raise DatasetError(f"{path} lists no images.")
    repeated = len(samples) - len({sample.name for sample in samples})
    if repeated:
        raise DatasetError(f"{path} lists {repeated} images twice.")
    samples.sort(key=lambda sample: sample.name)
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    return Dataset(root.name, root, tuple(sorted(set(names.values()))), tuple(samples))


def _sample(
    path: Path,
    item: Mapping[str, Any],
    shapes: Mapping[str, list[Any]],
    groups: Mapping[str, Mapping[str, str]],
) -> Sample:
    file_name = str(item["file_name"])
    name = str(PurePosixPath(file_name).with_suffix(""))
    row = groups.get(name) or groups.get(PurePosixPath(name).name, {})
    group = row.get("group") or item.get("group") or item.get("patient_id") or name
    truth = {
        concept: CocoTruth(
            f"{path} (image '{file_name}')", int(item["height"]), int(item["width"]), tuple(drawn)
        )
        for concept, drawn in shapes.items()
    }
    image = _find_image(path, file_name)
    return Sample(name, image, str(group), truth, attributes=other_columns(row))


def _find_image(path: Path, file_name: str) -> Path:
    here = path.parent
    relative = PurePosixPath(file_name)
    # A file_name is text from outside: it may not lead out of the data set's own folders.
    if not relative.is_absolute() and ".." not in relative.parts:
        for folder in (here, here / "images", here.parent, here.parent / "images"):
            if (folder / relative).is_file():
                return folder / relative
    raise DatasetError(
        f"{path} lists '{file_name}', which is neither in {here} nor in images/ there. "
        "Put the images beside the file."
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as JSON: {error}") from error


def _keys(path: Path) -> list[str]:
    try:
        content = _read_json(path)
    except DatasetError:
        return []
    return list(content) if isinstance(content, dict) else []
