"""`python -m benchmarks.uci --data FOLDER`: the standard tables, with errorbar, the beta-NLL paper's methods and the peers."""

import argparse
import csv
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import astuple, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, versions
from benchmarks.options import count, some_of
from benchmarks.quality import paper, peers, product
from benchmarks.quality.scores import Score
from benchmarks.quality.sets import Set, read_set, set_names
from benchmarks.quality.summary import read_published, read_results, summary

METHODS = ("errorbar", *paper.METHODS, *peers.PEERS)
"""Those of a run that names none."""
ALL_METHODS = (*product.SIZES, *paper.METHODS, *peers.PEERS)

_INTERRUPTED = 130
_LIBRARIES = ("errorbar", "numpy", "scipy", "torch", "onnxruntime", "scikit-learn", "ngboost", "catboost", "mapie")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")


@dataclass(frozen=True)
class Job:
    """What one worker does in one go: some methods on some splits (their numbers) of a set."""

    folder: Path
    dataset: str
    methods: tuple[str, ...]
    splits: tuple[int, ...]
    full_grid: bool

    def __str__(self) -> str:
        return f"{self.dataset}, {', '.join(self.methods)}, split {', '.join(map(str, self.splits))}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, write the summary, print it.

    The status is 1 where a method failed, 2 for a wrong argument, 130 for Ctrl-C.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        failed = 0 if options.summarise else _run(options)
        page = _summary(options.data, options.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"stopped; {options.out} keeps what is done, and the same command goes on from there", file=sys.stderr)
        return _INTERRUPTED
    (options.out / "summary.md").write_text(page, encoding="utf-8")
    print(page)
    return 1 if failed else 0


def jobs(
    folder: Path,
    sets: Iterable[str],
    methods: Sequence[str],
    *,
    splits: int | None,
    full_grid: bool,
    done: Collection[tuple[str, str, int]],
) -> Iterator[Job]:
    """All that is not `done` (dataset, method, split), set by set; one job a split, save for what trains as one stack."""
    for name in sets:
        numbers = tuple(split.number for split in _set(folder, name).splits[:splits])
        missing = {method: [s for s in numbers if (name, method, s) not in done] for method in methods}
        for method in methods:
            if method not in paper.METHODS:
                yield from (Job(folder, name, (method,), (s,), full_grid) for s in missing[method])
        for _, members in paper.FAMILIES:
            stack = tuple(method for method in methods if paper.ALIASES.get(method, method) in members and missing[method])
            if stack:  # with all splits, even those that are done: the first one chooses the learning rate of all
                yield Job(folder, name, stack, numbers, full_grid)


def scores(job: Job) -> Iterator[Score]:
    """Does a job; a score as it gets ready."""
    data = _set(job.folder, job.dataset)
    data = replace(data, splits=[split for split in data.splits if split.number in job.splits])
    first = job.methods[0]
    if first in product.SIZES:
        return product.run(data, first)
    if first in peers.PEERS:
        return peers.run(data, first)
    return paper.run(data, job.methods, full_grid=job.full_grid)


def _run(options: argparse.Namespace) -> int:
    """Append the scores that results.csv does not have yet; the number of jobs that failed."""
    sets = options.sets or set_names(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    results, runs = options.out / "results.csv", options.out / "runs.jsonl"
    _check_protocol(runs, options)
    if not results.exists():
        results.write_text(",".join(field.name for field in fields(Score)) + "\n", encoding="utf-8")
    done = {(score.dataset, score.method, score.split) for score in read_results(results)}
    todo = list(
        jobs(
            options.data,
            sets,
            options.methods,
            splits=options.splits,
            full_grid=options.protocol == "paper",
            done=done,
        )
    )
    start, failed = time.perf_counter(), 0
    try:
        with results.open("a", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            for outcome in _outcomes(todo, workers=options.jobs):
                if isinstance(outcome, str):
                    failed += 1
                    print(f"failed: {outcome}", file=sys.stderr, flush=True)
                elif (key := (outcome.dataset, outcome.method, outcome.split)) not in done:
                    done.add(key)
                    writer.writerow(astuple(outcome))
                    stream.flush()
                    print(_line(outcome), file=sys.stderr, flush=True)
    finally:
        if todo:
            _record(runs, options, seconds=time.perf_counter() - start)
    return failed


def _outcomes(todo: Sequence[Job], *, workers: int) -> Iterator[Score | str]:
    """Scores as they get ready, and a sentence for every job that failed: it must not end the others."""
    if workers == 1:
        for job in todo:
            try:
                yield from scores(job)
            except Exception as error:  # noqa: BLE001 - told, and the status says so
                yield f"{job}: {error!r}"
        return
    # The workers, which start afresh, read it before they import what makes threads.
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = {pool.submit(_collected, job): job for job in todo}
        for future in as_completed(futures):
            raised = future.exception()
            if raised is None:
                yield from future.result()
            else:
                yield f"{futures[future]}: {raised!r}"
    finally:
        pool.shutdown(cancel_futures=True)


def _collected(job: Job) -> list[Score]:
    return list(scores(job))


@functools.lru_cache(maxsize=1)
def _set(folder: Path, name: str) -> Set:
    """The set with all its splits; a worker mostly does the jobs of one after the other."""
    return read_set(folder, name)


def _summary(folder: Path, out: Path) -> str:
    results = read_results(out / "results.csv")
    if not results:
        raise ValueError(f"{out / 'results.csv'}: holds no results yet, so there is nothing to summarise")
    sets = {name: read_set(folder, name) for name in dict.fromkeys(score.dataset for score in results)}
    runs = _recorded(out / "runs.jsonl")
    facts = [f"Training, all methods and splits: {sum(score.seconds for score in results):.0f} s"]
    if runs:
        facts.append(f"Wall clock, runs taken together: {sum(run['seconds'] for run in runs):.0f} s")
        for word, key in (("Machine", "machine"), ("Versions", "versions"), ("Date", "date"), ("Jobs at a time", "jobs")):
            facts.append(f"{word}: {'; '.join(dict.fromkeys(str(run[key]) for run in runs))}")
        facts += [f"Protocol of the paper's methods: {name}" for name in dict.fromkeys(r["protocol"] for r in runs) if name]
    else:
        facts.append("Machine, versions and date: not known, since runs.jsonl is not there")
    return summary(results, read_published(folder), sets, facts=facts)


def _check_protocol(runs: Path, options: argparse.Namespace) -> None:
    """Rows of one method by two protocols must not stand in one file, which could not tell them apart."""
    before = {run["protocol"] for run in _recorded(runs)} - {None}
    if _protocol(options) is not None and before - {options.protocol}:
        raise ValueError(
            f"{options.out}: the paper's methods ran there with --protocol {before.pop()}, not {options.protocol}; "
            "give --out another folder"
        )


def _protocol(options: argparse.Namespace) -> str | None:
    return str(options.protocol) if set(options.methods) & set(paper.METHODS) else None


def _record(runs: Path, options: argparse.Namespace, *, seconds: float) -> None:
    run = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "versions": versions(_LIBRARIES),
        "jobs": options.jobs,
        "protocol": _protocol(options),
        "seconds": round(seconds, 1),
    }
    with runs.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(run) + "\n")


def _recorded(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in runs.read_text(encoding="utf-8").splitlines()] if runs.exists() else []


def _line(score: Score) -> str:
    return (
        f"{score.dataset} {score.method} split {score.split}: LL {score.ll:.3f}, RMSE {score.rmse:.4g}, "
        f"coverage {score.coverage90:.3f}, width {score.width90:.4g}, {score.seconds:.1f} s"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uci", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="tables, splits and published figures")
    parser.add_argument("--sets", type=_names, metavar="A,B", help="default: all of the folder")
    parser.add_argument("--splits", type=count, metavar="N", help="the first N splits of each set; default: all")
    parser.add_argument(
        "--methods",
        type=some_of(ALL_METHODS, "method"),
        default=METHODS,
        metavar="M1,M2",
        help=f"of {', '.join(ALL_METHODS)}; default: all but errorbar_small and errorbar_large",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--protocol",
        choices=("first-split", "paper"),
        default="first-split",
        help="learning rate of the paper's methods, by validation rows: of the first split, or of each as in the paper",
    )
    parser.add_argument("--jobs", type=count, default=1, metavar="J", help="worker processes, of one thread each if several")
    parser.add_argument("--summarise", action="store_true", help="run nothing: build the summary of DIR/results.csv anew")
    return parser


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
