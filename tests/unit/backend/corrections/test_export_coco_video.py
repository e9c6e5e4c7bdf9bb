"""COCO for video: an annotation is one object on all frames, and its masks are the corrections'."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from backend.corrections.cropped_mask import CroppedMask
from backend.corrections.datasets import ExportedVersion, VersionItem
from backend.corrections.export import ExportFormat
from backend.corrections.export.export import export
from backend.corrections.mask_store import MaskStore
from backend.corrections.revisions import CorrectedInstance, CorrectedTask, PageImage
from backend.errors import DatasetVersionError
from tests.support.exports import FIGURES, exported, png, sha256

SIZE = (12, 16)


def square(top: int, left: int, side: int = 3) -> np.ndarray:
    mask = np.zeros(SIZE, np.bool_)
    mask[top : top + side, left : left + side] = True
    return mask


# The first moves across the frames; the second is beside it; the third comes after the first has
# been away for a frame, at the same place.
MOVING = {0: square(1, 1), 1: square(2, 3), 2: square(3, 5)}
BESIDE = {1: square(8, 10), 2: square(8, 11)}
LATER = {4: square(3, 5)}


def annotations_of(content: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """By the names of video and object."""
    videos = {video["id"]: video["name"] for video in content["videos"]}
    return {(videos[one["video_id"]], one["object"]): one for one in content["annotations"]}


def masks_of(annotation: Mapping[str, Any]) -> dict[int, np.ndarray]:
    """The masks by frame, as pycocotools reads them."""
    return {
        frame: coco_mask.decode(runs).astype(bool)
        for frame, runs in enumerate(annotation["segmentations"])
        if runs is not None
    }


def video_item(store: MaskStore, **regions: Mapping[int, np.ndarray]) -> VersionItem:
    """A task of five pages with polyps on them: masks by page of each region's name."""
    instances = []
    for name, by_page in regions.items():
        hashes = store.put_all([CroppedMask.of(mask) for mask in by_page.values()])
        instances += [
            CorrectedInstance(page, "Polyp", f"{name}{page}", "brushlabels", int(mask.sum()), hash_)
            for (page, mask), hash_ in zip(by_page.items(), hashes, strict=True)
        ]
    image = PageImage("/data/upload/1/x.png", sha256(png(*SIZE)), SIZE[1], SIZE[0])
    task = CorrectedTask(
        revision_id="r1",
        annotation_id=1,
        project_id=7,
        task_id=1,
        annotator=1,
        updated_at=datetime(2026, 1, 1, tzinfo=UTC),
        content_hash="c",
        ground_truth=False,
        lead_time=None,
        model_version=None,
        group="patient 1",
        images=(image,) * 5,
        concepts=(),
        instances=tuple(sorted(instances)),
    )
    return VersionItem(task, "train")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pycocotools with NumPy 2
def test_objects_come_back_with_their_masks_on_every_frame(tmp_path: Path) -> None:
    store = MaskStore(str(tmp_path / "store"))
    item = video_item(store, a=MOVING, b=BESIDE, c=LATER)
    version = ExportedVersion(7, "spring", "d" * 64, 0, (item,))
    written = []
    for name in ("first", "second"):
        export(
            version,
            store,
            tmp_path / name,
            ExportFormat.COCO_VIDEO,
            statistics=FIGURES,
            read_image=lambda page: png(*SIZE),
        )
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        written.append([(file.relative_to(tmp_path / name), file.read_bytes()) for file in files])
    assert written[0] == written[1], "the same bytes each time"

    content = json.loads((tmp_path / "first/annotations.json").read_text())
    (video,) = content["videos"]
    assert (video["length"], video["height"], video["width"]) == (5, *SIZE)
    names = [f"task-00000001/task-00000001-page-{page:04d}.png" for page in range(5)]
    assert video["file_names"] == names
    assert all((tmp_path / "first/images" / name).read_bytes() == png(*SIZE) for name in names)
    assert content["categories"] == [{"id": 1, "name": "Polyp"}]
    found = annotations_of(content)
    for key, drawn in {"a0": MOVING, "b1": BESIDE, "c4": LATER}.items():
        annotation = found.pop(("task-00000001", key))
        masks = masks_of(annotation)
        assert masks.keys() == drawn.keys()
        assert all(np.array_equal(masks[frame], drawn[frame]) for frame in drawn)
        areas = [9 if frame in drawn else None for frame in range(5)]
        assert annotation["areas"] == areas
        boxes = [None if runs is None else coco_mask.toBbox(runs).tolist()
                 for runs in annotation["segmentations"]]  # fmt: skip
        assert annotation["bboxes"] == boxes
        assert len(annotation["segmentations"]) == annotation["length"] == 5
    assert not found


def test_videos_are_on_the_side_of_their_group(tmp_path: Path) -> None:
    drawn = [[{"Polyp": square(1, 1)}, {}], [{"Polyp": square(2, 2), "Tool": square(2, 2)}]]
    written = exported(tmp_path, ExportFormat.COCO_VIDEO, drawn)
    sides = {name: json.loads((written.folder / f"{name}.json").read_text())
             for name in ("annotations", "train", "val")}  # fmt: skip
    names = {side: [video["name"] for video in sides[side]["videos"]] for side in sides}
    assert names == {
        "annotations": ["task-00000001", "task-00000002"],
        "val": ["task-00000001"],
        "train": ["task-00000002"],
    }
    for side in ("train", "val"):
        assert sides[side]["categories"] == sides["annotations"]["categories"]
        own = {video["id"] for video in sides[side]["videos"]}
        assert sides[side]["annotations"] == [
            one for one in sides["annotations"]["annotations"] if one["video_id"] in own
        ]
    (alone, *_) = sides["train"]["videos"]
    assert alone["length"] == 1, "a single image is a video of one frame"
    assert [one["category_id"] for one in sides["train"]["annotations"]] == [1, 2]


def test_without_images_frames_are_named_by_their_addresses(tmp_path: Path) -> None:
    drawn = [[{"Polyp": square(1, 1)}, {}]]
    written = exported(tmp_path, ExportFormat.COCO_VIDEO, drawn, read_image=None)
    (video,) = json.loads((written.folder / "annotations.json").read_text())["videos"]
    assert video["file_names"] == ["/data/upload/1/x.png"] * 2
    assert not (written.folder / "images").exists()


def test_frames_of_several_sizes_are_refused(tmp_path: Path) -> None:
    store = MaskStore(str(tmp_path / "store"))
    item = video_item(store, a=MOVING)
    first, *others = item.task.images
    task = replace(item.task, images=(replace(first, width=99), *others))
    version = ExportedVersion(7, "spring", "d" * 64, 0, (replace(item, task=task),))
    with pytest.raises(DatasetVersionError, match="differ in size"):
        export(version, store, tmp_path / "out", ExportFormat.COCO_VIDEO, statistics=FIGURES)
