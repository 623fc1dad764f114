"""Arguments that both programs take."""

import argparse
import os


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def counts(text: str) -> list[int]:
    """Several of them."""
    return [count(part) for part in text.split(",")]


def add_cores(parser: argparse.ArgumentParser) -> None:
    """`--server-core` and `--load-core`: by default the first and the last core that this process may use."""
    cores = sorted(os.sched_getaffinity(0))
    parser.add_argument("--server-core", type=int, default=cores[0], metavar="N", help="default: %(default)s")
    parser.add_argument("--load-core", type=int, default=cores[-1], metavar="N", help="default: %(default)s")
