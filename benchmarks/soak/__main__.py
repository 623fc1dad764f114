"""`python -m benchmarks.soak`: what the service does under load for long, while the worst happens to it.

Every part starts a service of its own on a free port, puts clients on it and counts what must not be: an answer
that is wrong, a connection that breaks. The status is 1 where there is any.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import facts
from benchmarks.options import some_of
from benchmarks.page import tell
from benchmarks.soak.parts import PARTS

TITLE = "# The service under load, while the worst happens to it"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts asked for, put their sections into DIR/soak.md, print them; 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument(
        "--parts", type=some_of(PARTS, "part"), default=list(PARTS), metavar="P,P", help=f"of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--minutes", type=float, default=10, help="of part publishing")
    parser.add_argument("--every", type=float, default=5, metavar="SECONDS", help="a version is published")
    parser.add_argument("--connections", type=int, default=200, help="of part publishing")
    parser.add_argument("--seconds", type=float, default=10, help="of each load of part overload")
    parser.add_argument("--times", type=int, default=10, help="of SIGTERM; half as many of kill -9")
    parser.add_argument("--kills", type=int, default=100, help="of publishers, and of trainers")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of part connection")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", metavar="DIR")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    status = False
    for name in options.parts:
        title, part = PARTS[name]
        with tempfile.TemporaryDirectory() as folder:
            text, wrong = asyncio.run(part(Path(folder), options))
        verdict = "Nothing was wrong." if not wrong else f"WRONG, {len(wrong)} times: " + "; ".join(dict.fromkeys(wrong[:5]))
        section = f"{facts(('errorbar', 'uvicorn', 'onnxruntime'))}\n\n{text}\n\n{verdict}"
        tell(options.out / "soak.md", title, section, order=[one for one, _ in PARTS.values()], title=TITLE)
        status = status or bool(wrong)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
