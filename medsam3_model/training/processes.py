"""Groups of processes that train one detector together: `torchrun --nproc-per-node 2 ...`.

Each takes its share of a step's images; gradients are added up, so all hold the same weights. A
single process is the group of one, for which nothing is exchanged.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """This process's place in the group: `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.rank == 0

    def mine(self, items: Sequence[Any]) -> list[tuple[int, Any]]:
        """This process's share of `items`, each with its position."""
        return list(enumerate(items))[self.rank :: self.count]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes; `values` has one shape in all of them."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether it is true in one process at least; all must ask."""
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give every process the sum of all gradients; one that nobody has stays None."""
        if self.count == 1:
            return
        used = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        used = self.sum(used.to(parameters[0].device)) > 0
        for parameter, used_somewhere in zip(parameters, used.tolist(), strict=True):
            # Where a process drew no masks it lacks the mask decoder's gradients: it adds zeros,
            # since an exchange needs tensors of one shape from all.
            if used_somewhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # One exchange of everything costs less than hundreds of small ones.
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))


def joined() -> Processes:
    """The group that this process has joined; a group of one where it has not."""
    if distributed.is_available() and distributed.is_initialized():
        return Processes(distributed.get_rank(), distributed.get_world_size())
    return Processes()


@contextmanager
def join() -> Iterator[str]:
    """Join the group that torchrun's environment names, if it does.

    Yields the device that is this process's own: its GPU, else "cpu"; "auto" without torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield "auto"
        return
    on_gpu = torch.cuda.is_available()
    device = f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(device)
    # Gloo beside NCCL, because the Dice figures are gathered as objects on the CPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()
