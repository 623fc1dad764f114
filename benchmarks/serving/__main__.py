"""`python -m benchmarks.serving`: requests per second and latency of each candidate, in turn, on one core; wrk on another."""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import httpx
import numpy as np
import polars as pl

from benchmarks.machine import machine, versions
from benchmarks.serving.candidates import CANDIDATES, Candidate, Values, started
from benchmarks.serving.load import Load, loaded
from models.artifact import cpu_session, read_model
from training.config import fit_options
from training.publish import publish
from training.train import train

FEATURES = 13
NETWORKS = {
    "ensemble": {"members": 5, "width": 128, "depth": 2, "frequencies": 0},
    "default": {},
}
"""The 5 x 128 x 128 ensemble that the figures of peers are for, and the product's default."""
_CEILING = "hello world"
_TABLE_ROWS = 3000
_COLUMNS = "rows, connections, server, requests/s, of hello world, rows/s, of bare ONNX Runtime, p50 us, p99 us, failed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write DIR/serving.md; 2 for a wrong argument."""
    options = _parser().parse_args(arguments)
    rng = np.random.default_rng(0)
    sections = []
    for network in options.networks:
        with tempfile.TemporaryDirectory() as folder:
            repository = Path(folder) / "repository"
            publish(_model(Path(folder), network), repository, name="m")
            cells: dict[tuple[int, int], dict[str, list[Load]]] = {
                (rows, connections): {} for rows in options.rows for connections in options.connections
            }
            for _ in range(options.rounds):
                for name in options.candidates:
                    _measure(name, repository, cells, options, rng.normal(size=(max(options.rows), FEATURES)))
            sections.append(_section(network, cells, _bare(repository, options.rows)))
    facts = (
        f"{machine()}; {versions(('errorbar', 'fastapi', 'uvicorn', 'onnxruntime', 'orjson'))}; {datetime.now(UTC):%Y-%m-%d}"
    )
    text = f"# Speed of serving\n\n{facts}. One core for the server, one for wrk; {options.seconds:g} s a cell, medians of "
    text += f"{options.rounds} rounds in which all take turns.\n\n" + "\n\n".join(sections) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serving.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _model(folder: Path, network: str) -> Path:
    """A model file of 13 features, fitted for an epoch: what it predicts is of no matter here."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(_TABLE_ROWS, FEATURES))
    table = pl.DataFrame({f"f{k}": x[:, k] for k in range(FEATURES)} | {"y": x[:, 0] + 0.1 * rng.normal(size=len(x))})
    table.write_parquet(folder / "table.parquet")
    settings = {"target": ["y"], "baselines": False, "epochs": 1, "dropout": 0.1, **NETWORKS[network]}
    output = folder / "model.onnx"
    train(folder / "table.parquet", fit_options(settings), output=output, command="python -m benchmarks.serving")
    return output


def _measure(
    name: str,
    repository: Path,
    cells: dict[tuple[int, int], dict[str, list[Load]]],
    options: argparse.Namespace,
    x: Values,
) -> None:
    candidate = CANDIDATES[name]
    with started(candidate, repository, core=options.server_core) as url:
        for (rows, connections), loads in cells.items():
            request = candidate.say(x[:rows])
            _check(candidate, url, x[:rows], repository)
            core = options.load_core
            loaded(url, request.body, request.headers, connections=connections, seconds=1, core=core)  # warm up
            load = loaded(url, request.body, request.headers, connections=connections, seconds=options.seconds, core=core)
            loads.setdefault(name, []).append(load)
            print(f"{name}, {rows} rows, {connections} connections: {load}", file=sys.stderr, flush=True)


def _check(candidate: Candidate, url: str, x: Values, repository: Path) -> None:
    """Raise RuntimeError unless the candidate answers as the model does."""
    if candidate.mean is None:
        return
    request = candidate.say(x)
    found = candidate.mean(httpx.post(url, content=request.body, headers=dict(request.headers)))
    session = cpu_session(read_model(repository / "m" / "1" / "model.onnx")[0], threads=1)
    expected = float(session.run(["mean"], {"x": x, "coverage": np.array([0.9])})[0][0, 0])
    if not np.isclose(found, expected, rtol=1e-4, atol=1e-5):
        raise RuntimeError(f"{url} answers {found}, the model {expected}")


def _bare(repository: Path, sizes: Sequence[int]) -> dict[int, float]:
    """Rows per second of ONNX Runtime in this process, by rows of a run."""
    session = cpu_session(read_model(repository / "m" / "1" / "model.onnx")[0], threads=1)
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


def _section(network: str, cells: dict[tuple[int, int], dict[str, list[Load]]], bare: dict[int, float]) -> str:
    header = _COLUMNS.split(", ")
    lines = [
        f"## {network}: {NETWORKS[network] or 'as it comes'}",
        "",
        f"| {' | '.join(header)} |",
        "|" + " --- |" * len(header),
    ]
    for (rows, connections), loads in cells.items():
        ceiling = [load.requests_per_second for load in loads.get(_CEILING, [])]
        for name, found in loads.items():
            rate = statistics.median(load.requests_per_second for load in found)
            pairs = zip(found, ceiling, strict=False)
            share = f"{statistics.median(load.requests_per_second / top for load, top in pairs):.2f}" if ceiling else ""
            of_bare = "" if name == _CEILING else f"{rate * rows / bare[rows]:.2f}"
            p50, p99 = (statistics.median(getattr(load, key) for load in found) for key in ("p50", "p99"))
            failed = sum(load.refused + load.broken for load in found)
            lines.append(
                f"| {rows} | {connections} | {name} | {rate:,.0f} | {share} | {rate * rows:,.0f} | {of_bare} | {p50:,.0f} "
                f"| {p99:,.0f} | {failed} |"
            )
    lines += [
        "",
        "Bare ONNX Runtime in one process: " + ", ".join(f"{rate:,.0f} rows/s with {n} rows" for n, rate in bare.items()),
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--rows", type=_numbers, default=[1, 100], metavar="N,N", help="of a request")
    parser.add_argument("--connections", type=_numbers, default=[1, 16, 64], metavar="N,N")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a cell")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", metavar="DIR")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
