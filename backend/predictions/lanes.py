"""Lanes: a GPU worker takes several tasks of a chunk through their steps side by side.

While the model is at work on one task, the next one's image is fetched and the last one's regions
are made and stored. A GPU has room for one task at the model, and so has a CPU whose cores a large
model fills. A small model's operators are too short to share: there each task gets a core of its
own, which answers nearly twice as many on two cores as the same cores together on one task.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from medsam3_model import MedSAM3

T = TypeVar("T")

# Pixels of the model's square input up to which its operators leave cores without work.
_SMALL_INPUT = 512
# Python's own part of the work is done by one thread at a time: more would wait for each other.
MOST_AT_MODEL = 4


class Lanes:
    """Threads that work on the tasks of a chunk, of which only so many are at the model at once.

    Args:
        at_model: how many.
    """

    def __init__(self, at_model: int) -> None:
        self._room = BoundedSemaphore(at_model)
        self._threads = ThreadPoolExecutor(
            at_model + 1, "lane", _one_core if at_model > 1 else None
        )

    @classmethod
    def for_model(cls, model: "MedSAM3") -> "Lanes":
        """As many tasks at the model as its device has room for."""
        import torch

        # Asked here, so that this thread keeps the cores that it has: an annotator's prompt comes
        # alone, and is answered by all of them.
        cores = torch.get_num_threads()
        small = model.device.type == "cpu" and model.image_size <= _SMALL_INPUT
        return cls(min(cores, MOST_AT_MODEL) if small else 1)

    @contextmanager
    def at_model(self) -> Iterator[None]:
        """Wait for room at the model, and take it for the block."""
        with self._room:
            yield

    def each(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        """Call `work` with every item, several at once; a single one in this thread.

        Raises:
            Exception: the first item's that raised one, after all have ended.
        """
        if len(items) < 2:
            for item in items:
                work(item)
            return
        begun = [self._threads.submit(work, item) for item in items]
        wait(begun)
        for future in begun:
            future.result()


def _one_core() -> None:
    import torch

    torch.set_num_threads(1)
