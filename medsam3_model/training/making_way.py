"""Making way within a step: between two layers training can stop for a moment.

A step takes as long as an annotator's whole prompt, so waiting between steps alone would make a
prompt share the device for up to a step.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

EVERY_S = 0.02


@contextmanager
def between_layers(layers: Iterable[nn.Module], make_way: Callable[[], object]) -> Iterator[None]:
    """Have `make_way` called between layers, forward and backward, every `EVERY_S` or so.

    Args:
        layers: modules that answer with a tensor.
        make_way: returns when training may go on; what it raises ends the step.
    """
    last = time.monotonic()

    def glance(*_: object) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY_S:
            make_way()
            last = time.monotonic()

    def after(_: nn.Module, __: object, output: object) -> None:
        glance()
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(glance)

    handles = [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
