"""`python -m benchmarks.serving_cost`: what one prediction costs in ONNX Runtime on one core, for networks of several sizes.

The networks are untrained: cost depends on sizes alone. Everything else is the product's own: features, export, calibration.
"""

import argparse
import collections
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from benchmarks.machine import machine, versions
from models.artifact import Run, cpu_session, session_run
from models.heads import FAMILIES
from models.manifest import Calibration, Column, ResidualGroup, Target
from models.networks import StackedNetwork
from training.export import exported_network
from training.fit import Fitted
from training.graph import calibrated_graph
from training.preprocess import feature_statistics

FEATURES = 10
CALIBRATION_ROWS = 900
COVERAGE = np.array([0.9])
BULK_ROWS = 1000
_MICRO = 1e6


@dataclass(frozen=True)
class Size:
    """The sizes of a network; `frequencies` 0 is a network without embedding."""

    members: int
    width: int
    depth: int
    frequencies: int
    outputs: int

    def __str__(self) -> str:
        embedding = f"{self.frequencies}x{self.outputs}" if self.frequencies else "none"
        return f"{self.members},{self.width},{self.depth},{embedding}"


@dataclass(frozen=True)
class Cost:
    """Seconds of one call with one row, and of one call with BULK_ROWS rows."""

    one_row: float
    bulk: float


SIZES = (
    Size(8, 128, 3, 16, 8),  # the default
    Size(4, 64, 2, 8, 4),  # small
    Size(16, 256, 3, 16, 8),  # large
    Size(8, 128, 2, 16, 8),
    Size(8, 128, 2, 8, 8),
    Size(8, 96, 3, 8, 8),
    Size(4, 128, 3, 16, 8),
    Size(16, 128, 3, 16, 8),
    Size(5, 128, 2, 0, 0),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a table; the first size is the one that the others are compared with."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_cost", description=__doc__)
    parser.add_argument(
        "sizes", nargs="*", type=_size, default=SIZES, metavar="MEMBERS,WIDTH,DEPTH,EMBEDDING", help="such as 8,128,3,16x8"
    )
    parser.add_argument("--rounds", type=int, default=20, help="rounds; each measures every size in turn")
    parser.add_argument("--profile", action="store_true", help="also print ONNX Runtime's time by operator type")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the graphs, as FOLDER/SIZE.onnx")
    options = parser.parse_args(arguments)
    graphs = {str(size): graph(size) for size in options.sizes}
    for name, data in graphs.items():
        if options.save:
            options.save.mkdir(parents=True, exist_ok=True)
            (options.save / f"{name}.onnx").write_bytes(data)
    print(f"{machine()}; {versions(['onnxruntime'])}; {FEATURES} numeric features, one thread\n")
    print(table(costs(graphs, rounds=options.rounds)))
    if options.profile:
        for name, data in graphs.items():
            for rows in (1, BULK_ROWS):
                print(f"\n{name}, {rows} rows: microseconds a call, calls\n{profile(data, rows=rows)}")
    return 0


def graph(size: Size) -> bytes:
    """A model file's graph for made-up rows of FEATURES columns: an untrained network, calibrated with normal residuals."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    columns = [Column(name=f"x{number}", kind="numeric") for number in range(FEATURES)]
    network = StackedNetwork(
        statistics=feature_statistics(rng.normal(size=(CALIBRATION_ROWS, FEATURES)), columns),
        members=size.members,
        targets=1,
        family=FAMILIES["gaussian"],
        width=size.width,
        depth=size.depth,
        frequencies=size.frequencies,
        embedding_outputs=size.outputs or 1,
    )
    fitted = Fitted(network=network, centre=[1.0], scale=[2.0], degrees_of_freedom=None, history=[])
    residuals = np.sort(rng.normal(size=(1, CALIBRATION_ROWS)), axis=1)
    calibration = Calibration(
        method="split",
        interval="symmetric",
        groups=[ResidualGroup(residuals=residuals.tolist())],
        scale_factor=[1.1],
        guarantee="none: the network is untrained",
    )
    target = Target(name="y", minimum=-1.0, maximum=3.0)
    part = exported_network(fitted, columns=FEATURES)
    whole = calibrated_graph(part, columns=columns, targets=[target], calibration=calibration, float64=False)
    data: bytes = whole.SerializeToString()
    return data


def costs(graphs: dict[str, bytes], *, rounds: int) -> dict[str, Cost]:
    """What each graph costs: the median over `rounds` of a round's cheapest call, for one row; for bulk, of its only call.

    Every round takes each graph in turn, so that a busy moment of the machine hits all of them alike.
    """
    runs = {name: session_run(cpu_session(data, threads=1)) for name, data in graphs.items()}
    bulk = _rows(BULK_ROWS)
    one_row: dict[str, list[float]] = {name: [] for name in runs}
    many: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            one_row[name].append(statistics.median(_seconds(run, bulk[:1], calls=200)))
            many[name].append(statistics.median(_seconds(run, bulk, calls=5)))
    return {name: Cost(statistics.median(one_row[name]), statistics.median(many[name])) for name in runs}


def table(measured: dict[str, Cost]) -> str:
    """The costs as a Markdown table, with their ratios to the first."""
    first = next(iter(measured.values()))
    lines = [
        "| members,width,depth,embedding | 1 row, us | of the first | rows/s in bulk | of the first |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {cost.one_row * _MICRO:.1f} | {cost.one_row / first.one_row:.2f} "
        f"| {BULK_ROWS / cost.bulk:,.0f} | {first.bulk / cost.bulk:.2f} |"
        for name, cost in measured.items()
    ]
    return "\n".join(lines)


def profile(data: bytes, *, rows: int, calls: int = 200) -> str:
    """Time by operator type, a line each, the dearest first; with the profiler's own cost, so read it as shares."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for _ in range(calls):
            session.run(None, {"x": _rows(rows), "coverage": COVERAGE})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return "\n".join(_by_operator(events, calls=calls))


def _by_operator(events: Iterable[dict[str, object]], *, calls: int) -> list[str]:
    spent: collections.Counter[str] = collections.Counter()
    nodes: collections.Counter[str] = collections.Counter()
    for event in events:
        arguments = event.get("args")
        if event.get("cat") == "Node" and isinstance(arguments, dict) and str(event["name"]).endswith("_kernel_time"):
            spent[arguments["op_name"]] += int(str(event["dur"]))
            nodes[arguments["op_name"]] += 1
    lines = [f"{name:24}{time / calls:10.1f}{nodes[name] / calls:6.0f}" for name, time in spent.most_common()]
    return [*lines, f"{'all':24}{spent.total() / calls:10.1f}{nodes.total() / calls:6.0f}"]


def _rows(number: int) -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(size=(number, FEATURES))


def _seconds(run: Run, x: NDArray[np.float64], *, calls: int) -> list[float]:
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        run(x, COVERAGE)
        seconds.append(time.perf_counter() - start)
    return seconds


def _size(text: str) -> Size:
    members, width, depth, embedding = text.split(",")
    frequencies, outputs = (0, 0) if embedding == "none" else map(int, embedding.split("x"))
    return Size(int(members), int(width), int(depth), frequencies, outputs)


if __name__ == "__main__":
    raise SystemExit(main())
