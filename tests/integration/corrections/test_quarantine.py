"""What cannot become a correction waits, with its reason, and harms no other."""

import json

import pytest

from tests.support.corrections_stage import (
    CONFIG,
    Stage,
    brush,
    drawn,
    image_file,
    region,
)


def test_renamed_label_is_quarantined_until_it_is_back(stage: Stage, task: int) -> None:
    stage.label_studio.annotate(task, [brush("a", drawn(1), label="Cyst")])
    other = stage.label_studio.add_task(image_file(1))
    stage.label_studio.annotate(other, [brush("b", drawn(2))])
    stage.hear_all()
    stage.label_studio.set_config(CONFIG.replace("Cyst", "Zyste"))
    stage.hear_all()
    first, second = stage.state()
    assert (first["state"], first["trouble"]) == ("quarantined", "config")
    assert "'Cyst'" in first["reason"]
    assert second["state"] == "valid"
    stage.label_studio.set_config(CONFIG)
    stage.hear_all()
    assert [one["state"] for one in stage.state()] == ["valid", "valid"]


def test_annotation_of_a_replaced_config(stage: Stage, task: int) -> None:
    stage.label_studio.annotate(task, [brush("a", drawn(1))])
    stage.label_studio.set_config(CONFIG.replace("image", "picture"))
    stage.hear_all()
    assert (stage.one()["state"], stage.one()["trouble"]) == ("quarantined", "image")
    stage.label_studio.set_config(CONFIG)
    stage.hear_all()
    stage.sync()
    assert stage.one()["state"] == "valid"


BROKEN = {
    "header of another image": (brush("a", drawn(1, 10, 10)), {}, "announces"),
    "no RLE at all": (
        region("a", "brush", "brushlabels", {"rle": "x", "brushlabels": ["Tumor"]}),
        {},
        "cannot be read",
    ),
    "no size": (brush("a", drawn(1)), {"original_width": None}, "original_width"),
    "an image larger than allowed": (
        brush("a", drawn(1)),
        {"original_width": 10**6, "original_height": 10**6},
        "MEDSAM3_MAX_IMAGE_MEGAPIXELS",
    ),
    "a page that does not exist": (brush("a", drawn(1)), {"item_index": 3}, "page"),
    "drawn on an image of another size": (brush("a", drawn(1, 20, 20)), {}, "64×48"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_region_is_quarantined_alone(stage: Stage, task: int, name: str) -> None:
    broken, changes, words = BROKEN[name]
    if name == "header of another image":
        changes = {"original_width": 64, "original_height": 48}
    bad = stage.label_studio.annotate(task, [{**broken, **changes}])
    good = stage.label_studio.annotate(task, [brush("g", drawn(2))])
    stage.hear_all()
    first, second = stage.state()
    assert (first["annotation"], first["state"], first["trouble"]) == (
        bad,
        "quarantined",
        "content",
    )
    assert words in first["reason"]
    assert first["revision"] is None
    assert (second["annotation"], second["state"]) == (good, "valid")
    stage.label_studio.update(bad, result=[brush("a", drawn(3))])
    stage.hear_all()
    assert [one["state"] for one in stage.state()] == ["valid", "valid"]


def test_huge_annotation_is_quarantined_unread(stage: Stage, task: int) -> None:
    bad = stage.label_studio.annotate(task, [])
    stage.label_studio.raw_annotations[bad] = b"[" + b"0," * (25 * 2**20) + b"0]"
    good = stage.label_studio.annotate(task, [brush("g", drawn(2))])
    stage.hear_all()
    first, second = stage.state()
    assert (first["state"], first["reason"][:36]) == (
        "quarantined",
        "the annotation is larger than 32 MB:",
    )
    assert (second["annotation"], second["state"]) == (good, "valid")


def test_answer_that_is_no_annotation_is_quarantined(stage: Stage, task: int) -> None:
    bad = stage.label_studio.annotate(task, [])
    stage.label_studio.raw_annotations[bad] = json.dumps({"id": bad, "result": "x"}).encode()
    stage.hear_all()
    assert stage.one()["state"] == "quarantined"
    assert "result" in stage.one()["reason"]


def test_image_that_is_gone_quarantines_until_it_is_back(stage: Stage, task: int) -> None:
    stage.label_studio.annotate(task, [brush("a", drawn(1))])
    images = dict(stage.label_studio.images)
    stage.label_studio.images.clear()
    stage.hear_all()
    assert (stage.one()["state"], stage.one()["trouble"]) == ("quarantined", "image")
    stage.label_studio.images.update(images)
    assert stage.sync().revisions == 1
    assert stage.one()["state"] == "valid"
