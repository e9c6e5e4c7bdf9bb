"""`medsam3 doctor` says what caches may take, and when a project is too large for them."""

from pathlib import Path

from backend.doctor import Status
from backend.doctor.caches import check_caches, check_embedding_room, check_embedding_store
from backend.tables import Project
from tests.support.corrections_stage import Stage


def test_what_is_set_and_what_is_chosen_are_told_apart(stage: Stage) -> None:
    settings = stage.services.settings.model_copy(update={"embedding_memory_mb": 77})
    found = check_caches(settings)
    assert "77 MB (set)" in found.message
    assert "MB (chosen)" in found.message


def test_a_project_whose_embeddings_do_not_fit_is_named_with_the_number(stage: Stage) -> None:
    services = stage.services
    with services.database.session() as session:
        session.merge(Project(id=stage.label_studio.project_id))
    for _ in range(30):
        stage.label_studio.add_task(b"")
    assert check_embedding_room(services.settings, services.database).status is Status.OK
    # The bundled model: 18 × 18 patches of 192 numbers in 16 bit, and as many of the mirror image.
    settings = services.settings.model_copy(update={"embedding_disk_mb": 1})
    found = check_embedding_room(settings, services.database)
    assert found.status is Status.WARN
    assert found.message.startswith("30 tasks × 0.24 MB = 8 MB")
    assert "26 images are encoded again" in found.message
    full = settings.model_copy(update={"model": "facebook/sam3", "embedding_disk_mb": 20480})
    assert "× 10.12 MB = 304 MB" in check_embedding_room(full, services.database).message
    shared = settings.model_copy(update={"embedding_store_url": "s3://bucket/embeddings"})
    assert check_embedding_room(shared, services.database).status is Status.OK
    entry = settings.embedding_dir / "ab" / "c.safetensors"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(bytes(2**20))
    assert "30 tasks × 1.00 MB = 30 MB" in check_embedding_room(full, services.database).message


def test_a_shared_store_is_tried(stage: Stage, tmp_path: Path) -> None:
    settings = stage.services.settings
    assert check_embedding_store(settings) is None
    folder = settings.model_copy(update={"embedding_store_url": str(tmp_path / "shared")})
    answering = check_embedding_store(folder)
    assert answering is not None
    assert answering.status is Status.OK
    (tmp_path / "file").write_bytes(b"")
    broken = settings.model_copy(update={"embedding_store_url": f"zip://{tmp_path}/file"})
    found = check_embedding_store(broken)
    assert found is not None
    assert found.status is Status.WARN
    assert "MEDSAM3_EMBEDDING_STORE_URL" in found.next_step
