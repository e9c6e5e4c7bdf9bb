"""Training in processes that share the weights: the loop of both pre-trainings.

Each process updates the weights without waiting for the others (Hogwild, Niu et al. 2011): on a
machine that is busy with other things nobody waits for the slowest. The first process also
averages, reports, validates and saves; a run that was stopped goes on from its last checkpoint.
"""

import argparse
import json
import multiprocessing
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from medsam3_model.checkpoints.weight_files import replacing
from medsam3_model.device import keep_freed_memory

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

_CHECKPOINT_SECONDS = 180.0
_LOG_EVERY = 50


class SharedTraining(ABC):
    """The state of a run, and the loop that takes its steps.

    Attributes:
        out: folder of `checkpoint.pt` and `log.jsonl`.
        step: the step that this process takes, from 0.
        average: the averaged weights by name, the ones that are written out.
        averaged: how many steps they are the average of.
    """

    average: dict[str, Tensor]
    end: Callable[[], None]

    def __init__(self, out: Path, *, workers: int, validate_every: int, decay: float) -> None:
        """Prepare the loop.

        Args:
            out: see the class.
            workers: processes, one CPU core each.
            validate_every: steps between validations.
            decay: of the average, a step.
        """
        self.out, self.step, self.averaged = out, 0, 0
        self._workers, self._validate_every, self._decay = workers, validate_every, decay

    @abstractmethod
    def one_step(self) -> dict[str, float]:
        """Update the shared weights once; the terms of the loss, for the log."""

    @abstractmethod
    def validate(self) -> Mapping[str, object]:
        """Figures of the averaged weights, for the log."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The weights that are trained, by name."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What the checkpoint keeps beside step and average."""

    def place(self) -> dict[str, object]:
        """Where the run is, for the log."""
        return {"step": self.step}

    def take_steps(self, steps: int) -> None:
        """This process and its forks take steps until there were so many, then it is saved."""
        processes = multiprocessing.get_context("fork")
        counter = processes.Value("q", self.step)
        self.end = partial(self._end, counter, steps)
        forks = [
            processes.Process(target=self._work, args=(counter, steps, False), daemon=True)
            for _ in range(self._workers - 1)
        ]
        for fork in forks:
            fork.start()
        self._work(counter, steps, True)
        for fork in forks:
            fork.join()
        self.save()

    def _end(self, counter: "Synchronized[int]", steps: int) -> None:
        """No process takes another step."""
        with counter.get_lock():
            counter.value = max(counter.value, steps)

    def _work(self, counter: "Synchronized[int]", steps: int, leads: bool) -> None:
        saved = started = time.monotonic()
        rows: list[dict[str, float]] = []
        reported = validated = self.step
        while True:
            # The counter is all that the processes agree on. The weights are shared and written
            # without a lock: an update that is half overwritten costs less than waiting for it.
            with counter.get_lock():
                self.step = counter.value
                if self.step >= steps:
                    return
                counter.value += 1
            terms = self.one_step()
            if not leads:
                continue
            self._average()
            rows.append(terms)
            now = time.monotonic()
            if self.step - reported >= _LOG_EVERY:
                pace = (now - started) / (self.step - reported)
                self.log({"seconds_per_step": round(pace, 3), **_means(rows)})
                reported, started, rows = self.step, now, []
            if self.step - validated >= self._validate_every:
                self.log({"validation": self.validate()})
                validated = self.step
            if now - saved > _CHECKPOINT_SECONDS:
                self.save()
                saved = now

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards the current ones."""
        self.averaged += 1
        # Short at first: the starting weights should not linger in the average.
        decay = min(self._decay, (1 + self.averaged) / (10 + self.averaged))
        names = list(self.average)
        current = self.weights()
        torch._foreach_lerp_(
            [self.average[name] for name in names], [current[name] for name in names], 1 - decay
        )

    def log(self, values: Mapping[str, object]) -> None:
        """Write one line of JSON to the terminal and to the log."""
        line = json.dumps(self.place() | {"time": time.strftime("%H:%M:%S")} | dict(values))
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self) -> None:
        """Write the checkpoint, which is there whole or as it was before."""
        state = {"step": self.step, "averaged": self.averaged, "average": self.average}
        with replacing(self.out / "checkpoint.pt") as unfinished:
            torch.save(state | self.state(), unfinished)

    def saved(self) -> dict[str, Any] | None:
        """The checkpoint of a run that was stopped, with step and average taken over; else None."""
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.step, self.averaged = state["step"], state["averaged"]
        self.average = state["average"]
        return state


class RunLength:
    """How much of a run is over: of its steps or of its minutes, whichever is further.

    Attributes:
        seconds: that the run has taken, with those before it was stopped.
    """

    def __init__(self, steps: int, minutes: float) -> None:
        self._steps, self._minutes = steps, minutes
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def go_on(self, seconds: float) -> None:
        """The run has taken so many seconds already."""
        self._begun -= seconds

    def share(self, step: int) -> float:
        """From 0 to 1 and beyond."""
        return max(step / self._steps, self.seconds / 60 / self._minutes)


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict, in memory of its own."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def part_of(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of one part of several, under the part's own names."""
    prefix = name + "."
    return {
        key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
    }


def run_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every pre-training has."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint, log and bundle")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="SOURCE=FOLDER",
        help="a data set to train on (isic2017, kvasir_seg, ...); repeat for each",
    )
    return parser


def prepare(options: argparse.Namespace) -> dict[str, Path]:
    """Make the folder of a run and set torch up for it; the folders of the data by source."""
    keep_freed_memory()
    torch.set_num_threads(1)  # one process per core; forks must not inherit a thread pool
    options.out.mkdir(parents=True, exist_ok=True)
    pairs = (entry.partition("=") for entry in options.data)
    return {name: Path(folder) for name, _, folder in pairs}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each term over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: round(float(np.mean([row[name] for row in rows if name in row])), 5) for name in names
    }
