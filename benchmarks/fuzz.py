"""`python -m benchmarks.fuzz`: bodies that are nearly right, for every form that the prediction routes take.

Each must be answered, with an answer that fits its rows, or refused in a sentence; all else is a failure, told with the body.
An input follows from the seed and its number alone. The status is 1 where there are failures.
"""

import argparse
import base64
import csv
import io
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.fuzz_inputs import Input, mutated, valid_inputs
from models.artifact import Run, open_model
from models.manifest import Target
from service.answers import Content
from service.codecs.terms import Limits
from service.errors import LISTED_PROBLEMS, ServiceError
from service.inference.batcher import Part, RunLimits
from service.inference.session import Device
from service.model import ServedModel, load_model
from service.predictions import Question, check_support
from service.routes.infer import JSON_LENGTH_HEADER, V2
from service.routes.predict import INVOCATIONS, V1
from service.routes.protocol import Asked, Protocol, terms_of
from tests.model_files import MIXED, NUMERIC, write_formula_model

_PROTOCOLS = {"invocations": INVOCATIONS, "v2": V2, "v2 binary": V2, "v2 raw": V2}
"""By form; the others are V1's."""
_LIMITS = Limits(rows=500, answer_values=10_000, levels=50)
_RUN_LIMITS = RunLimits(inline_seconds=1, run_rows=500, queued_rows=500, deadline_seconds=1)
_LONGEST_SENTENCE = 2000
_SHOWN_REASONS = 6


@dataclass
class Failure:
    """An input that was neither answered nor refused as it should."""

    number: int
    input: Input
    problem: str

    def __str__(self) -> str:
        given = self.input
        where = f"input {self.number}, {given.form} of {given.model}, query {given.query!r}, json_bytes {given.json_bytes!r}"
        return f"{where}, {given.media_type!r}\n  {self.problem}\n  body (base64): {base64.b64encode(given.body).decode()}"


@dataclass
class Report:
    """What became of the inputs."""

    answered: Counter[str] = field(default_factory=Counter)
    """By form."""
    refused: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By form and sentence, without what it quotes."""
    failures: list[Failure] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    """Seconds of an input, and its number."""

    def __str__(self) -> str:
        lines = []
        for form in sorted({*self.answered, *self.refused}):
            refused = self.refused[form]
            total = self.answered[form] + refused.total()
            lines.append(f"{form}: {total:,} inputs, {self.answered[form]:,} answered, {refused.total():,} refused:")
            lines += [f"  {count:>9,}  {reason}" for reason, count in refused.most_common(_SHOWN_REASONS)]
            others = len(refused) - _SHOWN_REASONS
            lines += [f"             and {others} other sentences"] if others > 0 else []
        return "\n".join([*lines, *map(str, self.failures)])


@dataclass(frozen=True)
class _Model:
    served: ServedModel
    run: Run


def fuzz(inputs: int, seed: int, *, first: int = 0) -> Report:
    """What became of so many inputs, the ones from number `first` on."""
    report, valid = Report(), valid_inputs()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="error"):
        models = _models(Path(folder))
        for number in range(first, first + inputs):
            given = mutated(random.Random(seed << 32 | number), valid)  # noqa: S311 - not for secrets
            started = time.perf_counter()
            try:
                _ask(given, models[given.model])
                report.answered[given.form] += 1
            except ServiceError as error:
                problem = _wrong_with_refusal(error)
                if problem is not None:
                    report.failures.append(Failure(number, given, problem))
                report.refused[given.form][_without_quotations(error.sentence)] += 1
            except Exception:  # noqa: BLE001 - whatever it is, it is a failure
                report.failures.append(Failure(number, given, traceback.format_exc(limit=-4)))
            report.slowest = max(report.slowest, (time.perf_counter() - started, number))
    return report


def _models(folder: Path) -> dict[str, _Model]:
    two = (Target(name="y", minimum=-50.0, maximum=50.0), Target(name="z, in m", minimum=0.1, maximum=50.0, transform="log"))
    write_formula_model(folder / "plain.onnx", columns=NUMERIC, targets=two)
    write_formula_model(folder / "mixed.onnx", columns=MIXED, group_column="colour", interval="equal_tailed")
    models = {}
    for name in ("plain", "mixed"):
        path = folder / f"{name}.onnx"
        served = load_model(path, name=name, version=1, device=Device("cpu", 1), limits=_RUN_LIMITS)
        models[name] = _Model(served, open_model(path, threads=1)[0])
    return models


def _ask(given: Input, model: _Model) -> None:
    """Answer a request as the service does. Raises ServiceError where it is refused, else what is wrong with the answer."""
    protocol, scope = _PROTOCOLS.get(given.form, V1), given.scope()
    asked = protocol.read(terms_of(model.served, _LIMITS), scope, given.body)
    check_support(asked.question, model.served.targets)
    _check_question(asked.question, model.served, of_tensors=protocol is V2)
    arrays = model.run(asked.question.x, np.array(asked.question.coverage))
    part = Part({name: arrays[name] for name in asked.outputs}, 0, len(asked.question.x), {})
    with np.errstate(all="ignore"):  # numbers far beyond the training rows, refused when they are written
        content = protocol.write(model.served, scope, asked, part)
    _CHECKS.get(content.media_type, _check_json)(content, asked, protocol)


def _check_question(question: Question, model: ServedModel, *, of_tensors: bool) -> None:
    x, features = question.x, model.features
    assert x.dtype == np.float64
    assert x.shape == (len(x), len(features.names))
    assert len(x) <= _LIMITS.rows
    assert not np.isinf(x).any()
    for position, column in enumerate(features.columns):
        values = x[:, position]
        known = values[~np.isnan(values)]
        if column.kind in ("categorical", "boolean"):
            assert np.isin(known, range(len(column.categories or "01"))).all(), f"{column.name} {known}"
        elif of_tensors and features.never_missing[position]:
            assert len(known) == len(values), f"{column.name} is missing"
    assert all(0 < value < 1 for value in (*question.coverage, *question.quantiles))
    assert len(question.coverage) + len(question.quantiles) <= _LIMITS.levels
    assert np.isfinite(question.thresholds).all(), f"thresholds {question.thresholds}"
    assert 0 <= question.samples <= _LIMITS.answer_values
    assert question.seed is None or 0 <= question.seed < 2**63


def _check_json(content: Content, asked: Asked[Any], protocol: Protocol) -> None:
    sizes = [int(value) for name, value in content.headers if name == JSON_LENGTH_HEADER]
    text, raw = (content.body[: sizes[0]], content.body[sizes[0] :]) if sizes else (content.body, b"")
    body = orjson.loads(text)  # which takes no NaN
    rows = len(asked.question.x)
    if protocol is not V2:
        assert len(body["predictions"]) == rows
        return
    assert [output["name"] for output in body["outputs"]] == list(asked.outputs)
    for output in body["outputs"]:
        assert output["shape"][0] == rows
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            assert len(output["data"]) == np.prod(output["shape"])
            assert None not in output["data"]
        else:
            numbers = np.frombuffer(raw[:size], np.float32 if output["datatype"] == "FP32" else np.float64)
            assert numbers.size == np.prod(output["shape"])
            assert np.isfinite(numbers).all()
            raw = raw[size:]
    assert not raw


def _check_csv(content: Content, asked: Asked[Any], _: Protocol) -> None:
    header, *lines = csv.reader(io.StringIO(content.body.decode(), newline=""))
    assert len(lines) == len(asked.question.x)
    numbers = [name for name in header if name != "warnings"]
    assert all(np.isfinite([float(cell) for cell in line[: len(numbers)]]).all() for line in lines)


def _check_ndjson(content: Content, asked: Asked[Any], _: Protocol) -> None:
    assert len([orjson.loads(line) for line in content.body.splitlines()]) == len(asked.question.x)


def _check_arrow(content: Content, asked: Asked[Any], _: Protocol) -> None:
    import pyarrow as pa

    assert pa.ipc.open_stream(content.body).read_all().num_rows == len(asked.question.x)


_CHECKS: dict[bytes, Callable[[Content, Asked[Any], Protocol], None]] = {
    b"text/csv": _check_csv,
    b"application/x-ndjson": _check_ndjson,
    b"application/jsonl": _check_ndjson,
    b"application/vnd.apache.arrow.stream": _check_arrow,
}
"""By media type of the answer."""


def _wrong_with_refusal(error: ServiceError) -> str | None:
    body = orjson.loads(orjson.dumps(error.body()))
    if error.status not in (400, 413):
        return f"status {error.status}: {error.sentence}"
    if not error.sentence or len(error.sentence) > _LONGEST_SENTENCE:
        return f"a sentence of {len(error.sentence)} characters: {error.sentence[:200]}"
    if len(body.get("details", [])) > LISTED_PROBLEMS:
        return f"{len(body['details'])} details"
    return None


def _without_quotations(sentence: str) -> str:
    """What a sentence says without what it says it about."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[-+]?\d[\d.e+-]*", "_", sentence)[:90]


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask and tell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="of the first input, to repeat a failure")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    report = fuzz(options.inputs, options.seed, first=options.first)
    seconds = time.perf_counter() - started
    longest, number = report.slowest
    print(report)
    print(f"{options.inputs:,} inputs in {seconds:.0f} s, {options.inputs / seconds:,.0f}/s, {len(report.failures)} failures; "
          f"the slowest, number {number}, took {longest * 1e3:.0f} ms")  # fmt: skip
    return int(bool(report.failures))


if __name__ == "__main__":
    sys.exit(main())
