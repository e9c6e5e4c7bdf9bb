"""Samples and data sets: images with the truth about them, their groups and their split."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsam3_model.data.masks import ConceptTruth, from_labels
from medsam3_model.errors import DatasetError
from medsam3_model.images.formats import HEAD_BYTES, image_suffix

Split = Literal["train", "val"]

# Share of the groups that are kept for judging. Pre-training and evaluation use the same figure
# and seed 0, which is what makes `split="val"` mean "never trained on".
VAL_FRACTION = 0.2

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dcm", ".dicom", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpeg", ".jpf"}
    | {".jpg", ".jpx", ".nii", ".nii.gz", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff"}
    | {".webp"}
)
_LEFT_BY_SYSTEMS = frozenset({"Thumbs.db", "desktop.ini"})

# Stored and original aspect ratio differ by less than this through rounding to whole pixels.
_ASPECT_TOLERANCE = 0.03


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with what is known about it; `truth` maps each concept in it to its reader.

    Attributes:
        negative: none of the concepts is in it, as its place in the data set says.
        aspect: width / height of the original, where the stored file may be squashed.
        attributes: the other columns of groups.csv.
        pixels: RGB uint8 (H, W, 3) of an image that has no file of its own.
    """

    name: str
    image_path: Path
    group: str
    truth: Mapping[str, Callable[[], ConceptTruth]]
    negative: bool = False
    aspect: float | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def concepts(self) -> frozenset[str]:
        """The concepts that have a mask here; a mask may still turn out to be empty."""
        return frozenset(self.truth)

    def image(self) -> NDArray[np.uint8]:
        """The image as RGB, uint8 (H, W, 3). Raises `ImageError` where it cannot be read."""
        if self.pixels is not None:
            return self.pixels
        from medsam3_model.images.reading import read_image

        rgb = read_image(self.image_path)
        height, width = self._restored(rgb.shape[0], rgb.shape[1])
        if (height, width) == rgb.shape[:2]:
            return rgb
        from PIL import Image

        resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
        return np.array(resized)

    def read(self, concept: str) -> ConceptTruth | None:
        """Mask, boxes and instances of `concept`, or None where it is not in the image.

        Raises `DatasetError` where the mask's file is damaged.
        """
        reader = self.truth.get(concept)
        if reader is None:
            return None
        truth = reader()
        if not truth.mask.any():
            return None
        height, width = self._restored(*truth.mask.shape)
        if (height, width) == truth.mask.shape:
            return truth
        # Nearest pixel: instance numbers cannot be blended.
        rows = (np.arange(height) + 0.5) * truth.mask.shape[0] // height
        columns = (np.arange(width) + 0.5) * truth.mask.shape[1] // width
        return from_labels(truth.labels[rows.astype(int)[:, None], columns.astype(int)])

    def check_size(self, concept: str, truth: ConceptTruth, image: NDArray[np.uint8]) -> None:
        """Raises `DatasetError` where the mask is not as large as the image."""
        if truth.mask.shape != image.shape[:2]:
            raise DatasetError(
                f"The mask of '{concept}' for image '{self.name}' is "
                f"{truth.mask.shape[1]}×{truth.mask.shape[0]} pixels, but the image is "
                f"{image.shape[1]}×{image.shape[0]}. Export both at the same size."
            )

    def _restored(self, height: int, width: int) -> tuple[int, int]:
        """The size at the original aspect ratio; the shorter side keeps its pixels."""
        if self.aspect is None or abs(width / height / self.aspect - 1) < _ASPECT_TOLERANCE:
            return height, width
        if self.aspect >= width / height:
            return height, round(height * self.aspect)
        return round(width / self.aspect), width


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples in the order of their names, and the concepts that their masks are about.

    `exact_names`: the concepts are labels as somebody wrote them, and are asked like that; else
    they may be names of folders, in which "_" stands for a space.
    """

    name: str
    root: Path
    concepts: tuple[str, ...]
    samples: tuple[Sample, ...]
    exact_names: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def split(self, split: Split, *, seed: int = 0, val_fraction: float = VAL_FRACTION) -> Dataset:
        """The samples whose group belongs to `split` by `split_of_group`."""
        kept = tuple(
            sample
            for sample in self.samples
            if split_of_group(sample.group, seed=seed, val_fraction=val_fraction) == split
        )
        return replace(self, samples=kept)

    def check_concepts(self, concepts: Iterable[str]) -> None:
        """Raises `DatasetError` where one of `concepts` is not one of the data set's."""
        for concept in concepts:
            if concept not in self.concepts:
                raise DatasetError(
                    f"{self.name} has no masks of '{concept}'. It has: {', '.join(self.concepts)}."
                )


def split_of_group(group: str, *, seed: int = 0, val_fraction: float = VAL_FRACTION) -> Split:
    """Whether a group is for training or for validation: for ever, whatever else there is.

    The group's name and the seed alone decide (SHA-256 as a number in [0, 1), below
    `val_fraction` is validation), so adding images never moves one across, and a larger fraction
    keeps every validation group of a smaller one. Raises `ValueError` outside 0..1.
    """
    if not 0 <= val_fraction <= 1:
        raise ValueError(f"val_fraction is a share between 0 and 1, not {val_fraction}.")
    return "val" if lot_of_group(group, seed) < val_fraction else "train"


def lot_of_group(group: str, seed: int) -> float:
    """What a group draws, in [0, 1): its name and the seed alone decide."""
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def read_groups(root: Path) -> dict[str, dict[str, str]]:
    """Rows of `groups.csv` by their name (without extension); empty where there is no such file.

    Raises `DatasetError` where the columns `name` and `group` are not there.
    """
    path = root / "groups.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        columns = rows.fieldnames or ()
        if "name" not in columns or "group" not in columns:
            raise DatasetError(f"{path} needs the columns 'name' and 'group' in its first line.")
        return {image_stem(row["name"]): row for row in rows if row["name"]}


def other_columns(row: Mapping[str, str]) -> dict[str, str]:
    """What a row of `groups.csv` says besides name and group."""
    return {key: value for key, value in row.items() if key not in ("name", "group")}


def image_files(folder: Path, *, only: bool = False) -> dict[str, Path]:
    """Image files of a folder by name without extension, sorted.

    A file without an image's extension is one if its first bytes say so. `only`: anything else in
    there is an error, but for what systems leave behind. Raises `DatasetError` for that, and where
    two names differ in their extension alone.
    """
    files: dict[str, Path] = {}
    if not folder.is_dir():
        return files
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or file.name in _LEFT_BY_SYSTEMS or file.is_dir():
            continue
        if not _is_image(file):
            if only:
                raise DatasetError(
                    f"{file} cannot be read as a mask, so its object would count as absent. Save "
                    "masks as PNG, or take the file out of the folder."
                )
            continue
        name = image_stem(file.name)
        if name in files:
            raise DatasetError(
                f"{files[name].name} and {file.name} in {folder} have the same name. Masks "
                "are matched by name without extension, so names have to differ."
            )
        files[name] = file
    return files


def _is_image(file: Path) -> bool:
    if image_suffix_of(file.name):
        return True
    with file.open("rb") as content:
        return image_suffix(content.read(HEAD_BYTES)) is not None


def image_stem(name: str) -> str:
    """The name as files are matched: without an image's extension."""
    suffix = image_suffix_of(name)
    return name[: len(name) - len(suffix)]


def image_suffix_of(name: str) -> str:
    """The image's extension at the end of a name, as it is written; empty where there is none."""
    suffixes = Path(name).suffixes
    for suffix in ("".join(suffixes[-2:]), suffixes[-1] if suffixes else ""):
        if suffix.lower() in IMAGE_SUFFIXES:
            return suffix
    return ""
