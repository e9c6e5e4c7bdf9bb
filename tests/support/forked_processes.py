"""Processes that are forked from one that has imported everything, so that they start quickly."""

import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from signal import SIGKILL
from typing import Any

# Imported once and forked from then on: a worker starts in a fraction of a second.
PRELOADED = [
    "alembic.command",
    "backend.cli.main",
    "backend.predictions.inference",
    "backend.training.trainer",
    "backend.web.app",
    # What a worker imports when it loads its model, and an ingest worker when it stores a mask.
    "medsam3_model.checkpoints.loading",
    "medsam3_model.embeddings.embedding_cache",
    "medsam3_model.predictor",
    "medsam3_model.training.fine_tuning",
    "s3fs",
    __name__,
]

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(PRELOADED)


def fork(
    environment: Mapping[str, str], log: Path, command: Callable[..., Any], *args: Any
) -> ForkServerProcess:
    """Start `command(*args)` in a process and a process group of its own; `log` has its output."""
    process = _processes.Process(target=_run, args=(environment, log, command, *args))
    process.start()
    return process


def kill(process: ForkServerProcess) -> None:
    """SIGKILL to a process and to those that it started."""
    assert process.pid is not None
    # Before it has left our process group, it alone can be killed.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, SIGKILL)
    process.kill()
    process.join()


def medsam3(pauses: Mapping[str, float], *arguments: str) -> None:
    """The command `medsam3`, with other values for the product's pauses (module and name)."""
    from backend.cli.main import main

    for name, seconds in pauses.items():
        module, _, constant = name.rpartition(".")
        assert hasattr(importlib.import_module(module), constant), name
        setattr(importlib.import_module(module), constant, seconds)
    sys.argv = ["medsam3", "-v", *arguments]
    main()


def _run(
    environment: Mapping[str, str], log: Path, command: Callable[..., Any], *args: Any
) -> None:
    """In the forked process: leave the test's process group, write to `log`, do the work."""
    os.setsid()
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.update(environment)
    command(*args)
