"""Arguments that several programs take."""

import argparse
import os
import shutil
from collections.abc import Callable, Collection


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def counts(text: str) -> list[int]:
    """Several of them."""
    return [count(part) for part in text.split(",")]


def some_of(names: Collection[str], what: str) -> Callable[[str], list[str]]:
    """Several of these names with commas between; `what` they are, for the sentence about another."""

    def chosen(text: str) -> list[str]:
        found = list(dict.fromkeys(text.split(",")))
        unknown = [name for name in found if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"there is no {what} {unknown[0]!r}; there are {', '.join(names)}")
        return found

    return chosen


def check_wrk(parser: argparse.ArgumentParser) -> None:
    """End the program where there is no wrk."""
    if shutil.which("wrk") is None:
        parser.error("wrk, which makes the load, is not installed (apt install wrk)")


def add_cores(parser: argparse.ArgumentParser) -> None:
    """`--server-core` and `--load-core`: by default the first and the last core that this process may use."""
    cores = sorted(os.sched_getaffinity(0))
    parser.add_argument("--server-core", type=int, default=cores[0], metavar="N", help="default: %(default)s")
    parser.add_argument("--load-core", type=int, default=cores[-1], metavar="N", help="default: %(default)s")
