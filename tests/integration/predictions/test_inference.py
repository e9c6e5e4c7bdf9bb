"""A prediction by the bundled model: how often an image is decoded and encoded."""

import base64
from pathlib import Path

import pytest

import medsam3_model.images.reading
from backend.models.versions import default_version
from backend.predictions.inference import Inference
from backend.services import Services
from backend.tables import Suggestion, TrainingPolicy
from medsam3_model.pretraining.phantoms.phantoms import phantom
from tests.support.images import png

CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image"><Label value="Nuclei" prompt="nuclei"/></BrushLabels>
</View>
"""


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The files that were decoded, in their order."""
    files: list[bytes] = []
    open_picture = medsam3_model.images.reading.open_picture

    def counted(source: bytes | Path | str, **options: object) -> object:
        assert isinstance(source, bytes)
        files.append(source)
        return open_picture(source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(medsam3_model.images.reading, "open_picture", counted)
    return files


def nuclei(services: Services) -> Suggestion:
    """A task with many small objects, to be predicted."""
    image = base64.b64encode(png(phantom("microscopy", 2).image)).decode()
    return Suggestion(
        project_id=7,
        task_id=1,
        task_data={"image": f"data:image/png;base64,{image}"},
        model_version=default_version(services),
    )


def encoded(services: Services) -> int:
    """Embeddings on disk."""
    return len(list(services.settings.embedding_dir.glob("*/*.safetensors")))


def test_an_image_is_decoded_once_however_often_it_is_looked_at(
    services: Services, decoded: list[bytes]
) -> None:
    inference = Inference(services)
    row = nuclei(services)
    assert inference.predict(row, CONFIG).regions
    assert encoded(services) == 5, "the whole and four parts, because the nuclei are small"
    assert len(decoded) == 1
    inference.predict(row, CONFIG)
    assert len(decoded) == 1, "all embeddings are there"


def test_the_mirrored_image_is_not_decoded_again(services: Services, decoded: list[bytes]) -> None:
    with services.database.session() as session:
        session.add(TrainingPolicy(project_id=7, strategy="tta"))
    inference = Inference(services)
    row = nuclei(services)
    assert 0 < inference.predict(row, CONFIG).score < 1
    assert encoded(services) == 6
    assert len(decoded) == 1
