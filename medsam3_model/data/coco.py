"""COCO's instance annotations (https://cocodataset.org/#format-data) as a data set."""

import json
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from medsam3_model.boxes import MINIMUM_AREA, tight_box
from medsam3_model.data.exported import CONCEPTS_FILE
from medsam3_model.data.masks import ConceptTruth
from medsam3_model.data.samples import (
    Dataset,
    Sample,
    image_stem,
    other_columns,
    read_groups,
)
from medsam3_model.data.scan_conversion import winding_numbers
from medsam3_model.errors import DatasetError, ImageError
from medsam3_model.images.limits import DEFAULT_LIMITS

# A name that was encoded for an address of an address.
_ENCODED_AT_MOST = 2


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
                # Left out, it would say that the object is not there.
                raise DatasetError(
                    f"A segmentation in {self.source} covers no pixel's centre. Draw it anew, or "
                    "take the annotation out."
                )
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
        if not segmentation:
            raise DatasetError(
                f"An annotation in {self.source} has no segmentation. A box is no mask, and no "
                "absence: draw the outline, or take the annotation out."
            )
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
    if len(corners) < 3:
        raise ValueError("a polygon has at least three corners")
    inside = np.zeros((height, width), np.bool_)
    try:
        for top, winding in winding_numbers(corners, height, width):
            inside[top : top + len(winding)] = winding % 2 == 1
    except ValueError as error:
        raise ValueError(f"a polygon {error}") from None
    return inside


def decode_runs(counts: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """COCO's run lengths, down the columns and beginning with background, as bool (H, W).

    Raises `ValueError` where they do not add up to the image.
    """
    lengths = np.asarray(counts, np.int64)
    size = height * width
    # One by one first: the sum of numbers that are too large may come out right.
    fit = lengths.ndim == 1 and ((lengths >= 0) & (lengths <= size)).all()
    if not fit or lengths.sum() != size:
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
    higher; where there is none, by what Label Studio makes of a name (percent-encoding, folders of
    its own, backslashes). A group comes from groups.csv beside the file, else from the image's own
    key "group" or "patient_id", else the image is its own group. Raises `DatasetError` where the
    file is not COCO, images are missing or too large, or an annotation has no mask.
    """
    content = _read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
        raise DatasetError(f"{path} is not a COCO file: 'images' and 'annotations' are missing.")
    try:
        names = {int(item["id"]): _category(item) for item in content.get("categories", [])}
        shapes: dict[int, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for item in content["annotations"]:
            # Without a segmentation, too: the object is there, and reading it says what is wrong.
            shapes[int(item["image_id"])][names[int(item["category_id"])]].append(
                item.get("segmentation")
            )
        groups = read_groups(path.parent)
        samples = [
            _sample(path, item, shapes.get(int(item["id"]), {}), groups)
            for item in content["images"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{path} is not a valid COCO file: {error!r:.200}.") from error
    if not names:
        raise DatasetError(f"{path} has no categories, so there is no concept to look for.")
    if not samples:
        raise DatasetError(f"{path} lists no images.")
    for what, number in (
        ("images twice", len({sample.name for sample in samples})),
        ("images under several names", len({sample.image_path for sample in samples})),
    ):
        if number < len(samples):
            raise DatasetError(f"{path} lists {len(samples) - number} {what}.")
    unknown = set(shapes) - {int(item["id"]) for item in content["images"]}
    if unknown:
        raise DatasetError(f"{path} has annotations of an image {min(unknown)}, which it lacks.")
    samples.sort(key=lambda sample: sample.name)
    root = path.parent.parent if path.parent.name == "annotations" else path.parent
    exact = (path.parent / CONCEPTS_FILE).is_file()
    return Dataset(root.name, root, tuple(sorted(set(names.values()))), tuple(samples), exact)


def _category(item: Mapping[str, Any]) -> str:
    if not isinstance(item["name"], str | int):
        raise TypeError("the name of a category is no text")
    return str(item["name"])


def _sample(
    path: Path,
    item: Mapping[str, Any],
    shapes: Mapping[str, list[Any]],
    groups: Mapping[str, Mapping[str, str]],
) -> Sample:
    file_name = str(item["file_name"])
    height, width = int(item["height"]), int(item["width"])
    try:
        DEFAULT_LIMITS.check_pixels(width, height)
    except ImageError as error:
        raise DatasetError(f"{path} cannot be used for '{file_name}': {error}.") from error
    image = _find_image(path, file_name)
    relative = PurePosixPath(file_name.replace("\\", "/"))
    # A path of another machine says nothing here, so the name of what was found has to do.
    name = image_stem(str(relative) if _is_below(relative) else image.name)
    row = next(
        (
            groups[key]
            for key in (name, PurePosixPath(name).name, image_stem(image.name))
            if key in groups
        ),
        {},
    )
    group = row.get("group") or item.get("group") or item.get("patient_id") or name
    truth = {
        concept: CocoTruth(f"{path} (image '{file_name}')", height, width, tuple(drawn))
        for concept, drawn in shapes.items()
    }
    return Sample(name, image, str(group), truth, attributes=other_columns(row))


def _find_image(path: Path, file_name: str) -> Path:
    here = path.parent
    beside, higher = [here, here / "images"], [here.parent, here.parent / "images"]
    for relative in _readings(file_name):
        # What was only guessed at is not looked for above the data set.
        is_literal = str(relative) == file_name or here.name == "annotations"
        for folder in [*beside, *(higher if is_literal else [])]:
            found = _file_in(folder, relative)
            if found is not None:
                return found
    raise DatasetError(
        f"{path} lists '{file_name}', which is neither in {here} nor in images/ there. "
        "Put the images beside the file."
    )


def _readings(file_name: str) -> list[PurePosixPath]:
    """What a `file_name` may mean, its own words first; none leads out of the folder.

    Label Studio writes paths of its server, with backslashes on Windows, and addresses: percent-
    encoded, with a query, or with the file in the query (`/data/local-files/?d=...`).
    """
    texts = [file_name, file_name.replace("\\", "/")]
    with suppress(ValueError):  # no address after all
        address = urlsplit(texts[-1])
        in_query = [value for key, value in parse_qsl(address.query) if key == "d"]
        texts += [address.path, *in_query]
    for text in list(texts):
        for _ in range(_ENCODED_AT_MOST):
            text = unquote(text).replace("\\", "/")
            texts.append(text)
    paths = [PurePosixPath(text) for text in dict.fromkeys(texts) if "\0" not in text]
    paths = [*paths, *(PurePosixPath(path.name) for path in paths)]
    return list(dict.fromkeys(path for path in paths if path.name and _is_below(path)))


def _is_below(path: PurePosixPath) -> bool:
    return not path.is_absolute() and ".." not in path.parts


def _file_in(folder: Path, relative: PurePosixPath) -> Path | None:
    """The file, whichever way its name spells accented letters (macOS takes them apart)."""
    for form in ("NFC", "NFD"):
        file = folder / unicodedata.normalize(form, str(relative))
        if (folder / relative).is_file():
            return folder / relative
        if file.is_file():
            return file
    return None


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
