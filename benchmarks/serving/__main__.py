"""`python -m benchmarks.serving`: requests per second and latency of each server, in turn, on one core; wrk on another."""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
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
    f"over {_CEILING}",
    "p99 us",
    "failed",
)
_BARE_SECONDS = 0.3
_ABOUT_PEERS = """\
Peers serve the same model file through ONNX Runtime on one thread, each as its own documentation shows,
at its defaults but one worker, no access log, and uvloop and httptools installed. `batched` has its adaptive batching: MLServer
and LitServe up to 64 requests within 2 ms (LitServe with its fast queue), Ray Serve the same with 256 requests at a time,
BentoML up to 8192 rows. All processes of a server share its core, which is hard on those that have many: LitServe, BentoML
and above all Ray Serve. errorbar V1 and naive FastAPI get an object a row; `errorbar V1 arrays` and the peers get arrays, which
are shorter."""


@dataclass(frozen=True)
class Measured:
    """A load on a server, and right before it, for a machine is not as fast all the time, what nothing can beat."""

    load: Load
    ceiling: Load
    """The same load on a server that does nothing."""
    bare: float
    """Rows per second of ONNX Runtime in this process, on the server's core, with runs of a request's rows."""

    @property
    def share(self) -> float:
        """Of the ceiling's requests per second."""
        return self.load.requests_per_second / self.ceiling.requests_per_second


@dataclass
class Cell:
    """What was measured with requests of so many rows on so many connections: server -> round -> load."""

    rows: int
    connections: int
    measured: dict[str, dict[int, Measured]] = field(default_factory=dict)


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
            for number in range(options.rounds):
                for name in options.servers:
                    if name not in failures and (reason := _measured(name, repository, cells, number, options, made)):
                        failures[name] = reason
                    text = "\n\n".join([head, *done, section(network, cells, failures)]) + "\n"
                    file.write_text(text, encoding="utf-8")  # an interruption keeps what was measured
        done.append(section(network, cells, failures))
        complete = complete and not failures
    print(file.read_text(encoding="utf-8"))
    return 0 if complete else 1


def section(network: str, cells: Sequence[Cell], failures: Mapping[str, str]) -> str:
    """The table of a network. failures: server -> its reason."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + " --- |" * len(_COLUMNS)]
    lines += [_line(cell, name) for cell in cells for name in cell.measured]
    text = f"## {network}: {dict(NETWORKS[network]) or 'as it comes'}\n\n" + "\n".join(lines)
    if failures:
        text += "\n\nNot measured, or not to the end:\n"
        text += "\n".join(f"- {name}: {reason}" for name, reason in failures.items())
    bare: dict[int, list[float]] = {}
    for cell in cells:
        bare.setdefault(cell.rows, []).extend(one.bare for rounds in cell.measured.values() for one in rounds.values())
    rates = ", ".join(f"{median(found):,.0f} rows/s with {rows} rows" for rows, found in bare.items() if found)
    return f"{text}\n\nBare ONNX Runtime in one process: {rates}"


def _line(cell: Cell, name: str) -> str:
    rounds, ours = cell.measured[name], cell.measured.get(_OURS, {})
    loads = [one.load for one in rounds.values()]
    rate, p50 = median(load.requests_per_second for load in loads), median(load.p50 for load in loads)
    to_it = [ours[number].share / one.share for number, one in rounds.items() if number in ours and one.share]
    of_bare = median(one.load.requests_per_second * cell.rows / one.bare for one in rounds.values())
    predicts = name != _CEILING
    columns = [
        str(cell.rows),
        str(cell.connections),
        name,
        f"{rate:,.0f}",
        f"{median(one.share for one in rounds.values()):.2f}",
        f"{median(to_it):.2f}" if predicts and to_it else "",
        f"{rate * cell.rows:,.0f}",
        f"{of_bare:.2f}" if predicts else "",
        f"{p50:,.0f}",
        f"{median(one.load.p50 - one.ceiling.p50 for one in rounds.values()):,.0f}" if predicts and rate else "",
        f"{median(load.p99 for load in loads):,.0f}",
        str(sum(load.refused + load.broken for load in loads)),
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
    candidate, nothing = (CANDIDATES | PEERS)[name], CANDIDATES[_CEILING]
    python = Path(sys.executable) if candidate.peer is None else made[candidate.peer].python
    x = np.random.default_rng(0).normal(size=(max(options.rows), FEATURES))
    try:
        with contextlib.ExitStack() as servers:
            url, _ = servers.enter_context(started(candidate, repository, core=options.server_core, python=python))
            idle, _ = servers.enter_context(started(nothing, repository, core=options.server_core))
            for cell in cells:
                rows = x[: cell.rows]
                check(candidate, url, rows, repository)
                # First the ceilings, while the server has nothing to do: it may answer a load's last requests long after
                bare = _bare(repository, rows, core=options.server_core)
                ceiling = _load(nothing, idle, rows, cell.connections, options.seconds, options)
                _load(candidate, url, rows, cell.connections, 1, options)  # to warm up
                measured = Measured(_load(candidate, url, rows, cell.connections, options.seconds, options), ceiling, bare)
                cell.measured.setdefault(name, {})[number] = measured
                print(f"{name}, {cell.rows} rows, {cell.connections} connections: {measured}", file=sys.stderr, flush=True)
    except (RuntimeError, OSError, ValueError, LookupError, TypeError, subprocess.SubprocessError, httpx.HTTPError) as error:
        reason = " ".join(str(error).split()) or repr(error)
        print(f"{name}: {reason}", file=sys.stderr, flush=True)
        return reason
    return None


def _load(candidate: Candidate, url: str, x: Values, connections: int, seconds: int, options: argparse.Namespace) -> Load:
    request = candidate.say(x)
    core = options.load_core
    return loaded(url, request.body, request.headers, connections=connections, seconds=seconds, core=core)


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


def _bare(repository: Path, x: Values, *, core: int) -> float:
    """Rows per second of ONNX Runtime in this process: as of a server, all that it did in the time."""
    session = cpu_session(read_model(model_file(repository))[0], threads=1)
    outputs, inputs = ["mean", "std", "epistemic_std", "lower", "upper"], {"x": x, "coverage": np.array([0.9])}
    cores, runs = os.sched_getaffinity(0), 0
    os.sched_setaffinity(0, {core})
    try:
        session.run(outputs, inputs)  # to warm up
        start = perf_counter()
        while (seconds := perf_counter() - start) < _BARE_SECONDS:
            session.run(outputs, inputs)
            runs += 1
    finally:
        os.sched_setaffinity(0, cores)
    return runs * len(x) / seconds


def _facts(options: argparse.Namespace, made: Mapping[str, Environment], busy: str) -> str:
    text = (
        f"{facts(LIBRARIES, also=busy)} One core for the server, one for wrk; {options.seconds} s a cell, medians of "
        f"{options.rounds} rounds in which all take turns. Shares of {_CEILING} and of bare ONNX Runtime, and the p50 over "
        f"{_CEILING}, are of what these did right before the server's cell. `{_OURS} to it`: the share of "
        f"{_CEILING} of {_OURS} by this server's, in the same round."
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
