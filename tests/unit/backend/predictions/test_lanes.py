"""Several tasks side by side: the same answers, room at the model for so many, no error lost."""

import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch

from backend.predictions.lanes import MOST_AT_MODEL, Lanes
from medsam3_model import MedSAM3
from medsam3_model.pretraining.phantoms.phantoms import phantom
from medsam3_model.types import Detections


def test_a_small_model_on_a_cpu_answers_several_tasks_at_once_and_just_the_same() -> None:
    model = MedSAM3.from_pretrained("tiny", device="cpu")
    text = model.encode_text(["optic disc", "optic cup"])
    images = [phantom("fundus", seed).image for seed in range(6)]
    found: dict[int, list[Detections]] = {}

    def answer(index: int) -> None:
        found[index] = model.detect_all(model.encode_image(images[index]), text)

    for index in range(len(images)):
        answer(index)
    alone = dict(found)
    found.clear()
    cores = torch.get_num_threads()
    Lanes.for_model(model).each(answer, range(len(images)))
    assert torch.get_num_threads() == cores, "a prompt has all cores"
    for index, answers in alone.items():
        for one, other in zip(answers, found[index], strict=True):
            assert np.array_equal(one.masks, other.masks)
            assert np.allclose(one.scores, other.scores, atol=1e-5)


@pytest.mark.parametrize("room", [1, 2, MOST_AT_MODEL])
def test_so_many_are_at_the_model_and_one_beside_them(room: int) -> None:
    lanes, lock = Lanes(room), threading.Lock()
    inside, begun, most = Counter[str](), Counter[str](), Counter[str]()

    def step(where: str) -> None:
        with lock:
            inside[where] += 1
            most[where] = max(most[where], inside[where])
        time.sleep(0.01)
        with lock:
            inside[where] -= 1

    def work(item: int) -> None:
        with lock:
            begun["task"] += 1
            most["begun"] = max(most["begun"], begun["task"])
        step("fetching")
        with lanes.at_model():
            step("model")
        with lock:
            begun["task"] -= 1

    lanes.each(work, range(12))
    assert most["model"] <= room
    assert room < most["begun"] <= room + 1


def test_an_error_is_raised_once_all_have_ended() -> None:
    done = []

    def work(item: int) -> None:
        if item == 1:
            raise ValueError("the second one")
        time.sleep(0.01)
        done.append(item)

    with pytest.raises(ValueError, match="the second one"):
        Lanes(1).each(work, range(5))
    assert sorted(done) == [0, 2, 3, 4]


def test_a_single_task_stays_in_its_thread() -> None:
    threads = []
    Lanes(2).each(lambda _: threads.append(threading.current_thread()), [0])
    assert threads == [threading.current_thread()]
