"""`make bench`: measures, and prints one JSON object as its last line. It never judges."""

import argparse
import json
import sys
from collections.abc import Callable

from tests.perf import (
    bench_agent,
    bench_console,
    bench_corrections,
    bench_fine_tuning,
    bench_model,
    bench_rle,
    bench_training_loop,
    bench_volumes,
    bench_web,
)

PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "rle": bench_rle.measure,
    "model": bench_model.measure,
    "web": bench_web.measure,
    "corrections": bench_corrections.measure,
    "console": bench_console.measure,
    "fine_tuning": bench_fine_tuning.measure,
    "volumes": bench_volumes.measure,
    "agent": bench_agent.measure,
    "training_loop": bench_training_loop.measure,
}


def main() -> None:
    """Measure every part, or those named on the command line."""
    parser = argparse.ArgumentParser(
        description="Measure, and print one JSON object as the last line.",
        epilog="Example: python -m tests.perf.bench web model",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    named = parser.parse_args().parts
    if unknown := [name for name in named if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    figures: dict[str, float] = {}
    for name in named or PARTS:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        part = PARTS[name]()
        figures |= part
        print(json.dumps(part), file=sys.stderr, flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
