"""Axial slices of the MNI152 T1 template, with masks, from the files inside the `nilearn` wheel.

They are the demo's images and part of what the bundled model is trained on: the only brain images
that need no download and whose terms allow redistribution. nilearn itself is not imported (it loads
scikit-learn); only its data files are read, with nibabel.

The volumes are the ICBM 152 nonlinear symmetric 2009a average, skull-stripped, 1 mm, RAS oriented
(Fonov et al., NeuroImage 54, 2011).
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medsam3_model.errors import DatasetError

TEMPLATE_CONCEPTS = ("brain", "grey matter", "white matter")

# Every third slice through the part of the brain where all three concepts are present. They are
# shown by the demo and used for evaluation, and never trained on.
TEMPLATE_DEMO_SLICES: tuple[int, ...] = tuple(range(46, 125, 3))

# Every slice with enough brain on it to be worth looking at.
TEMPLATE_SLICES: tuple[int, ...] = tuple(range(14, 146))

_FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
_Value = TypeVar("_Value", bound=np.generic)
_HALF = 128  # the maps are probabilities stored as 0..255


@dataclass(frozen=True)
class TemplateSlice:
    """One axial slice.

    image: uint8 (233, 197, 3), RGB with three equal channels.
    masks: concept -> bool (233, 197), for each of `TEMPLATE_CONCEPTS`.
    Rows run from anterior to posterior; columns from the subject's right to the left, as a
    radiologist reads an axial slice.
    """

    name: str
    index: int
    image: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]


def template_slice(index: int) -> TemplateSlice:
    """The axial slice `index` (0..188, from the neck upwards, 1 mm apart).

    "brain" is the skull-stripped template's support; "grey matter" and "white matter" are the
    voxels whose tissue probability is at least one half.

    Raises DatasetError when nilearn's files are not installed or the index is out of range.
    """
    t1 = _volume("t1")
    if not 0 <= index < t1.shape[2]:
        raise DatasetError(
            f"The template has the axial slices 0 to {t1.shape[2] - 1}; there is no slice {index}."
        )
    image = _radiological(t1[:, :, index])
    return TemplateSlice(
        name=f"mni152_axial_{index:03d}",
        index=index,
        image=np.repeat(image[:, :, None], 3, axis=2),
        masks={
            concept: _radiological(mask[:, :, index]) for concept, mask in template_masks().items()
        },
    )


@lru_cache(maxsize=1)
def template_masks() -> dict[str, NDArray[np.bool_]]:
    """Concept -> bool (197, 233, 189), the voxels of `template_file`; see `template_slice`."""
    t1, grey, white = (_volume(kind) for kind in ("t1", "gm", "wm"))
    return {"brain": t1 > 0, "grey matter": grey >= _HALF, "white matter": white >= _HALF}


def template_file() -> Path:
    """The whole volume, 197 x 233 x 189 voxels of 1 mm, as a NIfTI file.

    Raises DatasetError when nilearn's files are not installed.
    """
    return _data_folder() / _FILE.format("t1")


def demo_slices(count: int | None = None) -> tuple[TemplateSlice, ...]:
    """The held-out slices, from the bottom up; `count` of them, evenly spread, if given."""
    indices = TEMPLATE_DEMO_SLICES
    if count is not None:
        if not 1 <= count <= len(indices):
            raise DatasetError(
                f"The demo has {len(indices)} template slices; asked for {count} of them."
            )
        chosen = np.linspace(0, len(indices) - 1, count).round().astype(int)
        indices = tuple(indices[i] for i in chosen)
    return tuple(template_slice(index) for index in indices)


def _radiological(plane: NDArray[_Value]) -> NDArray[_Value]:
    """From (x to the right, y to the front) to rows from the front and columns from the right."""
    return np.ascontiguousarray(plane[::-1, ::-1].T)


@lru_cache(maxsize=3)
def _volume(kind: str) -> NDArray[np.uint8]:
    import nibabel

    image: Any = nibabel.load(_data_folder() / _FILE.format(kind))
    return np.asanyarray(image.dataobj).astype(np.uint8)


def _data_folder() -> Path:
    spec = find_spec("nilearn")
    if spec is None or spec.submodule_search_locations is None:
        raise DatasetError(
            "The template slices come with the nilearn package, which is not installed: "
            "run `pip install nilearn`."
        )
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"
