"""A prediction by the bundled model: how often an image is decoded and encoded."""

import base64
from pathlib import Path

import pytest

import medsam3_model.images.reading
from backend.errors import LabelConfigError
from backend.label_studio.connect import UNCERTAINTY_SAMPLING, UNIFORM_SAMPLING
from backend.models.serving_order import sampling_of
from backend.models.versions import default_version
from backend.predictions import inference as inferences
from backend.predictions.inference import Inference
from backend.predictions.jobs import predict_chunk
from backend.predictions.requests import request_pushes
from backend.services import Services, use_services
from backend.tables import Delivery, Project, Suggestion, SuggestionState, TrainingPolicy
from medsam3_model.pretraining.phantoms.phantoms import phantom
from tests.support.images import png
from tests.support.stand_in_label_studio import StandInLabelStudio

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
    return task_of(services, "microscopy")


def task_of(services: Services, kind: str) -> Suggestion:
    """A task with a phantom of this kind, to be predicted."""
    image = base64.b64encode(png(phantom(kind, 2).image)).decode()
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
    # The whole and four parts, because the nuclei are small, each of them in a mirror as well.
    assert encoded(services) == 2 * 5
    assert len(decoded) == 1
    inference.predict(row, CONFIG)
    assert len(decoded) == 1, "all embeddings are there"


def test_tasks_are_ordered_as_their_project_chose(services: Services) -> None:
    def sampling(project_id: int) -> str:
        return sampling_of(services.database, services.settings, project_id)

    assert sampling(7) == UNIFORM_SAMPLING, "nothing is known of it"
    with services.database.session() as session:
        session.merge(Project(id=7, label_config=CONFIG))
        session.add(TrainingPolicy(project_id=8, strategy="random"))
    assert sampling(7) == UNIFORM_SAMPLING, "nothing is learned yet"
    with services.database.session() as session:
        for project_id in (7, 8):
            session.merge(Project(id=project_id, label_config=CONFIG, model_version="tiny-x"))
    assert (sampling(7), sampling(8)) == (UNCERTAINTY_SAMPLING, UNIFORM_SAMPLING)
    with services.database.session() as session:
        session.get_one(Project, 7).model_version = default_version(services)
    assert sampling(7) == UNIFORM_SAMPLING, "what it had learned serves no more"


@pytest.mark.parametrize(
    ("kind", "phrase", "low"), [("dermoscopy", "lesion", 0.1), ("microscopy", "nuclei", 0.4)]
)
def test_labels_with_one_phrase_have_thresholds_of_their_own(
    services: Services, kind: str, phrase: str, low: float
) -> None:
    def scores(maybe: float, sure: float) -> dict[str, list[float]]:
        asked = "".join(
            f'<Label value="{value}" prompt="{phrase}" score_threshold="{threshold}"/>'
            for value, threshold in (("Maybe", maybe), ("Sure", sure))
        )
        xml = CONFIG.replace('<Label value="Nuclei" prompt="nuclei"/>', asked)
        scores_of: dict[str, list[float]] = {"Maybe": [], "Sure": []}
        for region in inference.predict(row, xml).regions:
            (label,) = region["value"]["brushlabels"]
            scores_of[label].append(region["score"])
        return scores_of

    inference = Inference(services)
    row = task_of(services, kind)
    same = scores(low, low)
    assert same["Maybe"] == same["Sure"]
    # The many nuclei are one region, of the semantic map; it is judged like an instance.
    assert (len(same["Maybe"]) > 1) == (kind == "dermoscopy")
    lowest = min(same["Maybe"])
    apart = scores(low, lowest + 1e-4)
    assert apart["Maybe"] == same["Maybe"]
    assert apart["Sure"] == [score for score in same["Maybe"] if score > lowest]


CLICKS = CONFIG.replace(
    "</View>",
    '<KeyPointLabels name="kp" toName="image" smart="true"><Label value="positive"/>'
    '<Label value="negative"/></KeyPointLabels></View>',
)


def click(x: float, label: str) -> dict[str, object]:
    value = {"x": x, "y": 50, "width": 0.3, "keypointlabels": [label]}
    return {
        "id": f"{label}{x}",
        "from_name": "kp",
        "to_name": "image",
        "type": "keypointlabels",
        "original_width": 100,
        "original_height": 100,
        "value": value,
    }


def test_a_click_without_a_mask_label_is_answered_for_the_only_one(services: Services) -> None:
    inference = Inference(services)
    row = nuclei(services)
    row.context = {"result": [click(50, "positive"), click(5, "negative")]}
    regions = inference.predict(row, CLICKS).regions
    assert [region["value"]["brushlabels"] for region in regions] == [["Nuclei"]]
    two = CLICKS.replace("</BrushLabels>", '<Label value="Cell"/></BrushLabels>')
    with pytest.raises(LabelConfigError, match="'negative' has no control that can hold a mask"):
        inference.predict(row, two)


def test_prewarming_encodes_the_image_and_answers_nothing(
    services: Services, decoded: list[bytes]
) -> None:
    inference = Inference(services)
    row = nuclei(services)
    row.context = {"event": "prewarm"}
    answer = inference.predict(row, CLICKS)
    assert (answer.regions, answer.score) == ([], 0.0)
    assert encoded(services) == 2, "the image and its mirror image"
    assert len(decoded) == 1


def test_what_nobody_waits_for_is_not_kept_in_memory(services: Services) -> None:
    inference = Inference(services)
    row = task_of(services, "fundus")
    for delivery in (Delivery.PUSH, Delivery.PUSH, Delivery.REPLY, Delivery.REPLY):
        row.delivery = delivery
        inference.predict(row, CONFIG)
    # The image and its mirror image.
    assert encoded(services) == 2
    assert inference._embeddings.counts == {
        "embedding_misses": 2,
        "embedding_disk_hits": 4,
        "embedding_memory_hits": 2,
    }


def test_images_are_fetched_ahead_once_and_a_missing_one_harms_its_own_task_alone(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StandInLabelStudio(CONFIG) as label_studio:
        tasks = [label_studio.add_task(png(phantom("fundus", seed, 64).image)) for seed in range(4)]
        del label_studio.images[label_studio.tasks[tasks[2]]["data"]["image"]]
        settings = services.settings.model_copy(update={"label_studio_url": label_studio.url})
        beside = Services(settings, services.database, services.redis)
        use_services(beside)
        monkeypatch.setattr(inferences, "_current", Inference(beside))
        asked = [label_studio.tasks[task] for task in tasks]
        (ids,) = request_pushes(beside, asked, label_studio.project_id, CONFIG)
        predict_chunk(ids)
        fetched = [path for path in label_studio.requests if "/upload/" in path]
    # At the same time, so not in their order.
    assert sorted(fetched) == sorted(task["data"]["image"] for task in asked)
    with services.database.reading() as session:
        states = [session.get_one(Suggestion, id_).state for id_ in ids]
    done = SuggestionState.DONE
    assert states == [done, done, SuggestionState.FAILED, done]
