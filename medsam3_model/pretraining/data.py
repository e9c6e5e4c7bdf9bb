"""The data of pre-training: images that are decoded once and kept in memory.

Only sets whose terms allow the weights to be passed on can be read here; the caller says where they
are. `load_sources` leaves out the template slices that the demo shows, and the validation groups.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medsam3_model.data.samples import Split, read_groups, split_of_group
from medsam3_model.data.template import TEMPLATE_DEMO_SLICES, TEMPLATE_SLICES, template_slice
from medsam3_model.errors import DatasetError
from medsam3_model.pretraining.phantoms.phantoms import PHANTOMS, phantom

_LONGEST_SIDE = 448


@dataclass(frozen=True)
class SourceImage:
    """One image with everything that is known to be on it.

    image: uint8 (H, W, 3). aspect: width over height of the picture as taken; the stored one may be
    squashed. layers: concept -> uint16 (H, W), 0 outside, 1, 2, … per instance; an empty layer says
    that the concept is absent. family: key of `phrases.UNLABELLED`. painted: something was drawn
    into a photograph.
    """

    name: str
    family: str
    image: NDArray[np.uint8]
    aspect: float
    layers: dict[str, NDArray[np.uint16]]
    painted: bool = False


def load_sources(folders: dict[str, Path], phantoms_per_kind: int) -> dict[str, list[SourceImage]]:
    """Training samples by source.

    folders: source -> folder, for keys of `FOLDERS`. Template slices and phantoms
    (`phantoms_per_kind` of each) are always added. Raises DatasetError for an unknown source or a
    folder that is not as documented.
    """
    sources: dict[str, list[SourceImage]] = {}
    for name, folder in folders.items():
        sources[name] = balanced(list(read_folder(name, folder, "train")))
    sources["template"] = [
        template_image(index) for index in TEMPLATE_SLICES if index not in TEMPLATE_DEMO_SLICES
    ]
    for kind in PHANTOMS:
        sources[kind] = [phantom_image(kind, seed) for seed in range(phantoms_per_kind)]
    return sources


def balanced(samples: Sequence[SourceImage]) -> list[SourceImage]:
    """Rare looks of microscopy repeated, up to six times, until half as frequent as the commonest.

    A look is dark or bright and grey or coloured: fluorescence, stain, bright field. Pictures of
    other families come once each.
    """
    looks: dict[tuple[bool, bool], list[SourceImage]] = {}
    for sample in samples:
        looks.setdefault(_look(sample), []).append(sample)
    most = max(len(alike) for alike in looks.values())
    repeated: list[SourceImage] = []
    for alike in looks.values():
        repeated += alike * min(6, max(1, round(most / 2 / len(alike))))
    return repeated


def _look(sample: SourceImage) -> tuple[bool, bool]:
    if sample.family != "microscopy":
        return False, False
    pixels = sample.image.astype(np.float32)
    colour = np.ptp(pixels, axis=2).mean()
    return bool(np.median(pixels.mean(axis=2)) > 100), bool(colour > 12)


def how_often_asked(
    sources: Mapping[str, Sequence[SourceImage]], shares: Mapping[str, float]
) -> dict[str, float]:
    """Concept -> share of the drawn images that hold it, where each source is drawn by `shares`."""
    asked: dict[str, float] = {}
    for name, share in shares.items():
        for sample in sources[name]:
            for concept, layer in sample.layers.items():
                if layer.any():
                    asked[concept] = asked.get(concept, 0.0) + share / len(sources[name])
    return asked


def read_folder(source: str, folder: Path, split: Split) -> Iterator[SourceImage]:
    """The images of one data set whose groups are in `split`."""
    if source not in FOLDERS:
        raise DatasetError(
            f"{source!r} is not a source that may be trained on; there is: {', '.join(FOLDERS)}."
        )
    kind = FOLDERS[source]
    for row in _rows(folder):
        if split_of_group(row["group"]) == split:
            name = row["name"]
            image = _read_image(folder, name)
            height, width = image.shape[:2]
            layers = {
                concept: kind.read(folder / kind.store / part, name, (height, width))
                for concept, part in kind.concepts.items()
            }
            if "orig_w" in row:
                width, height = int(row["orig_w"]), int(row["orig_h"])
            yield SourceImage(name, kind.family, image, width / height, layers)


def template_image(index: int) -> SourceImage:
    """A template slice, cut to a square field with some air around the head."""
    plane = template_slice(index)
    layers = {concept: mask.astype(np.uint16) for concept, mask in plane.masks.items()}
    height, width = plane.image.shape[:2]
    return SourceImage(plane.name, "brain", plane.image, width / height, layers)


_PHANTOM_FAMILY = {
    "breast_ultrasound": "breast",
    "dermoscopy": "skin",
    "fundus": "fundus",
    "chest_xray": "chest",
    "cardiac_mri": "cardiac",
    "microscopy": "microscopy",
    "shapes": "shapes",
}


def phantom_image(kind: str, seed: int) -> SourceImage:
    """The made-up picture number `seed` of a kind."""
    made = phantom(kind, seed)
    return SourceImage(f"{kind}_{seed}", _PHANTOM_FAMILY[kind], made.image, 1.0, made.layers)


def _pieces(folder: Path, name: str, size: tuple[int, int]) -> NDArray[np.uint16]:
    """The instances of a 0/255 mask: its connected pieces. No file: the concept is absent."""
    path = folder / f"{name}.png"
    if not path.is_file():
        return np.zeros(size, np.uint16)
    mask = np.asarray(_shrink(Image.open(path).convert("L"), Image.Resampling.NEAREST))
    pieces, count = ndimage.label(mask > 127)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept = sizes >= max(16, 0.02 * sizes.max())  # crumbs of a hand-drawn edge are no instance
    numbers = np.where(kept, np.cumsum(kept), 0)
    return numbers[pieces].astype(np.uint16)


def _instances(folder: Path, name: str, size: tuple[int, int]) -> NDArray[np.uint16]:
    """A 16-bit picture of instance numbers."""
    numbers = Image.fromarray(np.asarray(Image.open(folder / f"{name}.png")).astype(np.int32))
    return np.asarray(_shrink(numbers, Image.Resampling.NEAREST)).astype(np.uint16)


@dataclass(frozen=True)
class Folder:
    """How a data set is stored.

    family: key of `phrases.UNLABELLED`. concepts: the subfolder of each, within `store`.
    read: the layer of one concept from that folder, an image's name and its (height, width).
    """

    family: str
    concepts: Mapping[str, str]
    read: Callable[[Path, str, tuple[int, int]], NDArray[np.uint16]] = _pieces
    store: str = "masks"


_POLYPS = Folder("colon", {"polyp": ""})
_NUCLEI = Folder("microscopy", {"cell nucleus": ""}, _instances, "instances")
FOLDERS: dict[str, Folder] = {
    "isic2017": Folder("skin", {"skin lesion": ""}),
    "kvasir_seg": _POLYPS,
    "kvasir_seg_more": _POLYPS,
    "dsb2018_nuclei": _NUCLEI,
    "dsb2018_nuclei_more": _NUCLEI,
    "bus_uclm": Folder("breast", {"breast tumor": ""}),
    "idrid": Folder(
        "fundus",
        {
            "optic disc": "optic_disc",
            "hard exudates": "hard_exudates",
            "haemorrhages": "haemorrhages",
            "soft exudates": "soft_exudates",
        },
    ),
    "sunnybrook_ed": Folder(
        "cardiac", {"left ventricle cavity": "left_ventricle", "myocardium": "myocardium"}
    ),
    "sunnybrook_es": Folder("cardiac", {"left ventricle cavity": "left_ventricle"}),
    "hvsmr": Folder(
        "cardiac",
        {
            "left ventricle cavity": "left_ventricle",
            "right ventricle": "right_ventricle",
            "left atrium": "left_atrium",
            "right atrium": "right_atrium",
            "aorta": "aorta",
            "pulmonary artery": "pulmonary_artery",
        },
    ),
}


def _rows(folder: Path) -> Iterator[dict[str, str]]:
    """Name, group and other columns of every image; one without a row is its own group."""
    groups = read_groups(folder)
    names = sorted(path.stem for path in (folder / "images").glob("*.*"))
    if not names:
        raise DatasetError(f"{folder / 'images'} holds no pictures.")
    for name in names:
        row = groups.get(name, {})
        yield {**row, "name": name, "group": row.get("group") or name}


def _read_image(folder: Path, name: str) -> NDArray[np.uint8]:
    for suffix in (".png", ".jpg", ".jpeg"):
        path = folder / "images" / f"{name}{suffix}"
        if path.is_file():
            picture = Image.open(path).convert("RGB")
            return np.array(_shrink(picture, Image.Resampling.BOX))
    raise DatasetError(f"{folder / 'images'} has no picture called {name} (png or jpg).")


def _shrink(picture: Image.Image, how: Image.Resampling) -> Image.Image:
    """At most `_LONGEST_SIDE` pixels, to keep the whole set in memory."""
    scale = _LONGEST_SIDE / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(round(side * scale), 1) for side in picture.size)
    return picture.resize((width, height), how)
