"""The methods and the protocol of the beta-NLL paper's comparison on the UCI tables (Seitzer et al. 2022, appendix B.4).

A learning rate of RATES and a number of epochs are chosen on the validation rows of a split; a fresh network then trains on all
its train rows, standardised anew, for that long, and is tested once. One hidden layer of 50 rectified units (100 on a large
set), Adam at a constant rate, batches of 256. As in the authors' code: martius-lab/beta-nll, March 2022.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.quality.paper_heads import BETA_NLL, MOMENT_MATCHING, MSE, STUDENT_T, Head, raw_distribution
from benchmarks.quality.paper_networks import BATCH, Trained, Trial, predictive, scaling, train
from benchmarks.quality.paper_variational import VBEM, VBEM_STAR, XVAMP, XVAMP_STAR
from benchmarks.quality.scores import Independent, Score, scored
from benchmarks.quality.sets import Set, Split

RATES = (1e-4, 3e-4, 7e-4, 1e-3, 3e-3, 7e-3)
UPDATES, LARGE_UPDATES, LARGE_ROWS = 20_000, 100_000, 5_000
"""Updates at most, and the rows from which it is five times that."""
BETAS = ("beta_nll_0", "beta_nll_0.25", "beta_nll_0.5", "beta_nll_0.75", "beta_nll_1")
ALIASES = {"nll": "beta_nll_0"}
"""The same network under another name: trained once."""
FAMILIES: tuple[tuple[Head, tuple[str, ...]], ...] = (
    (BETA_NLL, BETAS),
    (MOMENT_MATCHING, ("moment_matching",)),
    (MSE, ("mse",)),
    (STUDENT_T, ("student_t",)),
    (XVAMP, ("xvamp",)),
    (XVAMP_STAR, ("xvamp_star",)),
    (VBEM, ("vbem",)),
    (VBEM_STAR, ("vbem_star",)),
)
"""Methods that train as one stack, with their head."""
METHODS = (*ALIASES, *(method for _, methods in FAMILIES for method in methods))


def run(data: Set, methods: Sequence[str], *, full_grid: bool, most_updates: int | None = None) -> Iterator[Score]:
    """The scores of `methods` on every split of `data`, those of one stack of networks as it gets ready.

    full_grid: the paper's protocol, rate and epochs chosen for every split. Otherwise the rate is that of the first split, and
    only the epochs are chosen for every split: a fifth of the work. most_updates: instead of the paper's 20 000 (100 000 on
    more than 5 000 rows). Raises ValueError for a method that is not in METHODS.
    """
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise ValueError(f"the paper's comparison has no method {unknown[0]!r}; it has {', '.join(METHODS)}")
    names: dict[str, list[str]] = {}
    for name in dict.fromkeys(methods):
        names.setdefault(ALIASES.get(name, name), []).append(name)
    updates = most_updates or (LARGE_UPDATES if len(data.x) > LARGE_ROWS else UPDATES)
    for head, members in FAMILIES:
        wanted = [method for method in members if method in names]
        if not wanted:
            continue
        began = time.perf_counter()
        chosen = choose(data, head, wanted, full_grid=full_grid, updates=updates)
        trained = train(data, head, chosen, held_out=False, seed=1)
        seconds = (time.perf_counter() - began) / len(chosen)
        for trial, network in zip(chosen, trained, strict=True):
            predicted = predict(data, head, data.splits[trial.split], network)
            for name in names[trial.method]:
                yield scored(data, data.splits[trial.split], name, predicted, seconds=seconds)


def choose(data: Set, head: Head, methods: Sequence[str], *, full_grid: bool, updates: int) -> list[Trial]:
    """The rate and the epochs of every method on every split, by validation rows alone."""
    tried = range(len(data.splits) if full_grid else 1)
    grid = [
        Trial(s, method, rate, epochs_at_most(data.splits[s], updates=updates))
        for s in tried
        for method in methods
        for rate in RATES
    ]
    best: dict[tuple[int, str], tuple[float, Trial]] = {}
    for trial, found in zip(grid, train(data, head, grid, held_out=True), strict=True):
        key = trial.split, trial.method
        if key not in best or found.score < best[key][0]:
            best[key] = found.score, trial._replace(epochs=found.epochs)
    chosen = [trial for _, trial in best.values()]
    if not full_grid:
        others = [
            trial._replace(split=s, epochs=epochs_at_most(data.splits[s], updates=updates))
            for trial in chosen
            for s in range(1, len(data.splits))
        ]
        trained = train(data, head, others, held_out=True)
        chosen += [trial._replace(epochs=one.epochs) for trial, one in zip(others, trained, strict=True)]
    return sorted(chosen)


def epochs_at_most(split: Split, *, updates: int) -> int:
    """Epochs without the validation rows that hold at least `updates` updates."""
    rows = len(split.train) - len(split.validation)
    return -(-updates // (rows // min(rows, BATCH)))


def predict(data: Set, head: Head, split: Split, network: Trained) -> Independent:
    """The distribution of the test rows' targets."""
    standard = scaling(data, split.train)
    mean = predictive(head, network.tensors, standard.inputs(data.x[split.train])).mean[0].T.double().numpy()
    target = (data.y[split.train] - standard.y_centre) / standard.y_scale
    return raw_distribution(
        predictive(head, network.tensors, standard.inputs(data.x[split.test])),
        centre=standard.y_centre,
        scale=standard.y_scale,
        residual=np.sqrt(np.mean((target - mean) ** 2, axis=0)),
    )
