"""Volumes with true masks, for judging propagation: NIfTI pairs, folders of them, the template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam3_model.data.template import TEMPLATE_CONCEPTS, template_slice
from medsam3_model.errors import DatasetError
from medsam3_model.images.geometry import nearest, page_of
from medsam3_model.images.limits import ImageLimits
from medsam3_model.images.nifti import read_nifti
from medsam3_model.images.rendering import RefusedStack, StackOptions
from medsam3_model.images.stacks import find_stacks

TEMPLATE = "template"
# The template's brain begins and ends on these axial slices.
_TEMPLATE_SLICES = range(3, 184)
_LIMITS = ImageLimits(max_bytes=2**31, max_pixels=10**8)


@dataclass(frozen=True, eq=False)
class LabelledVolume:
    """A stack of pages with the true masks of its objects.

    Attributes:
        name: of the file.
        pages: as an annotator sees them, uint8 (H, W) or (H, W, 3).
        masks: object's name → bool (pages, H, W).
        phrases: what the objects are, where that is known.
    """

    name: str
    pages: Sequence[NDArray[np.uint8]]
    masks: Mapping[str, NDArray[np.bool_]]
    phrases: Mapping[str, str]


def volume_pairs(data: Path, labels: Path | None) -> list[tuple[Path, Path]]:
    """The image and label files that `--data` and `--labels` name.

    Two files, or two folders whose files have the same names; `labels` may be left out for a
    folder with `images/` and `labels/`.

    Raises:
        DatasetError: something is missing.
    """
    if data.is_dir():
        images = data / "images" if labels is None else data
        labels = labels or data / "labels"
        pairs = [(path, labels / path.name) for path in sorted(images.glob("*.nii*"))]
        if not pairs:
            raise DatasetError(f"{images} holds no .nii or .nii.gz file")
    elif labels is None:
        raise DatasetError("--labels is missing: the NIfTI file with the volume's true masks")
    else:
        pairs = [(data, labels)]
    for path in (path for pair in pairs for path in pair):
        if not path.is_file():
            raise DatasetError(f"there is no file {path}")
    return pairs


def read_volumes(
    data: Path, labels: Path | None, prompts: Sequence[str] = ()
) -> Iterator[LabelledVolume]:
    """Volumes with the masks of their objects, one after the other.

    Args:
        data: a NIfTI file, a folder, or `template`.
        labels: the masks; see `volume_pairs`.
        prompts: `5=liver` names the object of a label value, `1+2=hippocampus` that of several,
            and a phrase alone all that is not background. None: every value is an object.

    Raises:
        DatasetError: files or values are missing, or image and labels differ in shape.
        ImageError: a file is damaged.
    """
    if str(data) == TEMPLATE:
        yield _template(prompts)
        return
    for image, label in volume_pairs(data, labels):
        yield _read_pair(image, label, prompts)


def _template(prompts: Sequence[str]) -> LabelledVolume:
    names = dict(_named(prompt) for prompt in prompts) or dict.fromkeys(TEMPLATE_CONCEPTS, "")
    names = {phrase or name: "" for name, phrase in names.items()}
    if unknown := names.keys() - set(TEMPLATE_CONCEPTS):
        known = ", ".join(TEMPLATE_CONCEPTS)
        raise DatasetError(f"the template has {known}, and no {sorted(unknown)[0]}")
    slices = [template_slice(index) for index in _TEMPLATE_SLICES]
    masks = {name: np.stack([one.masks[name] for one in slices]) for name in names}
    return LabelledVolume(
        "mni152", [one.image for one in slices], masks, {name: name for name in names}
    )


def _named(prompt: str) -> tuple[str, str]:
    name, _, phrase = prompt.partition("=")
    return name.strip(), phrase.strip()


def _read_pair(image: Path, label: Path, prompts: Sequence[str]) -> LabelledVolume:
    stack = next(iter(find_stacks(image, StackOptions(), _LIMITS)))
    if isinstance(stack, RefusedStack):
        raise DatasetError(f"{image.name}: {stack.reason}")
    with label.open("rb") as file:
        values = np.asanyarray(read_nifti(file, _LIMITS).dataobj)
    geometry = stack.geometry
    if values.shape[:3] != geometry.source_shape[:3]:
        raise DatasetError(
            f"{label.name} has the shape {values.shape}, but its image {geometry.source_shape}"
        )
    pages = list(stack.pages())
    rows = nearest(geometry.page_size[0], geometry.slice_size[0])
    columns = nearest(geometry.page_size[1], geometry.slice_size[1])
    truth = np.stack(
        [
            np.rint(page_of(values, geometry, page)).astype(np.int64)[rows[:, None], columns]
            for page in range(geometry.pages)
        ]
    )
    present = np.unique(truth[truth > 0]).tolist()
    if not present:
        raise DatasetError(f"{label.name} holds nothing but background")
    masks: dict[str, NDArray[np.bool_]] = {}
    phrases: dict[str, str] = {}
    for prompt in prompts or [str(value) for value in present]:
        name, phrase = _named(prompt)
        meant = _values(name)
        if meant is None:
            meant, phrase = present, phrase or name
        name = phrase or name
        if (mask := np.isin(truth, meant)).any():
            masks[name] = mask
            if phrase:
                phrases[name] = phrase
    if not masks:
        raise DatasetError(f"{label.name} holds none of the values that --prompt names")
    return LabelledVolume(image.name.partition(".")[0], pages, masks, phrases)


def _values(name: str) -> list[int] | None:
    """`1+2` as numbers, None for a name."""
    parts = name.split("+")
    return (
        [int(part) for part in parts] if all(part.strip().isdecimal() for part in parts) else None
    )
