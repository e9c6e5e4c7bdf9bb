"""Data sets that `medsam3 export` wrote: names of concepts, and the folders of Hugging Face."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from medsam3_model.data.masks import ConceptTruth, read_mask_file
from medsam3_model.data.samples import (
    Dataset,
    Sample,
    image_files,
    image_stem,
    other_columns,
    read_groups,
)
from medsam3_model.errors import DatasetError

CONCEPTS_FILE = "concepts.json"
_METADATA = "metadata.jsonl"


def concept_names(root: Path) -> dict[str, str]:
    """The concept of each folder of masks by `concepts.json`; empty where there is no such file.

    Raises `DatasetError` where the file is damaged.
    """
    path = root / CONCEPTS_FILE
    if not path.is_file():
        return {}
    try:
        folders = json.loads(path.read_text(encoding="utf-8"))["folders"]
        if not all(isinstance(name, str) for name in folders.values()):
            raise TypeError("a name is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f'{path} cannot be read: {error!r}. Expected is {{"folders": {{folder: concept}}}}.'
        ) from error
    return dict(folders)


def hugging_face_splits(root: Path) -> list[Path]:
    """The folders of a data set for `load_dataset("imagefolder")` with masks; empty without."""
    parts = [root / split for split in ("train", "val")]
    if not any((part / _METADATA).is_file() for part in parts):
        return []
    return [part for part in parts if part.is_dir()]


def load_hugging_face(root: Path) -> Dataset:
    """The images of such a folder, each with a mask for every row of metadata.

    An image without a row holds none of the concepts. Raises `DatasetError` where metadata are
    damaged, or name files that are not there.
    """
    groups = read_groups(root)
    samples: list[Sample] = []
    concepts: set[str] = set()
    for part in hugging_face_splits(root):
        images = image_files(part / "images")
        truth: dict[str, dict[str, partial[ConceptTruth]]] = {name: {} for name in images}
        group_of = {name: groups.get(name, {}).get("group", "") for name in images}
        for number, row in enumerate(_rows(part / _METADATA), start=1):
            where = f"{part / _METADATA} (line {number})"
            name, mask, concept = _checked(where, part, row, images)
            truth[name][concept] = partial(read_mask_file, mask)
            group_of[name] = group_of[name] or str(row.get("group") or "")
            concepts.add(concept)
        samples += [
            Sample(
                name=name,
                image_path=file,
                group=group_of[name] or name,
                truth=truth[name],
                attributes=other_columns(groups.get(name, {})),
            )
            for name, file in images.items()
        ]
    samples.sort(key=lambda sample: sample.name)
    if len({sample.name for sample in samples}) < len(samples):
        raise DatasetError(f"{root} has images of the same name in train/ and val/.")
    return Dataset(root.name, root, tuple(sorted(concepts)), tuple(samples), exact_names=True)


def _rows(path: Path) -> list[Any]:
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error


def _checked(where: str, part: Path, row: Any, images: Mapping[str, Path]) -> tuple[str, Path, str]:
    """Name of the image, file of the mask, and concept of a row."""
    fields = row if isinstance(row, dict) else {}
    file, mask, concept = (fields.get(key) for key in ("file_name", "mask_file_name", "concept"))
    if not (isinstance(file, str) and isinstance(mask, str) and isinstance(concept, str)):
        raise DatasetError(f"{where} needs file_name, mask_file_name and concept as texts.")
    name = image_stem(PurePosixPath(file).name)
    if file == mask or name not in images:
        raise DatasetError(
            f"{where} names no image in {part / 'images'}. Export the data set with its images."
        )
    # The name is text from outside: it may not lead out of the folder.
    path = PurePosixPath(mask)
    if path.is_absolute() or ".." in path.parts or not (part / path).is_file():
        raise DatasetError(f"{where} names the mask '{mask}', which is not in {part}.")
    return name, part / path, concept
