"""`python -m benchmarks.serving`: requests per second and latency of each server, in turn, on one core; wrk on another."""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import httpx
import numpy as np

from benchmarks.machine import facts, load_before
from benchmarks.options import add_cores, check_wrk, count, counts, some_of
from benchmarks.serving import environments
from benchmarks.serving.candidates import CANDIDATES, FEATURES, LIBRARIES, PEERS, Candidate, Values, model_file, started
from benchmarks.serving.environments import Environment
from benchmarks.serving.load import Load, loaded
from benchmarks.serving.models import NETWORKS, publish_model
from benchmarks.serving.processes import exit_on_sigterm
from models.artifact import cpu_session, read_model

_CEILING = "hello world"
_OURS = "errorbar V1"
_COLUMNS = (
    "rows",
    "connections",
    "server",
    "requests/s",
    f"of {_CEILING}",
    f"{_OURS} to it",
    "rows/s",
    "of bare ONNX Runtime",
    "p50 us",
    "p99 us",
    "failed",
)
_ABOUT_PEERS = """\
Peers serve the same model file through ONNX Runtime on one thread, each as its own documentation shows,
at its defaults but one worker, no access log, and uvloop and httptools installed. `batched` has its adaptive batching: MLServer
and LitServe up to 64 requests within 2 ms (LitServe with its fast queue), Ray Serve the same with 256 requests at a time,
BentoML up to 8192 rows. All processes of a server share its core, which is hard on those that have many: LitServe, BentoML
and above all Ray Serve. errorbar V1 and naive FastAPI get an object a row; `errorbar V1 arrays` and the peers get arrays, which
are shorter."""


@dataclass
class Cell:
    """What was measured with requests of so many rows on so many connections: server -> round -> load."""

    rows: int
    connections: int
    loads: dict[str, dict[int, Load]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write DIR/serving.md; 1 where a server could not be measured, 2 for a wrong argument."""
    options = parsed(arguments)
    busy = load_before()
    made, without = _environments(options.servers, options.environments)
    head = f"# Speed of serving\n\n{_facts(options, made, busy)}"
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "serving.md"
    done: list[str] = []
    complete = True
    for network in options.networks:
        cells = [Cell(rows, connections) for rows in options.rows for connections in options.connections]
        failures = dict(without)
        with tempfile.TemporaryDirectory() as folder:
            repository = Path(folder) / "repository"
            publish_model(repository, name="m", network=NETWORKS[network])
            bare = _bare(repository, options.rows)
            for number in range(options.rounds):
                for name in options.servers:
                    if name not in failures and (reason := _measured(name, repository, cells, number, options, made)):
                        failures[name] = reason
                    text = "\n\n".join([head, *done, section(network, cells, bare, failures)]) + "\n"
                    file.write_text(text, encoding="utf-8")  # an interruption keeps what was measured
        done.append(section(network, cells, bare, failures))
        complete = complete and not failures
    print(file.read_text(encoding="utf-8"))
    return 0 if complete else 1


def section(network: str, cells: Sequence[Cell], bare: Mapping[int, float], failures: Mapping[str, str]) -> str:
    """The table of a network. bare: rows per second of ONNX Runtime, by rows of a run. failures: server -> its reason."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + " --- |" * len(_COLUMNS)]
    lines += [_line(cell, name, bare[cell.rows]) for cell in cells for name in cell.loads]
    text = f"## {network}: {dict(NETWORKS[network]) or 'as it comes'}\n\n" + "\n".join(lines)
    if failures:
        text += "\n\nNot measured, or not to the end:\n"
        text += "\n".join(f"- {name}: {reason}" for name, reason in failures.items())
    rates = ", ".join(f"{rate:,.0f} rows/s with {rows} rows" for rows, rate in bare.items())
    return f"{text}\n\nBare ONNX Runtime in one process: {rates}"


def _line(cell: Cell, name: str, bare: float) -> str:
    loads = cell.loads[name]

    def median(key: str) -> float:
        return float(statistics.median(getattr(load, key) for load in loads.values()))

    def share(of: str, *, inverse: bool) -> str:
        rates = [
            (load.requests_per_second, cell.loads[of][number].requests_per_second)
            for number, load in loads.items()
            if number in cell.loads.get(of, {})
        ]
        return f"{statistics.median(b / a if inverse else a / b for a, b in rates):.2f}" if rates and min(rates)[0] else ""

    rate = median("requests_per_second")
    failed = sum(load.refused + load.broken for load in loads.values())
    predicts = name != _CEILING
    columns = [
        str(cell.rows),
        str(cell.connections),
        name,
        f"{rate:,.0f}",
        share(_CEILING, inverse=False),
        share(_OURS, inverse=True) if predicts else "",
        f"{rate * cell.rows:,.0f}",
        f"{rate * cell.rows / bare:.2f}" if predicts else "",
        f"{median('p50'):,.0f}",
        f"{median('p99'):,.0f}",
        str(failed),
    ]
    return f"| {' | '.join(columns)} |"


def _environments(servers: Sequence[str], folder: Path) -> tuple[dict[str, Environment], dict[str, str]]:
    """The environments that these servers need, by peer, and the servers that have none, with the reason."""
    made: dict[str, Environment] = {}
    without: dict[str, str] = {}
    for name, candidate in PEERS.items():
        if name in servers and candidate.peer is not None and candidate.peer not in made:
            try:
                made[candidate.peer] = environments.environment(candidate.peer, folder)
            except environments.NoEnvironmentError as error:
                without[name] = str(error)
    return made, without


def _measured(
    name: str,
    repository: Path,
    cells: Sequence[Cell],
    number: int,
    options: argparse.Namespace,
    made: Mapping[str, Environment],
) -> str | None:
    """Put round `number` of all loads on a server; the reason where that fails: one must not stop the others."""
    candidate = (CANDIDATES | PEERS)[name]
    python = Path(sys.executable) if candidate.peer is None else made[candidate.peer].python
    x = np.random.default_rng(0).normal(size=(max(options.rows), FEATURES))
    try:
        with started(candidate, repository, core=options.server_core, python=python) as (url, _):
            for cell in cells:
                request = candidate.say(x[: cell.rows])
                check(candidate, url, x[: cell.rows], repository)
                for seconds in (1, options.seconds):  # first to warm up
                    load = loaded(
                        url,
                        request.body,
                        request.headers,
                        connections=cell.connections,
                        seconds=seconds,
                        core=options.load_core,
                    )
                cell.loads.setdefault(name, {})[number] = load
                print(f"{name}, {cell.rows} rows, {cell.connections} connections: {load}", file=sys.stderr, flush=True)
    except (RuntimeError, OSError, ValueError, LookupError, TypeError, subprocess.SubprocessError, httpx.HTTPError) as error:
        reason = " ".join(str(error).split()) or repr(error)
        print(f"{name}: {reason}", file=sys.stderr, flush=True)
        return reason
    return None


def check(candidate: Candidate, url: str, x: Values, repository: Path) -> None:
    """Raise RuntimeError unless the candidate answers as the model does."""
    if candidate.mean is None:
        return
    request = candidate.say(x)
    answer = httpx.post(url, content=request.body, headers=dict(request.headers), timeout=60)
    if not answer.is_success:
        raise RuntimeError(f"it answers {answer.status_code} {answer.text[:200]}")
    found = candidate.mean(answer)
    session = cpu_session(read_model(model_file(repository))[0], threads=1)
    expected = float(session.run(["mean"], {"x": x, "coverage": np.array([0.9])})[0][0, 0])
    if not np.isclose(found, expected, rtol=1e-4, atol=1e-5):
        raise RuntimeError(f"it answers {found}, the model {expected}")


def _bare(repository: Path, sizes: Sequence[int]) -> dict[int, float]:
    """Rows per second of ONNX Runtime in this process, by rows of a run."""
    session = cpu_session(read_model(model_file(repository))[0], threads=1)
    coverage = np.array([0.9])
    result = {}
    for rows in sizes:
        x = np.random.default_rng(0).normal(size=(rows, FEATURES))
        seconds = []
        for _ in range(max(20, 20_000 // rows)):
            start = perf_counter()
            session.run(["mean", "std", "epistemic_std", "lower", "upper"], {"x": x, "coverage": coverage})
            seconds.append(perf_counter() - start)
        result[rows] = rows / statistics.median(seconds)
    return result


def _facts(options: argparse.Namespace, made: Mapping[str, Environment], busy: str) -> str:
    text = (
        f"{facts(LIBRARIES, also=busy)} One core for the server, one for "
        f"wrk; {options.seconds} s a cell, medians of {options.rounds} rounds in which all take turns. `{_OURS} to it`: how "
        f"many times as many requests per second as this server {_OURS} answered."
    )
    if made:
        told = "\n".join(f"- {environment.versions}" for environment in made.values())
        text += f"\n\n{_ABOUT_PEERS}\n\n{told}"
    return text


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; ends the program with 2 for a wrong one, and where there is no wrk."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.servers is None:
        options.servers = [*CANDIDATES, *(PEERS if options.peers else ())]
    check_wrk(parser)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    known = [*CANDIDATES, *PEERS]
    told = f"of {', '.join(known)}; default: those of errorbar's environment"
    parser.add_argument("--servers", type=some_of(known, "server"), metavar="A,B", help=told)
    parser.add_argument("--peers", action="store_true", help="all of these, each peer in an environment that is made for it")
    parser.add_argument(
        "--environments", type=Path, default=environments.FOLDER, metavar="DIR", help="of the peers; default: %(default)s"
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--rows", type=counts, default=[1, 100], metavar="N,N", help="of a request; default: 1,100")
    parser.add_argument("--connections", type=counts, default=[1, 16, 64], metavar="N,N", help="default: 1,16,64")
    parser.add_argument("--seconds", type=count, default=5, metavar="N", help="of a cell; default: %(default)s")
    parser.add_argument("--rounds", type=count, default=2, metavar="N", help="default: %(default)s")
    add_cores(parser)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results", metavar="DIR", help="default: %(default)s"
    )
    return parser


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
