"""What is counted, and how it is told to Prometheus and to the statistics extension of the Open Inference Protocol.

Counting is on the path of every request, so it is a bisection and two additions here (an observation of prometheus_client takes
five times as long); prometheus_client writes the page. All counting happens on the event loop.
"""

import math
import operator
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from models.artifact import Arrays
from models.manifest import Target

if TYPE_CHECKING:
    from service.model import ServedModel

DURATIONS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds in seconds."""
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Bounds as shares of a target's training range."""

_PREDICTED = ("std", "lower", "upper")
_NUMBERS_ASIDE = 32_768
_NUMBERS_OF_A_RUN = 256  # at least: to gather many small runs takes long
_FEW_NUMBERS = 16
_LARGEST = 1e12
"""A larger observation counts as this much in the sum, which would stay infinite for good."""

OK = "ok"
"""The outcome of a request that was answered. The others are `client_gone` and the reasons of service/errors.py."""


class Histogram:
    """Counts by bound, each bound included, and the sum of what was observed."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_all(self, values: NDArray[np.floating]) -> None:
        """Count every finite value of an array."""
        if values.size <= _FEW_NUMBERS:  # NumPy would take longer
            for value in filter(math.isfinite, values.ravel().tolist()):
                self.observe(min(value, _LARGEST))
            return
        total = float(values.sum(dtype=np.float64))
        if not total < _LARGEST:
            values = values[np.isfinite(values)].clip(max=_LARGEST)
            total = float(values.sum(dtype=np.float64))
        found = np.bincount(np.searchsorted(self.bounds, values.reshape(-1)), minlength=len(self.counts))
        self.counts = [old + new for old, new in zip(self.counts, found.tolist(), strict=True)]
        self.total += total

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)


class ModelMetrics:
    """What is counted of one version of a model."""

    def __init__(self, targets: Sequence[Target]):
        self.requests: Counter[str] = Counter({OK: 0, "bug": 0})
        """By outcome. What alerts look for is there from the start: Prometheus sees no increase from nothing to one."""
        self.seconds = {"answered": 0.0, "refused": 0.0, "read": 0.0, "run": 0.0, "write": 0.0}
        """Time of requests by phase."""
        self.duration = Histogram(DURATIONS)
        self.queue = Histogram(DURATIONS)
        self.run = Histogram(DURATIONS)
        self.run_rows = Histogram(ROWS)
        self.rows = 0
        self.runs_by_rows: dict[int, list[float]] = {}
        """Runs and their seconds, by rows of the run."""
        self.unusual_rows = 0
        self.std = Histogram(SHARES)
        self.width = Histogram(SHARES)
        self.last_run = 0.0
        """Unix time."""
        self.histograms = {
            "errorbar_request_duration_seconds": self.duration,
            "errorbar_queue_duration_seconds": self.queue,
            "errorbar_run_duration_seconds": self.run,
            "errorbar_run_rows": self.run_rows,
            "errorbar_predicted_std_share": self.std,
            "errorbar_interval_width_share": self.width,
        }
        self._aside: defaultdict[Any, list[Arrays]] = defaultdict(list)
        self._numbers_aside = 0
        self._ranges = np.array([t.maximum - t.minimum if t.maximum > t.minimum else 1.0 for t in targets])

    def finished(self, outcome: str, seconds: float) -> None:
        """A request was answered or refused."""
        self.requests[outcome] += 1
        self.duration.observe(seconds)
        self.seconds["answered" if outcome == OK else "refused"] += seconds

    def ran(self, arrays: Arrays, *, rows: int, requests: int, seconds: float) -> None:
        """A run answered `rows` rows of so many requests with `arrays`."""
        self.run.observe(seconds)
        self.seconds["run"] += seconds * requests
        self.run_rows.observe(rows)
        self.rows += rows
        self.last_run = time.time()
        runs = self.runs_by_rows.setdefault(rows, [0, 0.0])
        runs[0] += 1
        runs[1] += seconds
        numbers = sum(array.size for array in arrays.values())
        if numbers <= _FEW_NUMBERS:
            self._observe(arrays)
            return
        kind = tuple((name, arrays[name].shape[1:]) for name in _PREDICTED if name in arrays)
        self._aside[kind].append(arrays)
        self._numbers_aside += max(_NUMBERS_OF_A_RUN, numbers)
        if self._numbers_aside >= _NUMBERS_ASIDE:
            self.settle()

    def settle(self) -> None:
        """Count the predictions that were put aside: those of many runs take hardly longer than those of one."""
        aside, self._aside, self._numbers_aside = self._aside, defaultdict(list), 0
        for kind, runs in aside.items():
            self._observe({name: np.concatenate([arrays[name] for arrays in runs]) for name, _ in kind})

    def _observe(self, arrays: Arrays) -> None:
        with np.errstate(invalid="ignore", over="ignore"):  # an answer may be infinite, or so large that a sum is
            if "std" in arrays:
                self.std.observe_all(arrays["std"] / self._ranges)
            if "lower" in arrays and "upper" in arrays:
                self.width.observe_all((arrays["upper"] - arrays["lower"]) / self._ranges[:, None])


class ServiceMetrics:
    """What is counted of no model in particular."""

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        """By reason: whatever was refused, on any route. Connections add `slow` and `unread` to those of service/errors.py."""
        self.reloads: Counter[str] = Counter(ok=0, refused=0)
        """By outcome: model files that were taken in or refused."""
        self.in_flight = 0
        """Requests for predictions that are not answered yet."""


@dataclass(frozen=True)
class _Family:
    kind: Literal["counter", "gauge", "largest", "histogram", "hidden"]
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()


_MODEL = ("model", "version")
FAMILIES = {
    "errorbar_requests": _Family("counter", "Requests for predictions, by outcome: ok, or why not", (*_MODEL, "outcome")),
    "errorbar_rejected": _Family("counter", "Requests refused, on any route", ("reason",)),
    "errorbar_rows": _Family("counter", "Rows predicted", _MODEL),
    "errorbar_out_of_range_rows": _Family(
        "counter",
        "Rows outside the training range, with an unknown category, or missing a value that never was in training",
        _MODEL,
    ),
    "errorbar_reloads": _Family("counter", "Model files taken in (ok) or refused", ("outcome",)),
    "errorbar_request_seconds": _Family(
        "counter", "Time of requests, by phase: answered and refused in all; read, run and write of those answered",
        (*_MODEL, "phase"),
    ),
    "errorbar_request_duration_seconds": _Family("histogram", "From a request's last byte to its answer", _MODEL, DURATIONS),
    "errorbar_queue_duration_seconds": _Family("histogram", "Waiting for a run", _MODEL, DURATIONS),
    "errorbar_run_duration_seconds": _Family("histogram", "One run of a model", _MODEL, DURATIONS),
    "errorbar_run_rows": _Family("histogram", "Rows of one run", _MODEL, ROWS),
    "errorbar_predicted_std_share": _Family(
        "histogram", "Predicted std as a share of the target's training range", _MODEL, SHARES
    ),
    "errorbar_interval_width_share": _Family(
        "histogram", "Width of prediction intervals as a share of the target's training range", _MODEL, SHARES
    ),
    "errorbar_in_flight_requests": _Family("gauge", "Requests for predictions that are not answered yet", ()),
    "errorbar_queued_rows": _Family("gauge", "Rows that wait for a run or are in one", _MODEL),
    "errorbar_last_run_timestamp_seconds": _Family("largest", "Unix time of the last run", _MODEL),
    "errorbar_model_info": _Family("largest", "1 for every version that is served", (*_MODEL, "sha256", "device")),
    "errorbar_failed_versions": _Family("largest", "Versions whose newest file is refused, by model", ("model",)),
    "errorbar_up": _Family("gauge", "Processes that serve", ()),
    "errorbar_ready": _Family("gauge", "Processes that are ready", ()),
    "runs_by_rows": _Family("hidden", "Runs and their seconds, for the statistics extension", (*_MODEL, "rows")),
}  # fmt: skip
"""Every metric by name (counters are told with `_total`). Labels are names from the repository or from closed sets."""

Snapshot = dict[str, list[tuple[list[str], list[float]]]]
"""By family, labels and numbers: of a histogram its counts, then its sum; of most others one. It has a JSON form."""
Merged = dict[str, dict[tuple[str, ...], list[float]]]
"""By family, labels -> numbers."""


def snapshot(
    service: ServiceMetrics, models: "Iterable[ServedModel]", *, ready: bool, failed_versions: Mapping[str, int]
) -> Snapshot:
    """What one process has counted. failed_versions: of every model by name."""
    taken: Snapshot = {name: [] for name in FAMILIES}
    taken["errorbar_rejected"] = [([reason], [float(count)]) for reason, count in service.rejected.items()]
    taken["errorbar_reloads"] = [([outcome], [float(count)]) for outcome, count in service.reloads.items()]
    taken["errorbar_in_flight_requests"] = [([], [float(service.in_flight)])]
    taken["errorbar_up"] = [([], [1.0])]
    taken["errorbar_ready"] = [([], [float(ready)])]
    taken["errorbar_failed_versions"] = [([name], [float(count)]) for name, count in failed_versions.items()]
    for model in models:
        of = [model.name, str(model.version)]
        counted = model.metrics
        model.batcher.count()
        counted.settle()
        taken["errorbar_requests"] += [([*of, outcome], [float(count)]) for outcome, count in counted.requests.items()]
        taken["errorbar_request_seconds"] += [([*of, phase], [seconds]) for phase, seconds in counted.seconds.items()]
        taken["runs_by_rows"] += [([*of, str(rows)], list(runs)) for rows, runs in counted.runs_by_rows.items()]
        taken["errorbar_model_info"].append(([*of, model.sha256, model.device.name], [1.0]))
        numbers = {
            "errorbar_rows": counted.rows,
            "errorbar_out_of_range_rows": counted.unusual_rows,
            "errorbar_queued_rows": model.batcher.queued_rows,
            "errorbar_last_run_timestamp_seconds": counted.last_run,
        }
        for name, number in numbers.items():
            taken[name].append((of, [float(number)]))
        for name, histogram in counted.histograms.items():
            taken[name].append((of, [*map(float, histogram.counts), histogram.total]))
    return taken


def merged(snapshots: Iterable[Snapshot]) -> Merged:
    """Several processes' counts as those of one."""
    result: Merged = {name: {} for name in FAMILIES}
    for one in snapshots:
        for name, series in one.items():
            together = max if FAMILIES[name].kind == "largest" else operator.add
            for labels, numbers in series:
                before = result[name].get(tuple(labels), [0.0] * len(numbers))
                result[name][tuple(labels)] = [together(old, new) for old, new in zip(before, numbers, strict=True)]
    return result


class _Page(Collector):
    def __init__(self, values: Merged):
        self._values = values

    def collect(self) -> Iterator[Metric]:
        for name, family in FAMILIES.items():
            if family.kind == "hidden":
                continue
            kind = {"counter": CounterMetricFamily, "histogram": HistogramMetricFamily}.get(family.kind, GaugeMetricFamily)
            metric = kind(name, family.help, labels=family.labels)
            for labels, numbers in sorted(self._values[name].items()):
                if family.kind == "histogram":
                    bounds = [*map(str, family.bounds), "+Inf"]
                    buckets = list(zip(bounds, accumulate(numbers[:-1]), strict=True))
                    metric.add_metric(labels, buckets=buckets, sum_value=numbers[-1])
                else:
                    metric.add_metric(labels, *numbers)
            yield metric


def page(snapshots: Iterable[Snapshot]) -> bytes:
    """The metrics as Prometheus reads them."""
    return generate_latest(_Page(merged(snapshots)))


def statistics(snapshots: Iterable[Snapshot], versions: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The statistics of versions of models (name, version), in the form of the Open Inference Protocol's extension."""
    values = merged(snapshots)
    return {"model_stats": [_statistics(values, name, version) for name, version in versions]}


def _statistics(values: Merged, name: str, version: str) -> dict[str, Any]:
    of = (name, version)

    def number(family: str, *more: str) -> float:
        return values[family].get((*of, *more), [0.0])[0]

    def duration(count: float, seconds: float) -> dict[str, int]:
        return {"count": round(count), "ns": round(seconds * 1e9)}

    answered = number("errorbar_requests", OK)
    outcomes = {key[2]: count for key, (count,) in values["errorbar_requests"].items() if key[:2] == of}
    refused = sum(count for outcome, count in outcomes.items() if outcome != OK)
    *waits, waited = values["errorbar_queue_duration_seconds"].get(of, [0.0])
    *run_counts, _ = values["errorbar_run_rows"].get(of, [0.0])
    runs = sorted((int(key[2]), runs) for key, runs in values["runs_by_rows"].items() if key[:2] == of)
    nothing = duration(0, 0)
    return {
        "name": name,
        "version": version,
        "last_inference": round(number("errorbar_last_run_timestamp_seconds") * 1e3),
        "inference_count": round(number("errorbar_rows")),
        "execution_count": round(sum(run_counts)),
        "inference_stats": {
            "success": duration(answered, number("errorbar_request_seconds", "answered")),
            "fail": duration(refused, number("errorbar_request_seconds", "refused")),
            "queue": duration(sum(waits), waited),
            "compute_input": duration(answered, number("errorbar_request_seconds", "read")),
            "compute_infer": duration(answered, number("errorbar_request_seconds", "run")),
            "compute_output": duration(answered, number("errorbar_request_seconds", "write")),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [{"batch_size": rows, "compute_infer": duration(count, seconds)} for rows, (count, seconds) in runs],
    }
