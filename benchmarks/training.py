"""`python -m benchmarks.training`: how fast networks are fitted, in one run on one machine."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.machine import machine, versions
from benchmarks.training_speed import bare, comparison, scale, sections
from benchmarks.training_speed.page import merged

TITLES = {
    "stacked": "Stacked training against the usual loop",
    "default": "The default network against its matrix products",
    "scale": "Rows, time and memory",
    "profile": "Where the time goes",
}
"""The parts, and the titles of their sections."""
ROWS = (10_000, 100_000, 1_000_000)
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
    file = options.out / "training.md"
    for part in options.parts:
        facts = _facts(options.threads)
        text = f"{facts}\n\n{parts[part]()}"
        print(f"## {TITLES[part]}\n{text}\n", flush=True)
        page = file.read_text(encoding="utf-8") if file.exists() else ""
        file.write_text(merged(page, {TITLES[part]: text}, order=list(TITLES.values())), encoding="utf-8")
    return 0


def _facts(threads: int) -> str:
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    libraries = versions(("errorbar", "torch", "numpy", "polars", "onnxruntime"))
    return f"{machine()}; {threads} threads{load}; {libraries}; {datetime.now(UTC):%Y-%m-%d}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument(
        "--parts", type=_parts, default=list(TITLES), metavar="P1,P2", help=f"of {', '.join(TITLES)}; default: all"
    )
    parser.add_argument("--threads", type=_count, default=torch.get_num_threads(), metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--rounds", type=_count, default=5, metavar="N", help="of interleaved measurements; default: %(default)s"
    )
    parser.add_argument(
        "--rows", type=_sizes, default=ROWS, metavar="N1,N2", help="tables of scale; default: 10000,100000,1000000"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="where scale trains; default: cpu")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR", help="default: %(default)s"
    )
    return parser


def _parts(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in TITLES]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no part {unknown[0]!r}; there are {', '.join(TITLES)}")
    return list(dict.fromkeys(text.split(",")))


def _sizes(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
