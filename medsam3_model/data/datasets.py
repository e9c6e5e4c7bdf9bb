"""Data sets on disk, as they are handed around: a folder of images and masks, or a COCO JSON file.

The folder's layout (file names match by what stands before the extension):

```
images/NAME.png           any format of `medsam3_model.images.reading`, any size
masks/NAME.png            one concept: the mask; no file: the concept is not in the image
masks/CONCEPT/NAME.png    several concepts, one folder each
instances/NAME.png        optional, in place of or beside masks/: one value per instance (16-bit)
instances/CONCEPT/NAME.png
negatives/NAME.png        optional: images that hold none of the concepts
groups.csv                optional: columns name, group and others (patient, video, near-duplicates)
concepts.json             optional: `{"folders": {CONCEPT: name}}` where no folder can be called so
```

`medsam3 export` writes this and three other layouts, which are read as well: COCO, a NIfTI volume
of masks per task (`masks/CONCEPT/TASK.nii.gz`), and Hugging Face's folders (`exported.py`).

Reading a data set only lists files; pixels are read when a sample is asked for them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from medsam3_model.data import coco
from medsam3_model.data.exported import concept_names, hugging_face_splits, load_hugging_face
from medsam3_model.data.masks import (
    ConceptTruth,
    from_mask,
    read_instances_file,
    read_mask_file,
    read_volume_page,
)
from medsam3_model.data.samples import (
    IMAGE_SUFFIXES,
    Dataset,
    Sample,
    image_files,
    other_columns,
    read_groups,
)
from medsam3_model.data.template import TEMPLATE_CONCEPTS, demo_slices
from medsam3_model.errors import DatasetError

TEMPLATE = "template"
_SUFFIXES = ", ".join(sorted(IMAGE_SUFFIXES))  # for messages


def load_dataset(path: Path | str, *, concept: str = "object") -> Dataset:
    """A data set from a folder of the layout above, a COCO JSON file, or a folder with one.

    "template", where there is no such file, gives the brain slices that the bundled model was
    never trained on (`template_dataset`). `concept` names what the masks show where the layout
    does not (`masks/` without subfolders). Raises `DatasetError` with what is missing and what
    the layout should be.
    """
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
    if hugging_face_splits(root):
        return load_hugging_face(root)
    annotation_files = coco.annotation_files(root)
    whole = root / "annotations.json"
    if (root / "dataset.json").is_file() and whole in annotation_files:
        return coco.load_coco(whole)  # an export, which has its halves and outlines beside it
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
    samples = tuple(
        Sample(
            name=plane.name,
            image_path=Path(TEMPLATE) / plane.name,
            group=plane.name,
            truth={concept: partial(from_mask, mask) for concept, mask in plane.masks.items()},
            pixels=plane.image,
        )
        for plane in demo_slices()
    )
    return Dataset(TEMPLATE, Path(TEMPLATE), tuple(sorted(TEMPLATE_CONCEPTS)), samples)


def load_images(path: Path | str) -> Dataset:
    """All images of a data set, as images without any concept: for counting false alarms.

    Takes what `load_dataset` takes, and a plain folder of image files.
    """
    root = Path(path)
    layout = ("images", "masks", "instances", "negatives")
    if root.is_dir() and not (
        hugging_face_splits(root) or any((root / part).is_dir() for part in layout)
    ):
        groups = read_groups(root)
        files = image_files(root)
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


def _load_folder(root: Path, concept: str) -> Dataset:
    if not (root / "images").is_dir():
        raise DatasetError(f"{root} has masks but no images/. Put the images there.")
    groups = read_groups(root)
    images = image_files(root / "images")
    if not images:
        raise DatasetError(f"{root / 'images'} holds no images ({_SUFFIXES}).")
    truth: dict[str, dict[str, Callable[[], ConceptTruth]]] = {name: {} for name in images}
    concepts: set[str] = set()
    names = concept_names(root)
    # Instances after masks: where both are there, the separated instances are the better truth.
    for folder, reader in (("masks", read_mask_file), ("instances", read_instances_file)):
        for name_of_folder, files in _mask_folders(root / folder, concept).items():
            masked = names.get(name_of_folder, name_of_folder)
            concepts.add(masked)
            files, volumes = _pages_of_volumes(files, images)
            for name, (file, page) in volumes.items():
                truth[name][masked] = partial(read_volume_page, file, page)
            stray = sorted(set(files) - set(images))
            if stray:
                raise DatasetError(
                    f"{len(stray)} masks in {root / folder} for '{masked}' have no image of that "
                    f"name ({', '.join(stray[:3])}). A mask is named like its image."
                )
            for name, file in files.items():
                truth[name][masked] = partial(reader, file)
    if not concepts:
        raise DatasetError(f"{root / 'masks'} holds no masks ({_SUFFIXES}).")
    samples = [_sample(name, file, groups, truth[name]) for name, file in images.items()]
    for name, file in image_files(root / "negatives").items():
        if name in images:
            raise DatasetError(f"'{name}' is in both images/ and negatives/ of {root}.")
        samples.append(_sample(name, file, groups, {}, negative=True))
    return Dataset(root.name, root, tuple(sorted(concepts)), tuple(samples), bool(names))


def _pages_of_volumes(
    files: Mapping[str, Path], images: Mapping[str, Path]
) -> tuple[dict[str, Path], dict[str, tuple[Path, int]]]:
    """Mask files by name without the volumes, and of these each image's volume and page."""
    endings = (".nii", ".nii.gz")
    volumes = {name: file for name, file in files.items() if file.name.lower().endswith(endings)}
    of_image: dict[str, tuple[Path, int]] = {}
    for image in images:
        task, page_of, page = image.rpartition("-page-")
        if image in volumes:
            of_image[image] = volumes[image], 0
        elif page_of and page.isdecimal() and task in volumes:
            of_image[image] = volumes[task], int(page)
    used = {file for file, _ in of_image.values()}
    return {name: file for name, file in files.items() if file not in used}, of_image


def _sample(
    name: str,
    file: Path,
    groups: Mapping[str, Mapping[str, str]],
    truth: Mapping[str, Callable[[], ConceptTruth]],
    negative: bool = False,
) -> Sample:
    row = groups.get(name, {})
    attributes = other_columns(row)
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
    files = image_files(folder, only=True)
    if subfolders and files:
        raise DatasetError(
            f"{folder} holds both files and subfolders. For several concepts put every mask into "
            "the subfolder of its concept, for one concept use no subfolders."
        )
    for entry in subfolders:
        if any(inner.is_dir() and not inner.name.startswith(".") for inner in entry.iterdir()):
            raise DatasetError(f"{entry} has folders in it, whose masks would not be seen.")
    if subfolders:
        return {entry.name: image_files(entry, only=True) for entry in subfolders}
    return {concept: files} if files else {}
