"""Consensus of annotators, the order of diversity, event files, schedules."""

import struct
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from backend.predictions.acquisition import k_center_order, uncertainty
from backend.training.consensus import majority, staple
from backend.training.triggers import next_time
from medsam3_model.training.event_files import EventFile, crc32c
from medsam3_model.types import Detections
from tests.support.masks import dice


def disc(side: int = 64, radius: float = 18) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return (rows - 32) ** 2 + (columns - 30) ** 2 < radius**2


def rater(truth: np.ndarray, sensitivity: float, specificity: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed).random(truth.shape)
    return np.where(truth, random < sensitivity, random > specificity)


def test_majority_needs_more_than_half() -> None:
    masks = [np.array([[1, 1, 0, 1]], bool), np.array([[1, 0, 0, 1]], bool)]
    assert majority(masks).tolist() == [[True, False, False, True]]
    masks.append(np.array([[0, 1, 0, 1]], bool))
    assert majority(masks).tolist() == [[True, True, False, True]]


def test_staple_believes_the_reliable_raters() -> None:
    truth = disc()
    good = [rater(truth, 0.95, 0.97, seed) for seed in range(2)]
    bad = [rater(truth, 0.55, 0.6, seed) for seed in range(10, 13)]
    found = staple([*good, *bad])
    assert dice(found, truth) > 0.9
    assert dice(found, truth) > dice(majority([*good, *bad]), truth) + 0.05


def test_staple_of_agreeing_raters_is_what_they_say() -> None:
    assert np.array_equal(staple([disc()]), disc())
    assert np.array_equal(staple([disc(), disc()]), disc())
    nothing = np.zeros((4, 4), bool)
    assert not staple([nothing, nothing]).any()


def test_k_center_goes_to_the_farthest_each_time() -> None:
    points = np.array([[0.0], [0.1], [5.0], [11.0]], np.float32)
    assert k_center_order(points, np.array([[0.0]], np.float32))[:2] == [3, 2]
    order = k_center_order(points)
    assert sorted(order) == [0, 1, 2, 3]
    assert order[1] == 3


def test_k_center_orders_copies_too() -> None:
    assert sorted(k_center_order(np.ones((5, 3), np.float32))) == [0, 1, 2, 3, 4]


def detections(presence: float, scores: list[float], semantic: float) -> Detections:
    count = len(scores)
    return Detections(
        masks=np.ones((count, 4, 4), bool),
        boxes=np.zeros((count, 4), np.float32),
        scores=np.array(scores, np.float32),
        presence=presence,
        semantic=np.full((4, 4), semantic, np.float32),
    )


def test_uncertainty_is_high_where_the_model_hesitates() -> None:
    assert uncertainty(detections(0.5, [0.5], 0.5)) == pytest.approx(1, abs=1e-3)
    assert uncertainty(detections(1.0, [1.0], 1.0)) == pytest.approx(0, abs=1e-3)
    assert uncertainty(detections(0.0, [], 0.0)) == pytest.approx(0, abs=1e-3)
    assert uncertainty(detections(0.9, [0.6], 0.8)) > uncertainty(detections(0.9, [0.9], 0.8))


def test_crc32c_has_the_values_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


def test_event_files_hold_what_was_added(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.add(300, {"loss": 1.5})
    events.close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    content, records = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        records.append(content[12 : 12 + length])
        content = content[16 + length :]
    assert len(records) == 2
    assert b"brain.Event:2" in records[0]
    assert b"loss" in records[1]
    assert struct.pack("<f", 1.5) in records[1]
    assert b"\x10\xac\x02" in records[1]  # step 300 as a varint in field 2


def test_a_schedule_is_a_cron_line() -> None:
    moment = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
    assert next_time("0 3 * * *", moment) == datetime(2026, 3, 3, 3, 0, tzinfo=UTC)
