"""One odd annotation is quarantined by name; all others, and all later rounds, go on."""

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import pytest

from backend.corrections.sync import KEEP_EVENTS, keep_up
from backend.corrections.tables import ProjectRecord
from backend.errors import LabelStudioUnavailableError
from backend.tables import Event, Project, now
from tests.support.corrections_stage import Stage, brush, drawn, image_file, region


def announcing(side: int) -> str:
    """A PNG whose header announces a huge image, as the data URI of a bitmask."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    content += struct.pack(">I", zlib.crc32(chunk))
    return "data:image/png;base64," + base64.b64encode(content).decode()


ODD: dict[str, Mapping[str, Any]] = {
    "type is a list": {**brush("a", drawn(1)), "type": []},
    "type is an object": {**brush("a", drawn(1)), "type": {"x": 1}},
    "value is a text": {**brush("a", drawn(1)), "value": "x"},
    "labels are objects": region("a", "box", "rectanglelabels", {"rectanglelabels": [{}]}),
    "an integer of 400 digits": {**brush("a", drawn(1)), "original_width": 10**399},
    "a coordinate of 400 digits": region(
        "a",
        "box",
        "rectanglelabels",
        {"x": 10**399, "y": 1, "width": 5, "height": 5, "rotation": 0, "rectanglelabels": ["Node"]},
    ),
    "a page of 400 digits": {**brush("a", drawn(1)), "item_index": 10**399},
    "a bitmask of 65000 × 65000": region(
        "a", "brush", "brushlabels", {"imageDataURL": announcing(65000), "brushlabels": ["Tumor"]}
    ),
    "RLE of 400 digits": region(
        "a", "brush", "brushlabels", {"rle": [10**399], "brushlabels": ["Tumor"]}
    ),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_region_is_quarantined_and_the_cursor_goes_on(
    stage: Stage, odd: Mapping[str, Any]
) -> None:
    studio = stage.label_studio
    first = studio.annotate(studio.add_task(image_file()), [dict(odd)])
    studio.annotate(studio.add_task(image_file(1)), [brush("b", drawn(2))])
    report = stage.sync()
    assert (report.revisions, report.quarantined, report.failed) == (1, 1, 0)
    states = {one["annotation"]: one["state"] for one in stage.state()}
    assert states.pop(first) == "quarantined"
    assert list(states.values()) == ["valid"]
    with stage.services.database.reading() as session:
        assert session.get_one(ProjectRecord, studio.project_id).tasks_changed_until is not None


@pytest.mark.parametrize(
    "address", ["http://[::1/x.png", "http://\x00/x.png", "//", "http://a:b/c"]
)
def test_an_odd_address_is_quarantined(stage: Stage, task: int, address: str) -> None:
    studio = stage.label_studio
    studio.tasks[task]["data"]["image"] = address
    studio.annotate(task, [brush("a", drawn(1))])
    studio.annotate(studio.add_task(image_file(1)), [brush("b", drawn(2))])
    report = stage.sync()
    assert (report.revisions, report.quarantined, report.failed) == (1, 1, 0)


def test_an_event_about_an_odd_annotation_is_dealt_with(stage: Stage, task: int) -> None:
    stage.label_studio.annotate(task, [dict(ODD["type is a list"])])
    stage.hear_all()
    assert stage.one()["state"] == "quarantined"


@pytest.mark.parametrize("trouble", ["Label Studio is away", "its answer is odd"])
def test_what_is_past_its_time_is_removed_whatever_a_sync_meets(
    stage: Stage, task: int, trouble: str
) -> None:
    old = Event(action="X", task_ids=[], annotation_ids=[], state="done")
    old.finished_at = now() - 2 * KEEP_EVENTS
    with stage.services.database.session() as session:
        session.add_all([Project(id=stage.label_studio.project_id), old])
    if trouble == "its answer is odd":
        stage.label_studio.tasks[task]["updated_at"] = "soon"
        keep_up(stage.services)
    else:
        stage.label_studio.down = True
        with pytest.raises(LabelStudioUnavailableError):
            keep_up(stage.services)
    with stage.services.database.reading() as session:
        assert session.get(Event, old.id) is None
