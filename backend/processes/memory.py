"""The memory that a worker may use, and how it shows that it is used up."""

import logging
import sys
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
