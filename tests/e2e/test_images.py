"""Images of tasks through a real Label Studio: uploads, local files and a real S3 protocol."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from backend.errors import ImageSourceError
from backend.label_studio.client import LabelStudio
from backend.label_studio.images import fetch_image
from backend.label_studio.server import LabelStudioServer
from backend.settings import Settings
from tests.support.annotating import AnnotatingLabelStudio
from tests.support.images import disc_file
from tests.support.projects import LabelStudioProject, ProjectFactory
from tests.support.s3 import s3_server


def settings(**fields: Any) -> Settings:
    return Settings(_env_file=None, **fields)


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """An S3 server, empty."""
    with s3_server() as url:
        yield url


@pytest.fixture
def local_folder(label_studio_server: LabelStudioServer, tmp_path: Path) -> Path:
    """A folder below the root from which the server may serve local files."""
    assert label_studio_server.local_files_root is not None
    folder = label_studio_server.local_files_root / tmp_path.name
    folder.mkdir()
    return folder


def s3_project(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory, s3_url: str, presign: bool
) -> tuple[LabelStudioProject, str, bytes]:
    """A project with one task from a bucket: the project, the task's image and its bytes."""
    project, image = make_project(), disc_file(11)
    bucket = f"scans-{project.id}"
    httpx2.put(f"{s3_url}/{bucket}").raise_for_status()
    httpx2.put(f"{s3_url}/{bucket}/a%20b.png", content=image).raise_for_status()
    storage = label_studio.post(
        "/api/storages/s3",
        {
            "project": project.id,
            "bucket": bucket,
            "s3_endpoint": s3_url,
            "aws_access_key_id": "key",
            "aws_secret_access_key": "secret",
            "use_blob_urls": True,
            "presign": presign,
        },
    )
    label_studio.post(f"/api/storages/s3/{storage['id']}/sync", {})
    (task,) = label_studio.tasks(project.id)
    return LabelStudioProject(project.id, [task["id"]]), task["data"]["image"], image


def test_an_upload(label_studio: AnnotatingLabelStudio, make_project: ProjectFactory) -> None:
    image = disc_file(3)
    project = make_project([image])
    reference = label_studio.task(project.task_ids[0])["data"]["image"]
    assert fetch_image(reference, client=label_studio, settings=settings()) == image
    with pytest.raises(ImageSourceError, match="the uploaded file is missing"):
        fetch_image("/data/upload/1/gone.png", client=label_studio, settings=settings())


def test_an_upload_with_a_personal_token(
    label_studio_server: LabelStudioServer,
    label_studio: AnnotatingLabelStudio,
    make_project: ProjectFactory,
    personal_token: str,
) -> None:
    image = disc_file(4)
    project = make_project([image])
    reference = label_studio.task(project.task_ids[0])["data"]["image"]
    with LabelStudio(label_studio_server.url, personal_token) as client:
        assert fetch_image(reference, client=client, settings=settings()) == image


def test_local_files_through_label_studio_and_around_it(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory, local_folder: Path
) -> None:
    image = disc_file(5)
    (local_folder / "a b.png").write_bytes(image)
    project = make_project()
    (task_id,) = label_studio.import_tasks(
        project.id,
        [{"data": {"image": f"/data/local-files/?d={local_folder.name}/a%20b.png"}}],
    )
    reference = label_studio.task(task_id)["data"]["image"]
    direct = settings(allowed_local_roots=(local_folder.parent,))
    assert fetch_image(reference, client=label_studio, settings=direct) == image
    with pytest.raises(ImageSourceError, match="connected to the project as local storage"):
        fetch_image(reference, client=label_studio, settings=settings())
    label_studio.post(
        "/api/storages/localfiles",
        {"project": project.id, "path": str(local_folder), "use_blob_urls": True},
    )
    assert fetch_image(reference, client=label_studio, settings=settings()) == image


def test_a_bucket_that_label_studio_reads_for_us(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory, s3_url: str
) -> None:
    project, reference, image = s3_project(label_studio, make_project, s3_url, presign=False)
    assert reference == f"s3://scans-{project.id}/a b.png"
    (task_id,) = project.task_ids
    found = fetch_image(reference, client=label_studio, settings=settings(), task_id=task_id)
    assert found == image
    by_project = fetch_image(
        reference, client=label_studio, settings=settings(), project_id=project.id
    )
    assert by_project == image
    # Sent to us already resolved, as in the tasks that the editor opens.
    query = {"project": project.id, "resolve_uri": "true", "fields": "all"}
    (task,) = label_studio.get("/api/tasks", **query)["tasks"]
    assert "/resolve/?fileuri=" in task["data"]["image"]
    resolved = task["data"]["image"]
    found = fetch_image(resolved, client=label_studio, settings=settings(), task_id=task_id)
    assert found == image
    with pytest.raises(ImageSourceError, match="another task or project"):
        fetch_image(resolved, client=label_studio, settings=settings(), task_id=task_id + 1)
    with pytest.raises(ImageSourceError, match="no cloud storage of the project"):
        fetch_image(
            "s3://elsewhere/a.png", client=label_studio, settings=settings(), task_id=task_id
        )


def test_a_bucket_with_signed_links(
    label_studio: AnnotatingLabelStudio, make_project: ProjectFactory, s3_url: str
) -> None:
    project, reference, image = s3_project(label_studio, make_project, s3_url, presign=True)
    (task_id,) = project.task_ids
    with pytest.raises(ImageSourceError, match="MEDSAM3_ALLOWED_IMAGE_HOSTS") as caught:
        fetch_image(reference, client=label_studio, settings=settings(), task_id=task_id)
    assert "Signature" not in str(caught.value)
    allowed = settings(allowed_image_hosts=(s3_url.removeprefix("http://"),))
    found = fetch_image(reference, client=label_studio, settings=allowed, task_id=task_id)
    assert found == image
