"""Datasets written from corrections: the same bytes twice, and read back by others' readers."""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from backend.corrections.datasets import ExportedVersion, open_version
from backend.corrections.export import WITHOUT_IMAGES, ExportFormat, OverlapRule
from backend.corrections.export.coco import run_lengths
from backend.corrections.export.export import export
from backend.corrections.export.pages import ExportPage, folder_name
from backend.corrections.statistics import compute
from backend.errors import DatasetVersionError
from backend.services import open_services
from backend.settings import Settings
from tests.support.corrections_stage import (
    CONFIG,
    HEIGHT,
    WIDTH,
    Stage,
    brush,
    drawn,
    image_file,
    stage_at,
)
from tests.support.images import noise_file
from tests.support.masks import dice
from tests.support.stand_in_label_studio import StandInLabelStudio

PROJECT = StandInLabelStudio.project_id


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """Nine corrected tasks: two concepts, one empty, one skipped."""
    with StandInLabelStudio(CONFIG) as label_studio:
        services = open_services(
            Settings(
                data_dir=tmp_path / "data",
                label_studio_url=label_studio.url,
                label_studio_api_key="0" * 40,
            )
        )
        with stage_at(services, label_studio) as opened:
            for seed in range(8):
                task = label_studio.add_task(image_file(seed), group=f"patient {seed // 2}")
                opened.suggest(task, [brush(f"a{seed}", drawn(seed))])
                label_studio.annotate(
                    task,
                    []
                    if seed == 3
                    else [
                        brush(f"a{seed}", drawn(seed)),
                        brush(f"b{seed}", drawn(seed + 20)),
                        brush(f"c{seed}", drawn(seed + 40), label="Cyst"),
                    ],
                    completed_by=1 + seed % 2,
                )
            skipped = label_studio.add_task(image_file(9))
            label_studio.annotate(skipped, [], was_cancelled=True)
            opened.hear_all()
            yield opened
        services.close()


def version_of(stage: Stage, name: str | None = None) -> ExportedVersion:
    with stage.services.database.session() as session:
        return open_version(session, PROJECT, name)


def write(
    stage: Stage, folder: Path, format_: ExportFormat, name: str | None = None
) -> ExportedVersion:
    version = version_of(stage, name)
    with stage.services.database.reading() as session:
        figures = compute(session, PROJECT, [one.task.revision_id for one in version.items])

    def read(page: ExportPage) -> bytes:
        return stage.ingest.source.image(
            page.image.reference, project_id=PROJECT, task_id=page.item.task.task_id
        )

    assert export(
        version,
        stage.masks,
        folder,
        format_,
        statistics=figures,
        read_image=read,
        # The corrections of two labels have pixels in common.
        overlap=OverlapRule.SMALLEST if format_ is ExportFormat.NNUNET else None,
    ) == len(version.items)
    return version


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def truth(stage: Stage) -> dict[tuple[int, str], np.ndarray]:
    """Masks by task and label, from the annotations themselves."""
    found: dict[tuple[int, str], np.ndarray] = {}
    for position, task in enumerate(sorted(stage.label_studio.tasks)[:8]):
        if position != 3:
            found[task, "Tumor"] = drawn(position) | drawn(position + 20)
            found[task, "Cyst"] = drawn(position + 40)
    return found


@pytest.mark.parametrize("format_", sorted(set(ExportFormat) - WITHOUT_IMAGES))
def test_two_exports_are_the_same_byte_for_byte(
    stage: Stage, tmp_path: Path, format_: ExportFormat
) -> None:
    write(stage, tmp_path / "one", format_, "spring")
    # What is annotated afterwards belongs to a later version.
    annotation = next(iter(stage.label_studio.annotations))
    stage.label_studio.update(annotation, result=[])
    stage.hear_all()
    write(stage, tmp_path / "two", format_, "spring")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    write(stage, tmp_path / "three", format_, "summer")
    assert files(tmp_path / "three") != files(tmp_path / "one")


def test_unnamed_version_is_called_after_its_content(stage: Stage) -> None:
    first, second = version_of(stage), version_of(stage)
    assert first == second
    assert first.name == f"v-{first.digest[:8]}"
    stage.label_studio.annotate(stage.label_studio.add_task(image_file(30)), [])
    stage.hear_all()
    assert version_of(stage).name != first.name


def test_a_patient_is_on_one_side(stage: Stage) -> None:
    sides: dict[str, set[str]] = {}
    for item in version_of(stage).items:
        sides.setdefault(item.task.group, set()).add(item.split)
    assert len(sides) == 4
    assert all(len(found) == 1 for found in sides.values())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_is_read_by_pycocotools(stage: Stage, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    write(stage, tmp_path / "out", ExportFormat.COCO)
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    labels = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    found: dict[tuple[int, str], np.ndarray] = {}
    for one in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(one).astype(bool)
        assert one["area"] == mask.sum()
        key = coco.imgs[one["image_id"]]["task"], labels[one["category_id"]]
        found[key] = found.get(key, False) | mask
    expected = truth(stage)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    halves = [
        json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("train", "val")
    ]
    assert sum(len(half["images"]) for half in halves) == 8
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {
        one["file_name"] for one in coco.imgs.values()
    }


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_runs_are_those_of_pycocotools() -> None:
    from pycocotools import mask as reference

    random = np.random.default_rng(0)
    shapes = [(1, 1), (7, 3), (48, 64), (200, 300)]
    masks = [random.random(shape) < share for shape in shapes for share in (0, 0.02, 0.5, 1)]
    for mask in [*masks, drawn(3), ~drawn(3)]:
        expected = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert run_lengths(mask) == {
            "size": expected["size"],
            "counts": expected["counts"].decode(),
        }


def test_label_studios_converter_reads_the_polygons(stage: Stage, tmp_path: Path) -> None:
    from label_studio_sdk.converter.imports.coco import convert_coco_to_ls

    from backend.labeling.region_masks import region_mask

    write(stage, tmp_path / "out", ExportFormat.COCO)
    convert_coco_to_ls(
        str(tmp_path / "out" / "polygons.json"), str(tmp_path / "tasks.json"), from_name="label"
    )
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert len(tasks) == 8
    expected = truth(stage)
    for number, task in zip(sorted(stage.label_studio.tasks), tasks, strict=False):
        result = task["annotations"][0]["result"]
        polygons = [one for one in result if one["type"] == "polygonlabels"]
        union = np.zeros((HEIGHT, WIDTH), bool)
        for one in polygons:
            if one["value"]["polygonlabels"] == ["Tumor"]:
                union |= region_mask(one, HEIGHT, WIDTH)
        if (number, "Tumor") in expected:
            whole = expected[number, "Tumor"]
            assert dice(union, whole) > 0.9


def test_label_studios_exporter_reads_the_tasks(stage: Stage, tmp_path: Path) -> None:
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.converter.converter import Format as TheirFormat

    write(stage, tmp_path / "out", ExportFormat.MASKS)
    converter = Converter(
        config=(tmp_path / "out" / "label_config.xml").read_text(),
        project_dir=str(tmp_path),
        download_resources=False,
    )
    (tmp_path / "png").mkdir()
    converter.convert(
        str(tmp_path / "out" / "label_studio.json"),
        str(tmp_path / "png"),
        TheirFormat.BRUSH_TO_PNG,
        is_dir=False,
    )
    written = list((tmp_path / "png").rglob("*.png"))
    expected = truth(stage)
    for (task, label), mask in expected.items():
        of_label = [
            np.array(Image.open(path)) > 0
            for path in written
            if f"task-{task}-" in path.name and f"-{label}-" in path.name
        ]
        assert np.array_equal(np.logical_or.reduce(of_label), mask)


def test_masks_are_a_dataset_of_the_model_package(stage: Stage, tmp_path: Path) -> None:
    from medsam3_model.data.datasets import load_dataset

    write(stage, tmp_path / "out", ExportFormat.MASKS)
    dataset = load_dataset(tmp_path / "out")
    assert len(dataset) == 8
    expected = truth(stage)
    groups = set()
    for sample in dataset:
        task = int(sample.name.split("-")[1])
        groups.add(sample.group)
        for label in ("Tumor", "Cyst"):
            found = sample.read(label)
            if (task, label) in expected:
                assert found is not None
                assert np.array_equal(found.mask, expected[task, label])
            else:
                assert found is None
    assert groups == {f"patient {number}" for number in range(4)}
    for (task, label), mask in expected.items():
        path = tmp_path / "out" / "masks" / label / f"task-{task:08d}.png"
        assert np.array_equal(np.array(Image.open(path)) > 0, mask)
    table = (tmp_path / "out" / "groups.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["name"] for row in rows] == sorted(row["name"] for row in rows)


def test_nifti_volumes_hold_the_masks(stage: Stage, tmp_path: Path) -> None:
    write(stage, tmp_path / "out", ExportFormat.NIFTI)
    for (task, label), mask in truth(stage).items():
        path = tmp_path / "out" / "masks" / label / f"task-{task:08d}.nii.gz"
        volume = nibabel.load(path)
        assert np.array_equal(np.asarray(volume.dataobj)[:, :, 0].T > 0, mask)
        assert gzip.decompress(path.read_bytes())[:4] == (348).to_bytes(4, "little")


def test_pages_become_one_volume(stage: Stage, tmp_path: Path) -> None:
    label_studio = stage.label_studio
    label_studio.label_config = CONFIG.replace('value="$image"', 'valueList="$images"')
    pages = [f"/data/upload/7/p{page}.png" for page in range(3)]
    for page, reference in enumerate(pages):
        label_studio.images[reference] = image_file(page)
    task = label_studio.add_task(b"", images=pages)
    for number in list(label_studio.annotations):
        label_studio.delete(number)
    label_studio.annotate(
        task, [brush("a", drawn(1), item_index=0), brush("b", drawn(2), item_index=2)]
    )
    stage.hear_all()
    version = version_of(stage, "stack")
    export(
        version,
        stage.masks,
        tmp_path / "out",
        ExportFormat.NIFTI,
        statistics={"overall": _no_figures()},
    )
    (path,) = (tmp_path / "out" / "masks" / "Tumor").iterdir()
    volume = np.asarray(nibabel.load(path).dataobj) > 0
    assert np.array_equal(volume[:, :, 0].T, drawn(1))
    assert not volume[:, :, 1].any()
    assert np.array_equal(volume[:, :, 2].T, drawn(2))


def test_pages_of_different_sizes_are_refused_as_a_volume(stage: Stage, tmp_path: Path) -> None:
    label_studio = stage.label_studio
    label_studio.label_config = CONFIG.replace('value="$image"', 'valueList="$images"')
    pages = ["/data/upload/7/large.png", "/data/upload/7/small.png"]
    label_studio.images[pages[0]] = image_file(0)
    label_studio.images[pages[1]] = noise_file(1, 5, 7)
    task = label_studio.add_task(b"", images=pages)
    for number in list(label_studio.annotations):
        label_studio.delete(number)
    label_studio.annotate(task, [brush("a", drawn(1), item_index=0)])
    stage.hear_all()
    with pytest.raises(DatasetVersionError, match=f"the pages of task {task} differ in size"):
        export(
            version_of(stage, "mixed"),
            stage.masks,
            tmp_path / "out",
            ExportFormat.NIFTI,
            statistics={"overall": _no_figures()},
        )


def _no_figures() -> dict[str, object]:
    return {"accepted": 0, "edited": 0, "rejected": 0, "added": 0, "acceptance_rate": None}


def test_hugging_face_folder_names_existing_files(stage: Stage, tmp_path: Path) -> None:
    write(stage, tmp_path / "out", ExportFormat.HF_DATASET)
    found = {}
    for metadata in (tmp_path / "out").glob("*/metadata.jsonl"):
        for row in map(json.loads, metadata.read_text().splitlines()):
            with Image.open(metadata.parent / row["file_name"]) as image:
                assert image.size == (WIDTH, HEIGHT)
            mask = np.array(Image.open(metadata.parent / row["mask_file_name"])) > 0
            found[row["task"], row["concept"]] = mask
    expected = truth(stage)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_data_card_counts(stage: Stage, tmp_path: Path) -> None:
    write(stage, tmp_path / "out", ExportFormat.COCO, "spring")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# Dataset spring of project 7" in card
    assert "8 images of 4 groups" in card
    assert "Annotators: 1, 2" in card
    assert (
        "Of the suggested regions 7 were accepted, 0 edited and 1 rejected; 14 were added" in card
    )
    assert "Acceptance rate: 87.5 %." in card
    origin = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert {one["model_version"] for one in origin["images"]} == {"tiny-1"}


def test_an_image_that_was_replaced_is_not_exported(stage: Stage, tmp_path: Path) -> None:
    for reference in stage.label_studio.images:
        stage.label_studio.images[reference] = image_file(77)
    with pytest.raises(DatasetVersionError, match="not the one that was annotated"):
        write(stage, tmp_path / "out", ExportFormat.COCO)


def test_a_folder_with_files_is_left_alone(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(DatasetVersionError, match="not empty"):
        write(stage, tmp_path / "out", ExportFormat.COCO)


def test_project_without_corrections_says_what_to_do(stage: Stage) -> None:
    with (
        stage.services.database.session() as session,
        pytest.raises(DatasetVersionError, match="corrections sync --project 99"),
    ):
        open_version(session, 99, "x")


@pytest.mark.parametrize(
    ("label", "expected"),
    [("Tumor", "Tumor"), ("a/b", "a%2Fb"), (".x", "%2Ex"), ("", "%00"), ("Läsion 2", "Läsion 2")],
)
def test_labels_become_folders(label: str, expected: str) -> None:
    assert folder_name(label) == expected
