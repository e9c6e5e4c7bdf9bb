"""Images with masks on disk, as they are handed around: a folder, or a COCO JSON file.

The folder's layout (file names match by what stands before the extension):

```
images/NAME.png           any format of `medsam3_model.images.reading`, any size
masks/NAME.png            one concept: the mask; no file: the concept is not in the image
masks/CONCEPT/NAME.png    several concepts, one folder each
instances/NAME.png        optional, in place of or beside masks/: one value per instance (16-bit)
instances/CONCEPT/NAME.png
negatives/NAME.png        optional: images that hold none of the concepts
groups.csv                optional: columns name, group and others (patient, video, near-duplicates)
```

Reading a data set only lists files; pixels are read when a sample is asked for them.
"""

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsam3_model.data.masks import (
    ConceptMask,
    from_labels,
    from_mask,
    read_instances_file,
    read_mask_file,
)
from medsam3_model.errors import DatasetError

Split = Literal["train", "val"]

# Share of the groups that are kept for judging. Pre-training and evaluation use the same figure
# and seed 0, which is what makes `split="val"` mean "never trained on".
VAL_FRACTION = 0.2

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".dcm", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)

TEMPLATE = "template"

# Stored and original aspect ratio differ by less than this through rounding to whole pixels.
_ASPECT_TOLERANCE = 0.03


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with what is known about it; `truth` maps each concept in it to its reader.

    Attributes:
        negative: none of the concepts is in it, as its place in the data set says.
        aspect: width / height of the original, where the stored file may be squashed.
        attributes: the other columns of groups.csv.
        pixels: RGB uint8 (H, W, 3) of an image that lies in no file of its own.
    """

    name: str
    image_path: Path
    group: str
    truth: Mapping[str, Callable[[], ConceptMask]]
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

    def read(self, concept: str) -> ConceptMask | None:
        """Mask, boxes and instances of `concept`, or None where it is not in the image.

        Raises `DatasetError` where the mask's file is damaged.
        """
        reader = self.truth.get(concept)
        if reader is None:
            return None
        found = reader()
        if not found.mask.any():
            return None
        height, width = self._restored(*found.mask.shape)
        if (height, width) == found.mask.shape:
            return found
        rows = (np.arange(height) + 0.5) * found.mask.shape[0] // height
        columns = (np.arange(width) + 0.5) * found.mask.shape[1] // width
        return from_labels(found.labels[rows.astype(int)[:, None], columns.astype(int)])

    def image_and_mask(self, concept: str) -> tuple[NDArray[np.uint8], ConceptMask | None]:
        """`image()` and `read(concept)`; raises `DatasetError` where their sizes differ."""
        image, found = self.image(), self.read(concept)
        if found is not None:
            self.check_size(concept, found, image)
        return image, found

    def check_size(self, concept: str, found: ConceptMask, image: NDArray[np.uint8]) -> None:
        """Raises `DatasetError` where the mask is not as large as the image."""
        if found.mask.shape != image.shape[:2]:
            raise DatasetError(
                f"The mask of '{concept}' for image '{self.name}' is "
                f"{found.mask.shape[1]}×{found.mask.shape[0]} pixels, but the image is "
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
    """Samples in the order of their names, and the concepts that their masks are about."""

    name: str
    root: Path
    concepts: tuple[str, ...]
    samples: tuple[Sample, ...]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def groups(self) -> tuple[str, ...]:
        """The different groups, sorted."""
        return tuple(sorted({sample.group for sample in self.samples}))

    def split(
        self, split: Split, *, seed: int = 0, val_fraction: float = VAL_FRACTION
    ) -> "Dataset":
        """The samples whose group belongs to `split` by `split_of_group`."""
        kept = tuple(
            sample
            for sample in self.samples
            if split_of_group(sample.group, seed=seed, val_fraction=val_fraction) == split
        )
        return replace(self, samples=kept)


def split_of_group(group: str, *, seed: int = 0, val_fraction: float = VAL_FRACTION) -> Split:
    """Whether a group is for training or for validation: for ever, whatever else there is.

    The group's name and the seed alone decide (SHA-256 as a number in [0, 1), below
    `val_fraction` is validation), so adding images never moves one across, and a larger fraction
    keeps every validation group of a smaller one. Raises `ValueError` outside 0..1.
    """
    if not 0 <= val_fraction <= 1:
        raise ValueError(f"val_fraction is a share between 0 and 1, not {val_fraction}.")
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") / 2**64 < val_fraction else "train"


def load_dataset(path: Path | str, *, concept: str = "object") -> Dataset:
    """A data set from a folder of the layout above, a COCO JSON file, or a folder with one.

    "template", where there is no such file, gives the brain slices that the bundled model was
    never trained on (`template_dataset`). `concept` names what the masks show where the layout
    does not (`masks/` without subfolders). Raises `DatasetError` with what is missing and what
    the layout should be.
    """
    from medsam3_model.data import coco

    root = Path(path)
    if root == Path(TEMPLATE) and not root.exists():
        return template_dataset()
    if root.is_file():
        if root.suffix.lower() != ".json":
            raise DatasetError(f"{root} is a file, but neither a folder nor a COCO .json file.")
        return coco.load_coco(root)
    if not root.is_dir():
        raise DatasetError(f"There is no folder {root}. Give one with images/ and masks/.")
    if (root / "masks").is_dir() or (root / "instances").is_dir():
        return _load_folder(root, concept)
    annotation_files = coco.annotation_files(root)
    if len(annotation_files) == 1:
        return coco.load_coco(annotation_files[0])
    if annotation_files:
        names = ", ".join(str(file.relative_to(root)) for file in annotation_files[:4])
        raise DatasetError(f"{root} holds several COCO files ({names}). Give one of them.")
    raise DatasetError(
        f"{root} holds no masks. Expected are images/NAME.png with masks/NAME.png or "
        "masks/CONCEPT/NAME.png beside it, or one COCO .json file."
    )


def template_dataset() -> Dataset:
    """The held-out slices of the MNI152 template with brain, grey and white matter.

    Raises `DatasetError` where the package that carries them is not installed.
    """
    from medsam3_model.data.template import TEMPLATE_CONCEPTS, demo_slices

    samples = tuple(
        Sample(
            name=one.name,
            image_path=Path(TEMPLATE) / one.name,
            group=one.name,
            truth={concept: partial(from_mask, mask) for concept, mask in one.masks.items()},
            pixels=one.image,
        )
        for one in demo_slices()
    )
    return Dataset(TEMPLATE, Path(TEMPLATE), tuple(sorted(TEMPLATE_CONCEPTS)), samples)


def load_images(path: Path | str) -> Dataset:
    """All images of a data set, as images without any concept: for counting false alarms.

    Takes what `load_dataset` takes, and a plain folder of image files.
    """
    root = Path(path)
    if root.is_dir() and not any(
        (root / part).is_dir() for part in ("images", "masks", "instances", "negatives")
    ):
        groups = read_groups(root)
        files = _image_files(root)
        samples = [_sample(name, file, groups, {}, negative=True) for name, file in files.items()]
        if not samples:
            raise DatasetError(f"{root} holds no images. Give a folder with image files.")
        return Dataset(root.name, root, (), tuple(samples))
    dataset = load_dataset(root)
    return replace(
        dataset,
        concepts=(),
        samples=tuple(replace(sample, truth={}, negative=True) for sample in dataset),
    )


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
        return {_stem(row["name"]): row for row in rows if row["name"]}


def _load_folder(root: Path, concept: str) -> Dataset:
    if not (root / "images").is_dir():
        raise DatasetError(f"{root} has masks but no images/. Put the images there.")
    groups = read_groups(root)
    images = _image_files(root / "images")
    if not images:
        raise DatasetError(f"{root / 'images'} holds no images ({_suffixes()}).")
    truth: dict[str, dict[str, Callable[[], ConceptMask]]] = {name: {} for name in images}
    concepts: set[str] = set()
    # Instances after masks: where both are there, the separated instances are the better truth.
    for folder, reader in (("masks", read_mask_file), ("instances", read_instances_file)):
        for owner, files in _mask_folders(root / folder, concept).items():
            concepts.add(owner)
            stray = sorted(set(files) - set(images))
            if stray:
                raise DatasetError(
                    f"{len(stray)} masks in {root / folder} for '{owner}' have no image of that "
                    f"name ({', '.join(stray[:3])}). A mask is named like its image."
                )
            for name, file in files.items():
                truth[name][owner] = partial(reader, file)
    if not concepts:
        raise DatasetError(f"{root / 'masks'} holds no masks ({_suffixes()}).")
    samples = [_sample(name, file, groups, truth[name]) for name, file in images.items()]
    for name, file in _image_files(root / "negatives").items():
        if name in images:
            raise DatasetError(f"'{name}' is in both images/ and negatives/ of {root}.")
        samples.append(_sample(name, file, groups, {}, negative=True))
    return Dataset(root.name, root, tuple(sorted(concepts)), tuple(samples))


def _sample(
    name: str,
    file: Path,
    groups: Mapping[str, Mapping[str, str]],
    truth: Mapping[str, Callable[[], ConceptMask]],
    negative: bool = False,
) -> Sample:
    row = groups.get(name, {})
    attributes = {key: value for key, value in row.items() if key not in ("name", "group")}
    return Sample(
        name=name,
        image_path=file,
        group=row.get("group") or name,
        truth=truth,
        negative=negative,
        aspect=_aspect(attributes),
        attributes=attributes,
    )


def _aspect(attributes: Mapping[str, str]) -> float | None:
    try:
        return float(attributes["orig_w"]) / float(attributes["orig_h"])
    except (KeyError, ValueError, ZeroDivisionError):
        return None


def _mask_folders(folder: Path, concept: str) -> dict[str, dict[str, Path]]:
    """Mask files by concept and name, of `folder` itself or of its subfolders."""
    if not folder.is_dir():
        return {}
    subfolders = sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    files = _image_files(folder)
    if subfolders and files:
        raise DatasetError(
            f"{folder} holds both files and subfolders. For several concepts put every mask into "
            "the subfolder of its concept, for one concept use no subfolders."
        )
    if subfolders:
        return {entry.name: _image_files(entry) for entry in subfolders}
    return {concept: files} if files else {}


def _image_files(folder: Path) -> dict[str, Path]:
    """Image files of a folder by name without extension, sorted."""
    found: dict[str, Path] = {}
    if not folder.is_dir():
        return found
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in IMAGE_SUFFIXES or file.name.startswith("."):
            continue
        if file.stem in found:
            raise DatasetError(
                f"{found[file.stem].name} and {file.name} in {folder} have the same name. Masks "
                "are matched by name without extension, so names have to differ."
            )
        found[file.stem] = file
    return found


def _stem(name: str) -> str:
    """The name as files are matched: without an image's extension."""
    return name[: -len(suffix)] if (suffix := _known_suffix(name)) else name


def _known_suffix(name: str) -> str:
    suffix = Path(name).suffix
    return suffix if suffix.lower() in IMAGE_SUFFIXES else ""


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def check_concepts(dataset: Dataset, concepts: Sequence[str]) -> None:
    """Raises `DatasetError` where one of `concepts` is not one of the data set's."""
    unknown = [concept for concept in concepts if concept not in dataset.concepts]
    if unknown:
        raise DatasetError(
            f"{dataset.name} has no masks of '{unknown[0]}'. It has: {', '.join(dataset.concepts)}."
        )
