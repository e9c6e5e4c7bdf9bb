"""COCO for video, as YouTube-VIS has it (https://youtube-vos.org/dataset/vis): a task is a video.

An annotation is one object on all frames: lists of run lengths, boxes and areas, one entry for each
frame, null where the object is not. `annotations.json` has everything, `train.json` and `val.json`
their split.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from backend.corrections.datasets import ExportedVersion
from backend.corrections.export.coco import run_lengths
from backend.corrections.export.pages import ExportPage, PagesWithImages, write_file, write_json
from backend.corrections.export.volumes import check_sizes
from backend.corrections.mask_store import MaskStore
from backend.labeling.masks import Mask, extent
from backend.labeling.stack_objects import stack_objects


def write(version: ExportedVersion, pages: PagesWithImages, folder: Path, masks: MaskStore) -> None:
    """Write a dataset version into a folder.

    Raises:
        DatasetVersionError: the pages of a task differ in size.
    """
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for item, of_task in groupby(pages, key=lambda entry: entry[0].item):
        frames: list[ExportPage] = []
        names: list[str] = []
        for page, content in of_task:
            frames.append(page)
            if content is None:
                names.append(page.image.reference)
            else:
                names.append(f"{_stem(page)}/{page.file_name(content)}")
                write_file(folder / "images" / names[-1], content)
        check_sizes(frames)
        height, width = frames[0].size
        video = {
            "id": len(videos) + 1,
            "name": _stem(frames[0]),
            "file_names": names,
            "length": len(frames),
            "height": height,
            "width": width,
            "split": item.split,
            "group": item.task.group,
            "task": item.task.task_id,
        }
        videos.append(video)
        for label in sorted({one.label for frame in frames for one in frame.instances} - {""}):
            for drawn in _objects(frames, label, masks):
                number = {"id": len(annotations) + 1, "video_id": video["id"], "iscrowd": 0}
                size = {name: video[name] for name in ("height", "width", "length")}
                # The label until all labels are known, see below.
                annotations.append({**number, **size, "category_id": label, **drawn})
    labels = sorted({annotation["category_id"] for annotation in annotations})
    numbers = {label: number for number, label in enumerate(labels, start=1)}
    for annotation in annotations:
        annotation["category_id"] = numbers[annotation["category_id"]]
    for split in (None, "train", "val"):
        chosen = [video for video in videos if split in (None, video["split"])]
        ids = {video["id"] for video in chosen}
        part = {
            "info": {"description": version.name, "version": version.digest},
            "licenses": [],
            "categories": [{"id": number, "name": label} for label, number in numbers.items()],
            "videos": chosen,
            "annotations": [drawn for drawn in annotations if drawn["video_id"] in ids],
        }
        write_json(folder / f"{split or 'annotations'}.json", part)


def _stem(page: ExportPage) -> str:
    """The name of a page's video, which is that of its task."""
    return page.stem.partition("-page-")[0]


def _objects(
    frames: Sequence[ExportPage], label: str, masks: MaskStore
) -> Iterator[dict[str, Any]]:
    """A label's objects through the frames, in the order in which they appear."""
    instances = [
        (place, instance)
        for place, frame in enumerate(frames)
        for instance in frame.instances_of(label)
        if instance.area
    ]
    pixels = ((place, masks.get(instance.mask_hash)) for place, instance in instances)
    for one in stack_objects(pixels):
        by_frame: dict[int, Mask] = {}
        for place, instance in (instances[index] for index in one.instances):
            mask = masks.get(instance.mask_hash)
            by_frame[place] = by_frame[place] | mask if place in by_frame else mask
        drawn = [by_frame.get(place) for place in range(len(frames))]
        yield {
            # The region with which it begins, as Label Studio names it.
            "object": instances[one.instances[0]][1].region_id,
            "segmentations": [None if mask is None else run_lengths(mask) for mask in drawn],
            "bboxes": [None if mask is None else _box(mask) for mask in drawn],
            "areas": [None if mask is None else int(mask.sum()) for mask in drawn],
        }


def _box(mask: Mask) -> list[int]:
    """x, y, width, height in pixels of a mask that is not empty."""
    top, left, bottom, right = extent(mask) or (0, 0, 0, 0)
    return [left, top, right - left, bottom - top]
