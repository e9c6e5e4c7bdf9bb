"""The memory that workers and their caches may use, and how it shows that it is used up."""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from backend.errors import SettingsError
from backend.settings import Settings

log = logging.getLogger(__name__)

# For errors of a task or annotation.
OUT_OF_MEMORY = (
    "it needs more memory than a worker may use: make the image smaller, draw fewer regions, or "
    "raise MEDSAM3_WORKER_MEMORY_MB"
)
# What libraries say that have no MemoryError: torch, OpenCV, Python's threads.
_SIGNS = ("can't allocate memory", "Insufficient memory", "Cannot allocate memory", "new thread")


@dataclass(frozen=True)
class CacheLimits:
    """Memory for caches in each worker, in bytes.

    Attributes:
        embeddings: for image embeddings; an eighth of what there is, at most 2 GB, unless set.
        images: for fetched images; a 32nd of what there is, at most 512 MB, unless set.
        available: the memory that the machine has, or that its container may use.
    """

    embeddings: int
    images: int
    available: int


def cache_limits(settings: Settings) -> CacheLimits:
    """What the settings say; where they say nothing, what suits the machine."""
    available = available_memory()
    chosen = min(2048 * 2**20, available // 8)
    embeddings_mb, images_mb = settings.embedding_memory_mb, settings.image_cache_mb
    return CacheLimits(
        embeddings=chosen if embeddings_mb is None else embeddings_mb * 2**20,
        images=chosen // 4 if images_mb is None else images_mb * 2**20,
        available=available,
    )


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that the machine has, or those that its container may use, if less.

    A container's limit is in the files of control groups, version 2 or 1, of this process's group
    or of one above it.

    Args:
        root: below which `proc` and `sys` are.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):
            try:
                limits.append(int((top / folder / name).read_text()))
            except (OSError, ValueError):
                continue  # not there, as in a container that sees its own group only; or `max`
    return min(limits)


def limit_memory(settings: Settings) -> None:
    """Have allocations of this process fail beyond `worker_memory_mb`; Linux only.

    Counted is what the process may write to and shares with nobody (RLIMIT_DATA), used or not: 100
    to 300 MB more than what is resident. Its address space (RLIMIT_AS) would say nothing: torch and
    CUDA reserve many gigabytes that nobody uses.

    Raises:
        SettingsError: the process takes more than that already.
    """
    limit = settings.worker_memory_mb * 2**20
    if not limit or sys.platform != "linux":
        return
    import resource

    status = Path("/proc/self/status").read_text()
    used = int(status.partition("VmData:")[2].split()[0]) * 1024
    if used >= limit:
        raise SettingsError(
            f"this worker takes {used >> 20} MB of memory before its first job: raise "
            f"MEDSAM3_WORKER_MEMORY_MB, which is {settings.worker_memory_mb}"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    log.info("this worker may use %d MB of memory", limit >> 20)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one behind it, says that memory was refused."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, MemoryError) or any(sign in str(behind) for sign in _SIGNS):
            return True
        behind = behind.__cause__ or behind.__context__
    return False
