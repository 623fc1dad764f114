"""`python -m benchmarks.serving.growth`: how latency, memory and throughput of errorbar grow with what is asked of it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import facts, load_before
from benchmarks.options import add_cores, check_wrk, count, counts, some_of
from benchmarks.page import tell
from benchmarks.serving.candidates import LIBRARIES
from benchmarks.serving.parts import MOST_COVERAGES, MOST_ROWS, PARTS
from benchmarks.serving.processes import exit_on_sigterm

TITLE = "# Growth of serving"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts asked for, put their sections into DIR/growth.md, print them; 2 for a wrong argument."""
    options = parsed(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    order = [title for title, _ in PARTS.values()]
    for part in options.parts:
        title, measure = PARTS[part]
        made_on = facts(LIBRARIES, also=load_before())
        tell(options.out / "growth.md", title, f"{made_on}\n\n{measure(options)}", order=order, title=TITLE)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; ends the program with 2 for a wrong one, and where there is no wrk."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.growth", description=__doc__)
    parser.add_argument(
        "--parts", type=some_of(PARTS, "part"), default=list(PARTS), metavar="P,P", help=f"of {', '.join(PARTS)}; default: all"
    )
    for name, default, what in (
        ("rows", (1, 10, 100, 1_000, 10_000, 100_000), "of a request, for part rows"),
        ("members", (1, 2, 4, 8, 16, 32, 64), "networks of an ensemble, for part members"),
        ("coverages", (1, 2, 5, 10, 20, 50), "of a request, for part coverages"),
        ("models", (1, 10, 100, 1_000), "loaded, for part models"),
        ("workers", (1, 2), "processes, for part workers"),
    ):
        shown = ",".join(map(str, default))
        parser.add_argument(f"--{name}", type=counts, default=list(default), metavar="N,N", help=f"{what}; default: {shown}")
    parser.add_argument(
        "--large",
        type=count,
        default=MOST_ROWS,
        metavar="N",
        help="rows of the requests beside small ones; default: %(default)s",
    )
    parser.add_argument("--seconds", type=count, default=5, metavar="N", help="of a load; default: %(default)s")
    parser.add_argument(
        "--rounds", type=count, default=3, metavar="N", help="of parts beside, workers and collector; default: %(default)s"
    )
    add_cores(parser)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results", metavar="DIR", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    if max(*options.rows, options.large) > MOST_ROWS:
        parser.error(f"a request has at most {MOST_ROWS} rows")
    if max(options.coverages) > MOST_COVERAGES:
        parser.error(f"a request has at most {MOST_COVERAGES} coverages here")
    check_wrk(parser)
    return options


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
