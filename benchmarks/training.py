"""`python -m benchmarks.training`: how fast networks are fitted, in one run on one machine."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.machine import facts, load_before
from benchmarks.options import count, counts, some_of
from benchmarks.page import tell
from benchmarks.training_speed import bare, comparison, scale, sections

TITLES = {
    "stacked": "Stacked training against the usual loop",
    "default": "The default network against its matrix products",
    "scale": "Rows, time and memory",
    "profile": "Where the time goes",
}
"""The parts, and the titles of their sections."""
ROWS = (10_000, 100_000, 1_000_000)
LIBRARIES = ("errorbar", "torch", "numpy", "polars", "onnxruntime")
UPDATES = 160
"""Of the default network, for `default` and `profile`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts asked for, put their sections into DIR/training.md, print them; 2 for a wrong argument."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    parts: dict[str, Callable[[], str]] = {
        "stacked": lambda: comparison.section(comparison.Amount(rounds=options.rounds)),
        "default": lambda: bare.section(updates=UPDATES, count=options.rounds),
        "scale": lambda: scale.section(options.rows, device=options.device, threads=options.threads),
        "profile": lambda: sections.section(updates=UPDATES),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        made_on = facts(LIBRARIES, also=f"; {options.threads} threads{load_before()}")
        text = f"{made_on}\n\n{parts[part]()}"
        tell(options.out / "training.md", TITLES[part], text, order=list(TITLES.values()), title="# Training speed")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument(
        "--parts",
        type=some_of(TITLES, "part"),
        default=list(TITLES),
        metavar="P1,P2",
        help=f"of {', '.join(TITLES)}; default: all",
    )
    parser.add_argument("--threads", type=count, default=torch.get_num_threads(), metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=count, default=5, metavar="N", help="of interleaved measurements; default: %(default)s"
    )
    parser.add_argument(
        "--rows", type=counts, default=ROWS, metavar="N1,N2", help="tables of scale; default: 10000,100000,1000000"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="where scale trains; default: cpu")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR", help="default: %(default)s"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
