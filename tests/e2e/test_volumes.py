"""`medsam3 import` into a real Label Studio: pages, geometry, repetition, and nothing by half."""

import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select

from backend.database import open_database
from backend.errors import LabelStudioError
from backend.label_studio.server import LabelStudioServer
from backend.settings import Settings
from backend.volumes.importing import LocalFolder, import_stacks
from backend.volumes.tables import Stack
from medsam3_model.images.geometry import geometry_from_json, masks_to_source
from medsam3_model.images.rendering import StackOptions
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.projects import ProjectFactory
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


def _gone(*_: object) -> int:
    raise LabelStudioError("gone")


def _page(client: AnnotatingLabelStudio, reference: str) -> np.ndarray:
    content = client.download(reference, max_bytes=2**20)
    return np.asarray(Image.open(io.BytesIO(content)))
