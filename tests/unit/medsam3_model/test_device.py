"""Devices, precisions, threads, and what happens when memory runs out."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from medsam3_model import MedSAM3, device
from medsam3_model.errors import MedSAM3Error, ModelMemoryError


def test_auto_is_what_the_machine_has() -> None:
    found = device.resolve_device("auto")
    assert (found.type == "cuda") == torch.cuda.is_available()
    assert device.resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert device.resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert device.resolve_dtype("bf16", torch.device("cpu")) == torch.bfloat16


def test_unknown_or_absent_devices_are_refused() -> None:
    with pytest.raises(MedSAM3Error, match="use auto, cpu, cuda or mps"):
        device.resolve_device("gpu")
    with pytest.raises(MedSAM3Error, match="dtype is auto, float32 or bfloat16"):
        device.resolve_dtype("float16", torch.device("cpu"))


class Accelerator:
    """Works on at most `room` items at a time, and runs out of memory beyond."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.batches: list[int] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(len(items))
        if len(items) > self.room:
            raise torch.OutOfMemoryError("no memory")
        return [item * 10 for item in items]


def test_batch_is_halved_until_it_fits_and_stays_so() -> None:
    accelerator = Accelerator(room=3)
    assert device.in_batches(accelerator, range(10), 8) == [item * 10 for item in range(10)]
    assert accelerator.batches == [8, 4, 2, 2, 2, 2, 2]


def test_single_item_that_does_not_fit_is_a_clear_error_and_the_next_call_works() -> None:
    accelerator = Accelerator(room=0)
    with pytest.raises(ModelMemoryError, match="memory ran out on a single image"):
        device.in_batches(accelerator, [1, 2], 2)
    accelerator.room = 1
    assert device.in_batches(accelerator, [1, 2], 2) == [10, 20]


def test_other_errors_pass_through() -> None:
    def broken(items: Sequence[int]) -> list[int]:
        raise ValueError("shape")

    with pytest.raises(ValueError, match="shape"):
        device.in_batches(broken, [1], 1)


def test_threads_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(device.available_cpus() + 3)
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        assert device.limit_threads() == device.available_cpus() + 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert device.limit_threads() == device.available_cpus()
    finally:
        torch.set_num_threads(before)


def test_a_compiled_encoder_says_the_same_under_the_same_names() -> None:
    model = MedSAM3.from_pretrained("tiny")
    rgb = np.random.default_rng(3).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    plain, names = model.encode_image(rgb), list(model.model.state_dict())
    device.compile_encoder(model.model, backend="aot_eager")  # needs no C++ compiler
    compiled = model.encode_image(rgb)
    torch._dynamo.reset()
    for expected, found in zip(plain.fpn_hidden_states, compiled.fpn_hidden_states, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert list(model.model.state_dict()) == names
