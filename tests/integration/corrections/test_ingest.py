"""What comes into the store: every kind of region, every kind of event, and who said it."""

from pathlib import Path

import numpy as np
import pytest

from backend.corrections.groups import count_groups
from backend.corrections.ingest import open_ingest
from backend.corrections.sync import sync_project
from backend.processes.redis_server import RedisServer
from backend.services import Services, open_services
from backend.settings import Settings
from tests.support.corrections_stage import (
    CONFIG,
    Stage,
    brush,
    drawn,
    image_file,
    region,
    stage_at,
)
from tests.support.stand_in_label_studio import StandInLabelStudio


def outcomes(stage: Stage) -> list[tuple[str, str | None]]:
    return [(one["outcome"], one["region_id"]) for one in stage.one()["revision"]["outcomes"]]


def test_brush_mask_is_stored_bit_by_bit(stage: Stage, task: int) -> None:
    stage.label_studio.annotate(task, [brush("a", drawn(1))])
    stage.hear_all()
    assert stage.one()["state"] == "valid"
    assert np.array_equal(stage.mask_of("Tumor"), drawn(1))


def test_a_concept_is_the_union_of_its_regions(stage: Stage, task: int) -> None:
    stage.label_studio.annotate(
        task, [brush("a", drawn(1)), brush("b", drawn(2)), brush("c", drawn(3), label="Cyst")]
    )
    stage.hear_all()
    assert np.array_equal(stage.mask_of("Tumor"), drawn(1) | drawn(2))
    assert np.array_equal(stage.mask_of("Cyst"), drawn(3))
    regions = {one["region_id"]: one["mask_hash"] for one in stage.one()["revision"]["regions"]}
    assert np.array_equal(stage.masks.get(regions["b"]), drawn(2))


def test_a_box_beside_an_outline_adds_nothing_to_the_mask(stage: Stage, task: int) -> None:
    box = {"x": 0, "y": 0, "width": 100, "height": 100, "rotation": 0}
    stage.label_studio.annotate(
        task,
        [
            brush("a", drawn(1)),
            region("b", "box", "rectanglelabels", {**box, "rectanglelabels": ["Tumor"]}),
            region("c", "box", "rectanglelabels", {**box, "rectanglelabels": ["Node"]}),
        ],
    )
    stage.hear_all()
    assert np.array_equal(stage.mask_of("Tumor"), drawn(1))
    assert stage.mask_of("Node").all()


def test_polygons_and_ellipses_become_masks(stage: Stage, task: int) -> None:
    square = {"points": [[25, 25], [75, 25], [75, 75], [25, 75]], "closed": True}
    ellipse = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 25, "rotation": 0}
    stage.label_studio.annotate(
        task,
        [
            region("a", "poly", "polygonlabels", {**square, "polygonlabels": ["Tumor"]}),
            region("b", "ellipse", "ellipselabels", {**ellipse, "ellipselabels": ["Cyst"]}),
        ],
    )
    stage.hear_all()
    expected = np.zeros((48, 64), bool)
    expected[12:36, 16:48] = True
    assert np.array_equal(stage.mask_of("Tumor"), expected)
    assert stage.mask_of("Cyst").sum() == pytest.approx(np.pi * 16 * 12, rel=0.02)


def test_pages_are_kept_apart(stage: Stage) -> None:
    stage.label_studio.label_config = CONFIG.replace('value="$image"', 'valueList="$images"')
    pages = ["/data/upload/7/p0.png", "/data/upload/7/p1.png"]
    for page, reference in enumerate(pages):
        stage.label_studio.images[reference] = image_file(page)
    task = stage.label_studio.add_task(b"", images=pages)
    stage.label_studio.annotate(
        task, [brush("a", drawn(1), item_index=0), brush("b", drawn(2), item_index=1)]
    )
    stage.hear_all()
    assert np.array_equal(stage.mask_of("Tumor", 0), drawn(1))
    assert np.array_equal(stage.mask_of("Tumor", 1), drawn(2))
    assert [one["reference"] for one in stage.one()["revision"]["images"]] == pages


def test_nothing_drawn_is_a_statement(stage: Stage, task: int) -> None:
    stage.label_studio.annotate(task, [])
    stage.hear_all()
    assert stage.one()["state"] == "valid"
    assert stage.one()["revision"]["concepts"] == []
    (image,) = stage.one()["revision"]["images"]
    assert (image["width"], image["height"]) == (64, 48)


def test_choices_and_key_points_are_no_regions(stage: Stage, task: int) -> None:
    choice = {"id": "c", "from_name": "q", "to_name": "image", "type": "choices", "value": {}}
    point = region("k", "kp", "keypointlabels", {"x": 1, "y": 1, "keypointlabels": ["Tumor"]})
    annotation = stage.label_studio.annotate(task, [choice, point, brush("a", drawn(1))])
    stage.hear_all()
    assert [one["region_id"] for one in stage.one()["revision"]["regions"]] == ["a"]
    # The point alone says that the tumor is there: its image must not count as one without it.
    stage.label_studio.update(annotation, result=[choice, point])
    stage.hear_all()
    assert (stage.one()["state"], stage.one()["trouble"]) == ("quarantined", "content")
    assert "region 'k' (keypointlabels)" in stage.one()["reason"]


@pytest.mark.parametrize("id_", ["w", 7, None])
def test_a_tool_beside_separate_labels(stage: Stage, task: int, id_: object) -> None:
    config = CONFIG.replace(
        "</View>",
        '<MagicWand name="wand" toName="image"/>'
        '<Labels name="labels" toName="image"><Label value="Tumor"/></Labels></View>',
    )
    stage.label_studio.set_config(config)
    value = brush("w", drawn(1))["value"]
    geometry = {"format": value["format"], "rle": value["rle"]}
    stage.label_studio.annotate(
        task,
        [
            {**region("", "wand", "magicwand", geometry), "id": id_},
            {**region("", "labels", "labels", {**geometry, "labels": ["Tumor"]}), "id": id_},
        ],
    )
    stage.hear_all()
    assert stage.one()["state"] == "valid"
    assert np.array_equal(stage.mask_of("Tumor"), drawn(1))


def test_accepted_edited_rejected_and_added(stage: Stage, task: int) -> None:
    suggested = [brush(id_, drawn(seed)) for seed, id_ in enumerate("abc")]
    suggestion = stage.suggest(task, suggested)
    # c is deleted; d lies where nothing was suggested.
    corner = np.zeros((48, 64), bool)
    corner[:5, :5] = True
    edited = drawn(1).copy()
    edited[20:24] = True
    stage.label_studio.annotate(
        task,
        [
            {**suggested[0], "origin": "prediction"},
            {**brush("b", edited), "origin": "prediction-changed"},
            {**brush("d", corner), "origin": "manual"},
        ],
        parent_prediction=None,
    )
    stage.hear_all()
    assert outcomes(stage) == [
        ("accepted", "a"),
        ("edited", "b"),
        ("rejected", "c"),
        ("added", None),
    ]
    revision = stage.one()["revision"]
    assert (revision["suggestion"], revision["model_version"]) == (suggestion, "tiny-1")
    assert 0 < revision["outcomes"][1]["dice"] < 1


def test_accepted_from_a_smart_tool(stage: Stage, task: int) -> None:
    stage.suggest(task, [brush("i", drawn(1))], interactive=True, model_version="tiny-2")
    stage.suggest(task, [brush("unused", drawn(2))], interactive=True)
    stage.label_studio.annotate(task, [{**brush("i", drawn(1)), "origin": "manual"}])
    stage.hear_all()
    assert outcomes(stage) == [("accepted", "i")]
    assert stage.one()["revision"]["outcomes"][0]["interactive"]
    assert stage.one()["revision"]["model_version"] == "tiny-2"


def test_newest_suggestion_counts_when_no_region_was_kept(stage: Stage, task: int) -> None:
    stage.suggest(task, [brush("old", drawn(1))], model_version="tiny-1")
    stage.suggest(task, [brush("new", drawn(1))], model_version="tiny-2")
    stage.label_studio.annotate(task, [])
    stage.suggest(task, [brush("later", drawn(1))], model_version="tiny-3")
    stage.hear_all()
    assert outcomes(stage) == [("rejected", "new")]


def test_a_prediction_of_another_backend_is_read_from_label_studio(stage: Stage, task: int) -> None:
    stage.label_studio.predictions[900] = {
        "id": 900,
        "model_version": "theirs",
        "result": [brush("x", drawn(1))],
    }
    stage.label_studio.annotate(task, [brush("x", drawn(1))], parent_prediction=900)
    stage.hear_all()
    assert outcomes(stage) == [("accepted", "x")]
    assert stage.one()["revision"]["model_version"] == "theirs"


def test_skipped_task_says_nothing_about_the_suggestion(stage: Stage, task: int) -> None:
    stage.suggest(task, [brush("a", drawn(1))])
    stage.label_studio.annotate(task, [], was_cancelled=True)
    stage.hear_all()
    assert stage.one()["revision"]["was_cancelled"]
    assert outcomes(stage) == []


def test_every_version_is_kept_and_the_last_counts(stage: Stage, task: int) -> None:
    from backend.corrections.revisions import history

    id_ = stage.label_studio.annotate(task, [brush("a", drawn(1))])
    stage.hear_all()
    stage.label_studio.update(id_, result=[brush("a", drawn(2))], lead_time=30.0)
    stage.hear_all()
    assert np.array_equal(stage.mask_of("Tumor"), drawn(2))
    with stage.services.database.reading() as session:
        versions = history(session, id_)
    assert [one["lead_time"] for one in versions] == [12.5, 30.0]


def test_ground_truth_and_annotators_on_one_task(stage: Stage, task: int) -> None:
    from backend.corrections.revisions import latest_revisions

    stage.label_studio.annotate(task, [brush("a", drawn(1))], completed_by=1, ground_truth=True)
    second = stage.label_studio.annotate(task, [brush("b", drawn(2))], completed_by=2)
    stage.hear_all()
    project = stage.label_studio.project_id
    with stage.services.database.reading() as session:
        (best,) = latest_revisions(session, project)
        both = latest_revisions(session, project, per_annotator=True)
    assert (best.annotator, best.ground_truth) == (1, True)
    assert [one.annotator for one in both] == [1, 2]
    assert both[1].annotation_id == second


def test_annotations_made_from_predictions_in_bulk(stage: Stage, task: int) -> None:
    from backend.corrections.revisions import latest_revisions

    stage.suggest(task, [brush("a", drawn(1))])
    id_ = stage.label_studio.annotate(
        task,
        [brush("a", drawn(1))],
        parent_prediction=900,
        lead_time=None,
        updated_by=None,
    )
    stage.label_studio.events[:] = [
        {
            "action": "ANNOTATIONS_CREATED",
            "annotation": [{"id": id_}],
            "task": [{"id": task}],
            "project": {"id": stage.label_studio.project_id},
        }
    ]
    stage.hear_all()
    assert stage.one()["revision"]["from_prediction"]
    with stage.services.database.reading() as session:
        assert latest_revisions(session, 7) == []


def test_deleted_annotations_and_tasks_are_gone(stage: Stage, task: int) -> None:
    other = stage.label_studio.add_task(image_file(1))
    first = stage.label_studio.annotate(task, [brush("a", drawn(1))])
    stage.label_studio.annotate(other, [brush("b", drawn(2))])
    stage.hear_all()
    assert len(stage.state()) == 2
    stage.label_studio.delete(first)
    stage.hear_all()
    assert [one["task"] for one in stage.state()] == [other]
    stage.label_studio.delete_task(other)
    stage.hear_all()
    assert stage.state() == []


def test_deleted_project_takes_its_annotations_along(stage: Stage, task: int) -> None:
    stage.label_studio.annotate(task, [brush("a", drawn(1))])
    stage.hear_all()
    stage.label_studio.project_is_gone = True
    stage.work(stage.hear({"action": "PROJECT_DELETED", "project": {"id": 7}}))
    assert stage.state() == []


def test_unreachable_label_studio_loses_nothing(stage: Stage, task: int) -> None:
    from backend.corrections.ingest import ingest_events

    stage.label_studio.annotate(task, [brush("a", drawn(1))])
    event_id = stage.hear(stage.label_studio.events[0])
    stage.label_studio.down = True
    for _ in range(4):
        ingest_events(stage.services, [event_id])
    assert stage.state() == []
    stage.label_studio.down = False
    ingest_events(stage.services, [event_id])
    assert stage.one()["state"] == "valid"


def test_group_comes_from_data_pattern_or_image(data_dir: Path, redis_server: RedisServer) -> None:
    with StandInLabelStudio(CONFIG) as label_studio:
        settings = Settings(
            data_dir=data_dir,
            label_studio_url=label_studio.url,
            label_studio_api_key="0" * 40,
            group_field="patient",
            group_pattern=r"task(\d+)5\.png",
        )
        services = open_services(settings)
        with stage_at(services, label_studio) as stage:
            tasks = [label_studio.add_task(image_file(7), patient="P-1")]
            while not str(tasks[-1]).endswith("5"):
                tasks.append(label_studio.add_task(image_file(7)))
            for task in tasks:
                label_studio.annotate(task, [])
            stage.hear_all()
            groups = [one["revision"]["group"] for one in stage.state()]
        services.close()
    assert groups[0] == "P-1"
    assert groups[-1] == str(tasks[-1])[:-1]
    assert len(set(groups[1:-1])) == 1
    assert groups[1].startswith("image:")


def test_a_corrected_group_counts_for_what_is_stored(stage: Stage) -> None:
    studio = stage.label_studio
    tasks = [
        studio.add_task(image_file(seed), group=group) for seed, group in ((1, 101.0), (2, ""))
    ]
    for task in tasks:
        studio.annotate(task, [])
    stage.hear_all()
    groups = [one["revision"]["group"] for one in stage.state()]
    assert groups[0] == "101"
    assert groups[1].startswith("image:")
    studio.tasks[tasks[1]]["data"]["group"] = "0101"
    # The annotations themselves are what they were.
    with open_ingest(stage.services) as ingest:
        sync_project(ingest, studio.project_id, from_start=True)
    assert [one["revision"]["group"] for one in stage.state()] == ["101", "101"]
    with stage.services.database.reading() as session:
        assert count_groups(session) == {studio.project_id: (1, 2, 0)}


def test_events_carry_no_more_than_ids(services: Services) -> None:
    from backend.corrections.events import receive
    from backend.tables import Event

    payload = {
        "action": "ANNOTATIONS_CREATED",
        "annotation": [{"id": 4, "result": []}, {"id": 5}],
        "task": [{"id": 2}, {"id": 3}],
        "project": {"id": 1, "token": "secret"},
    }
    event_id = receive(services, payload)
    with services.database.reading() as session:
        event = session.get_one(Event, event_id)
        assert (event.annotation_ids, event.task_ids, event.project_id) == ([4, 5], [2, 3], 1)
