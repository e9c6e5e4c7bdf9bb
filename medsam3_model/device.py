"""The device: where and in which precision the model runs, and what is done without memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from medsam3_model.errors import MedSAM3Error, ModelMemoryError

if TYPE_CHECKING:
    from transformers import Sam3Model

Item = TypeVar("Item")
Result = TypeVar("Result")

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def resolve_device(device: str | torch.device) -> torch.device:
    """The device for a name; "auto" takes CUDA, else Apple's MPS, else the CPU.

    Raises MedSAM3Error where the name is unknown or this machine has no such device.
    """
    if isinstance(device, str) and device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise MedSAM3Error(f"{device!r} is not a device: use auto, cpu, cuda or mps") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise MedSAM3Error("this machine has no CUDA device that torch can use: take device=cpu")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise MedSAM3Error("this machine has no MPS device: take device=cpu")
    return resolved


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The computing precision for a name; "auto" is bfloat16 on CUDA, float32 elsewhere.

    Raises MedSAM3Error for another precision than float32 and bfloat16.
    """
    if isinstance(dtype, str):
        if dtype == "auto":
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        dtype = _DTYPES.get(dtype, torch.int8)
    if dtype not in (torch.float32, torch.bfloat16):
        raise MedSAM3Error("dtype is auto, float32 or bfloat16")
    return dtype


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision for bfloat16, nothing for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, cut by a container's CPU quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else (os.cpu_count() or 1)
    quota = Path("/sys/fs/cgroup/cpu.max")
    with contextlib.suppress(OSError, ValueError):
        limit, period = quota.read_text(encoding="ascii").split()
        if limit != "max":
            cpus = min(cpus, max(1, round(int(limit) / int(period))))
    return cpus


def limit_threads() -> int:
    """Use no more threads than `available_cpus`, unless OMP_NUM_THREADS says otherwise.

    torch counts the machine's cores, not a container's share of them: with more threads than
    CPUs they wait for one another.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cpus = available_cpus()
        if torch.get_num_threads() > cpus:
            torch.set_num_threads(cpus)
    return torch.get_num_threads()


def keep_freed_memory() -> None:
    """Have this process keep up to half a gigabyte of what it frees, instead of handing it back.

    A step frees tensors of some megabytes and needs as many again at once; glibc returns each to
    the system, which then clears every page again. Elsewhere (no glibc) nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the highest that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def compile_encoder(model: Sam3Model, backend: str = "inductor") -> None:
    """Have torch compile the image encoder, in place; the first image of a size pays for it.

    The parameters keep their names, and detectors that share the encoder share its compiled form.

    Args:
        model: the model; the detector stays as it is, its prompts come in too many shapes.
        backend: of `torch.compile`; "inductor" needs a C++ compiler, or CUDA.
    """
    model.vision_encoder.backbone.compile(backend=backend)


def in_batches(
    function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], batch_size: int
) -> list[Result]:
    """`function` over `items` in batches, halving the batch each time that memory runs out.

    Args:
        function: takes a batch, gives one result per item.
        items: what to work through.
        batch_size: the first batch size tried.

    Raises:
        ModelMemoryError: memory runs out even for one item; the model stays usable.
    """
    results: list[Result] = []
    while len(results) < len(items):
        batch = items[len(results) : len(results) + batch_size]
        try:
            results.extend(function(batch))
            continue
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise ModelMemoryError(
                    "memory ran out on a single image: use dtype=bfloat16, a smaller model, or "
                    "device=cpu"
                ) from error
            batch_size = max(1, len(batch) // 2)
        # Outside the handler, whose traceback would keep the failed batch's tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return results
