"""`python -m benchmarks.serving.growth`: how latency, memory and throughput of errorbar grow with what is asked of it."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import machine, versions
from benchmarks.serving.options import add_cores, count, counts
from benchmarks.serving.parts import MOST_COVERAGES, MOST_ROWS, PARTS
from benchmarks.serving.processes import exit_on_sigterm
from benchmarks.training_speed.page import merged

TITLE = "# Growth of serving"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts asked for, put their sections into DIR/growth.md, print them; 2 for a wrong argument."""
    options = parsed(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "growth.md"
    order = [title for title, _ in PARTS.values()]
    for part in options.parts:
        title, measure = PARTS[part]
        facts = _facts()
        text = f"{facts}\n\n{measure(options)}"
        print(f"## {title}\n{text}\n", flush=True)
        page = file.read_text(encoding="utf-8") if file.exists() else ""
        file.write_text(merged(page, {title: text}, order=order, title=TITLE), encoding="utf-8")
    return 0


def _facts() -> str:
    libraries = versions(("errorbar", "fastapi", "uvicorn", "onnxruntime", "orjson"))
    return f"{machine()}, load {os.getloadavg()[0]:.1f} before; {libraries}; {datetime.now(UTC):%Y-%m-%d}."


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; ends the program with 2 for a wrong one, and where there is no wrk."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.growth", description=__doc__)
    parser.add_argument("--parts", type=_parts, default=list(PARTS), metavar="P,P", help=f"of {', '.join(PARTS)}; default: all")
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
        "--rounds", type=count, default=3, metavar="N", help="of parts beside and workers; default: %(default)s"
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
    if shutil.which("wrk") is None:
        parser.error("wrk, which makes the load, is not installed (apt install wrk)")
    return options


def _parts(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    return list(dict.fromkeys(text.split(",")))


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
