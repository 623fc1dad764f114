"""Small model files for tests, made without torch and without training: a network that is a formula.

With features x1, x2, ... and two members, member_location = (x1 + 2 x2 + ...) -/+ 0.5 for every target t times (t + 1), and
member_scale = 0.5 + |x1| / 10; a missing or unknown value counts as 0. An offset, added to every member_location, tells a file
from another.
"""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from models.artifact import cpu_session, golden_rows, read_model, session_run, write_model
from models.manifest import Calibration, Column, Manifest, Network, Origin, ResidualGroup, Target
from training.graph import calibrated_graph, named_network

NUMERIC = (
    Column(name="a", kind="numeric", minimum=-3.0, maximum=3.0, quantiles={"0.5": 0.25}),
    Column(name="b", kind="numeric", minimum=0.0, maximum=10.0, quantiles={"0.5": 5.0}),
)
MIXED = (
    *NUMERIC,
    Column(name="colour", kind="categorical", categories=["blue", "green", "red"], missing=0.1),
    Column(name="open", kind="boolean", minimum=0.0, maximum=1.0),
    Column(name="when", kind="datetime", minimum=1.6e9, maximum=1.7e9, missing=0.2),
)


def formula_network(*, features: int, targets: int, offset: float = 0.0) -> onnx.ModelProto:
    """The network part of the formula above."""
    slopes = " ".join(f"{i + 1}," for i in range(features)).rstrip(",")
    scales = " ".join(f"{t + 1}," for t in range(targets)).rstrip(",")
    network = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 18]>
        formula (double[n,{features}] x) => (double[m,n,t] member_location, double[m,n,t] member_scale)
        <double[{features},1] slopes = {{{slopes}}}, double[1,{targets}] factors = {{{scales}}},
         double[2,1,1] shift = {{{offset - 0.5}, {offset + 0.5}}},
         double nought = {{0}}, double tenth = {{0.1}}, double half = {{0.5}}, int64[1] first = {{0}}>
        {{
            missing = IsNaN(x)
            known = Where(missing, nought, x)
            total = MatMul(known, slopes)
            per_target = MatMul(total, factors)
            member_location = Add(per_target, shift)
            leading = Gather<axis=1>(known, first)
            size = Abs(leading)
            slope = Mul(size, tenth)
            spread = Add(slope, half)
            ones = Div(factors, factors)
            spreads = MatMul(spread, ones)
            still = Sub(shift, shift)
            member_scale = Add(spreads, still)
        }}""")
    return named_network(network)


def write_formula_model(
    path: Path,
    *,
    columns: tuple[Column, ...] = NUMERIC,
    targets: tuple[Target, ...] = (Target(name="y", minimum=-50.0, maximum=50.0, unit="MPa"),),
    rows: int = 99,
    interval: str = "symmetric",
    group_column: str | None = None,
    scale_factor: float = 1.0,
    group_factors: tuple[float | None, ...] = (),
    float64: bool = False,
    offset: float = 0.0,
) -> Manifest:
    """Write a whole model file to `path`; the calibration residuals are seeded normal draws."""
    rng = np.random.default_rng(7)

    def group(value: str | None, code: float | None, size: int) -> ResidualGroup:
        return ResidualGroup(value=value, code=code, residuals=np.sort(rng.normal(size=(len(targets), size)), axis=1).tolist())

    groups = [group(None, None, rows)]
    if group_column is not None:
        column = next(column for column in columns if column.name == group_column)
        values = column.categories or ["false", "true"]
        groups += [group(value, float(code), 19 + 10 * code) for code, value in enumerate(values)]
    for number, factor in enumerate(group_factors, start=1):
        groups[number] = groups[number].model_copy(update={"scale_factor": factor and [factor] * len(targets)})
    calibration = Calibration(
        method="split",
        interval=interval,  # type: ignore[arg-type]
        group_column=group_column,
        groups=groups,
        scale_factor=[scale_factor] * len(targets),
        guarantee="for tests",
    )
    graph = calibrated_graph(
        formula_network(features=len(columns), targets=len(targets), offset=offset),
        columns=list(columns),
        targets=list(targets),
        calibration=calibration,
        float64=float64,
    ).SerializeToString()
    x = np.array([[0.0] * len(columns), [1.0] * len(columns), [np.nan] * len(columns)])
    manifest = Manifest(
        columns=list(columns),
        targets=list(targets),
        network=Network(
            family="gaussian", loss="beta_nll", options={}, members=2, parameters=3, seed=0, minimum_std=1e-3, maximum_std=1e3
        ),
        calibration=calibration,
        evaluation=None,
        origin=Origin(
            data="formula", data_sha256="0" * 64, rows=rows, rows_by_use={"calibration": rows}, command="tests",
            git_revision=None,
            libraries={}, created="2026-01-01T00:00:00Z", seconds=0.0,
        ),
        golden=golden_rows(session_run(cpu_session(graph, threads=1)), x, [0.5, 0.9]),
    )  # fmt: skip
    write_model(graph, manifest, path)
    return manifest


def bad_model_files(good: Path) -> dict[str, bytes]:
    """What may stand in the place of a model file, by what is wrong with it."""
    data, manifest = read_model(good)
    middle = len(data) // 2
    moved = manifest.golden.outputs | {"mean": (np.array(manifest.golden.outputs["mean"]) + 1).tolist()}
    other = good.with_name("other-golden-rows.onnx")
    write_model(data, manifest.model_copy(update={"golden": manifest.golden.model_copy(update={"outputs": moved})}), other)
    return {
        "is empty": b"",
        "is not an ONNX file": b"nonsense",
        "is truncated": data[:-100],
        "was changed": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "has manifest schema 9": _sealed(data.replace(b'"schema_version":1,', b'"schema_version":9,')),
        "output mean of the golden rows is off": other.read_bytes(),
    }


def _sealed(data: bytes) -> bytes:
    """A model file with the digest that it should have."""
    return data[:-64] + hashlib.sha256(data[:-64] + b"0" * 64).hexdigest().encode()
