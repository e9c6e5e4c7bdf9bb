"""`medsam3 import` into a real Label Studio: pages, geometry, repetition, and nothing by half."""

import io
import json
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page
from sqlalchemy import select

from backend.database import open_database
from backend.errors import LabelStudioError, VolumeError
from backend.label_studio.server import LabelStudioServer
from backend.labeling.region_masks import union_mask
from backend.settings import Settings
from backend.volumes.importing import LocalFolder, import_stacks
from backend.volumes.tables import Stack
from medsam3_model.data.template import template_slice
from medsam3_model.images.geometry import geometry_from_json, masks_to_source
from medsam3_model.images.rendering import WINDOWS, StackOptions
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.editor import (
    HEIGHT,
    WIDTH,
    brush_stroke,
    image_size,
    open_task,
    painted,
    submit,
    turn_page,
)
from tests.support.masks import dice
from tests.support.processes import BackendServer
from tests.support.projects import LabelStudioProject, ProjectFactory
from tests.support.repository import ROOT
from tests.support.stack_files import write_series

CONFIG = (ROOT / "label_config" / "ct_stack.xml").read_text()


def test_a_folder_of_series_and_a_volume_become_tasks(
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
    label_studio_server: LabelStudioServer,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tmp_path / "study"
    source.mkdir()
    volume = np.full((60, 8, 10), 1024 + 100, np.uint16)
    volume[:, 0, 0] = 1024 + np.arange(60)
    write_series(source / "series", volume)
    write_series(source / "gap", volume[:5], positions=(0, 3, 6, 12, 15))
    brain = np.random.default_rng(0).random((5, 6, 7)) < 0.5
    affine = np.array([[0, -2, 0, 3], [-0.75, 0, 0, 1], [0, 0, 3, 2], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(brain.astype(np.uint8), affine), source / "brain.nii.gz")
    project = make_project(label_config=CONFIG)
    database = open_database(settings)

    def imported(folder: LocalFolder | None = None) -> dict[str, list[int | None]]:
        outcomes: dict[str, list[int | None]] = {}
        for stack in import_stacks(
            source,
            project.id,
            StackOptions(window=(0, 255) if folder is None else None),
            client=label_studio,
            database=database,
            settings=settings,
            folder=folder,
        ):
            outcomes.setdefault(stack.outcome, []).append(stack.task_id)
        return outcomes

    # What fails last takes everything back.
    with monkeypatch.context() as patch:
        patch.setattr(type(label_studio), "create_task", _gone)
        with pytest.raises(LabelStudioError, match="gone"):
            imported()
    assert list(label_studio.tasks(project.id)) == []
    assert label_studio.get(f"/api/projects/{project.id}/file-uploads", all="true") == []

    outcomes = imported()
    assert outcomes["refused"] == [None]
    tasks = {task["id"]: task["data"]["images"] for task in label_studio.tasks(project.id)}
    assert sorted(map(len, tasks.values())) == [7, 60]
    assert imported() == {"known": outcomes["created"], "refused": [None]}
    with database.reading() as session:
        rows = session.scalars(select(Stack)).all()
    geometries = {row.task_id: geometry_from_json(row.geometry) for row in rows}
    assert geometries.keys() == tasks.keys()
    for task_id, references in tasks.items():
        geometry = geometries[task_id]
        pages = [_page(label_studio, reference) for reference in references]
        if geometry.kind == "dicom":
            assert [int(page[0, 0]) for page in pages] == list(range(60))
        else:
            assert geometry.affine == tuple(affine.ravel())
            assert geometry.page_size == (5, 16)
    assert {geometry.window for geometry in geometries.values()} == {(0, 255)}
    # The same as local files, at the volume's own range: the mask on its pages is the source's.
    assert label_studio_server.local_files_root is not None
    root = label_studio_server.local_files_root
    pages_folder = LocalFolder(root / f"stacks-{project.id}", root)
    pages_folder.path.mkdir()
    storage = {"project": project.id, "path": str(pages_folder.path)}
    label_studio.post("/api/storages/localfiles", storage)
    local = imported(pages_folder)["created"]
    (task,) = [
        task
        for task in label_studio.tasks(project.id)
        if task["id"] in local and len(task["data"]["images"]) == 7
    ]
    with database.reading() as session:
        row = session.scalars(select(Stack).where(Stack.task_id == task["id"])).one()
    pages = [_page(label_studio, reference) for reference in task["data"]["images"]]
    assert [page.shape for page in pages] == [(5, 16)] * 7
    back = masks_to_source(
        geometry_from_json(row.geometry), {n: page > 127 for n, page in enumerate(pages)}
    )
    np.testing.assert_array_equal(back, brain)


def test_a_labeling_config_names_the_window_of_its_volumes(
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
    settings: Settings,
    tmp_path: Path,
) -> None:
    volume = np.linspace(-2000, 2000, 64, dtype=np.float32).reshape(4, 4, 4)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "chest.nii.gz")
    database = open_database(settings)

    def imported(window: str) -> np.ndarray:
        config = CONFIG.replace("<Image ", f'<Image window="{window}" ', 1)
        project = make_project(label_config=config)
        (stack,) = import_stacks(
            tmp_path,
            project.id,
            StackOptions(),
            client=label_studio,
            database=database,
            settings=settings,
        )
        assert stack.task_id is not None
        return np.stack(
            [
                _page(label_studio, reference)
                for reference in label_studio.task(stack.task_id)["data"]["images"]
            ]
        )

    for window, (low, high) in {"lung": WINDOWS["lung"], "40,400": (-160, 240)}.items():
        pages = imported(window)
        assert (pages == 0).sum() == (volume <= low + (high - low) / 510).sum()
        assert (pages == 255).sum() == (volume >= high - (high - low) / 510).sum()
    with pytest.raises(VolumeError, match="'lungs' is no window"):
        imported("lungs")


def test_one_corrected_slice_of_a_dicom_series_becomes_a_dicom_segmentation(
    label_studio: AnnotatingLabelStudio,
    label_studio_server: LabelStudioServer,
    make_project: ProjectFactory,
    backend: BackendServer,
    browser: Browser,
    tmp_path: Path,
) -> None:
    slices = [template_slice(index) for index in range(60, 108, 6)]
    pixels = np.stack([one.image[:, :, 0] for one in slices]).astype(np.uint16)
    write_series(
        tmp_path / "study", 1024 + pixels, spacing=(1, 1), WindowCenter=128, WindowWidth=256
    )
    project = make_project(label_config=(ROOT / "label_config/brain_mri_volume.xml").read_text())
    imported = json.loads(
        backend.command("import", tmp_path / "study", "--project", project.id, "--json")
    )
    (task_id,) = (stack["task_id"] for stack in imported["stacks"])
    backend.command("connect", project.id, "--url", backend.url, "--keep-sampling")
    assert label_studio.project(project.id)["sampling"] == "Sequential sampling"
    backend.command("connect", project.id, "--url", backend.url)
    assert label_studio.project(project.id)["sampling"] == "Uniform sampling"
    backend.command("preannotate", project.id)

    # Every page has its own masks, and turning them shows these.
    (prediction,) = label_studio.task(task_id)["predictions"]
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    open_task(page, label_studio_server, LabelStudioProject(project.id, [task_id]))
    for place in range(3):
        assert dice(painted(page), _on_screen(page, prediction["result"], place)) > 0.95
        turn_page(page)
    # High enough that picking a label does not scroll the image away.
    page.set_viewport_size({"width": 1400, "height": 1300})
    brush_stroke(page)
    submit(page)
    page.close()
    (annotation,) = label_studio.annotations(task_id)
    (stroke,) = [region for region in annotation["result"] if region["origin"] == "manual"]
    assert stroke["item_index"] == 3

    # The slice that somebody drew on stays as it is, and the others are drawn from it.
    said = json.loads(backend.command("propagate", task_id, "--json"))
    assert (said["state"], said["total"]) == ("done", len(slices))
    new = max(label_studio.task(task_id)["predictions"], key=lambda one: one["id"])
    assert new["id"] != prediction["id"]
    corrected = _brain(annotation["result"], 3)
    assert (_brain(new["result"], 3) == corrected).all()
    for place, one in enumerate(slices):
        assert dice(_brain(new["result"], place), one.masks["brain"]) > 0.9

    # Accepted, and exported as what a hospital's archive takes.
    label_studio.delete(f"/api/annotations/{annotation['id']}/")
    label_studio.create_annotation(task_id, new["result"], parent_prediction=new["id"])
    backend.command("corrections", "sync", "--project", project.id)
    target = tmp_path / "export"
    backend.command("export", target, "--project", project.id, "--format", "dicom-seg")
    (file,) = target.rglob("*.dcm")
    segmentation = highdicom.seg.segread(file)
    number = segmentation.get_segment_numbers(segment_label="Brain")[0]
    uids = [
        one.SOPInstanceUID
        for one in sorted(
            (pydicom.dcmread(path) for path in (tmp_path / "study").iterdir()),
            key=lambda one: float(one.ImagePositionPatient[2]),
        )
    ]
    exported = segmentation.get_pixels_by_source_instance(uids, segment_numbers=[number])
    for place in range(len(slices)):
        assert (exported[place, :, :, 0].astype(bool) == _brain(new["result"], place)).all()


def _brain(regions: list[dict[str, Any]], place: int) -> np.ndarray:
    here = [
        one
        for one in regions
        if one["item_index"] == place and one["value"]["brushlabels"] == ["Brain"]
    ]
    return union_mask(here, HEIGHT, WIDTH)


def _on_screen(page: Page, regions: list[dict[str, Any]], place: int) -> np.ndarray:
    """A page's masks as the canvas should show them."""
    here = [one for one in regions if one["item_index"] == place]
    width, height = image_size(page)
    shown = np.zeros(painted(page).shape, bool)
    shown[:height, :width] = Image.fromarray(union_mask(here, HEIGHT, WIDTH)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    return shown


def _gone(*_: object) -> int:
    raise LabelStudioError("gone")


def _page(client: AnnotatingLabelStudio, reference: str) -> np.ndarray:
    content = client.download(reference, max_bytes=2**20)
    return np.asarray(Image.open(io.BytesIO(content)))
