"""The standard tables and their splits: a folder of `<name>.csv[.gz]` with `splits/<name>.npz` beside them."""

import gzip
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Rows = NDArray[np.int64]

STANDARD_SUFFIX = ":hl"
"""`energy` means all targets on the beta-NLL paper's splits; `energy:hl` the standard splits and the first target alone."""
HL_PROTOCOLS = ("hl", "hl-recipe")


@dataclass(frozen=True)
class Split:
    """One division of a set's rows, ascending row numbers. validation: the train rows that the paper's protocol holds out."""

    number: int
    train: Rows
    validation: Rows
    test: Rows


@dataclass(frozen=True)
class Set:
    """A table: x [n, columns], y [n, targets], raw units.

    protocols: those of reference_results.csv on the same splits and targets.
    """

    name: str
    dataset: str
    protocols: tuple[str, ...]
    columns: list[str]
    targets: list[str]
    x: Values
    y: Values
    splits: list[Split]


def set_names(folder: Path) -> list[str]:
    """All sets of a folder, in alphabetical order; one with the paper's own splits appears twice, also as `<name>:hl`."""
    names = []
    for file in sorted((folder / "splits").glob("*.npz")):
        names.append(file.stem)
        with np.load(file) as keys:
            if "seitzer_test" in keys:
                names.append(file.stem + STANDARD_SUFFIX)
    if not names:
        raise FileNotFoundError(f"{folder}: holds no splits/<name>.npz, so no set can be read from it")
    return names


def read_set(folder: Path, name: str, *, splits: int | None = None, targets: int | None = None) -> Set:
    """The set `name`, one of `set_names`, with its first `splits` splits (default: all).

    targets: how many of the last columns are targets. By default the folder's README.md says it in the row of its table that
    begins with the file's name (file, rows, inputs, targets); without such a row there is one.
    """
    dataset = name.removesuffix(STANDARD_SUFFIX)
    if name not in set_names(folder):
        raise FileNotFoundError(f"{folder}: there is no set {name!r}; there are {', '.join(set_names(folder))}")
    header, values = _table(folder, dataset)
    with np.load(folder / "splits" / f"{dataset}.npz") as keys:
        several = "seitzer_test" in keys
        count = targets or _documented_targets(folder, dataset)
        prefix = "seitzer" if several and name == dataset else "hl"
        tests, validations = keys[f"{prefix}_test"], keys[f"{prefix}_val20"]
    inputs = len(header) - count
    kept = count if several and prefix == "seitzer" else 1
    everything = np.arange(len(values))
    chosen: Sequence[int] = range(len(tests) if splits is None else min(splits, len(tests)))
    return Set(
        name=name,
        dataset=dataset,
        protocols=((prefix,) if prefix == "seitzer" else HL_PROTOCOLS) if several else ("seitzer", *HL_PROTOCOLS),
        columns=header[:inputs],
        targets=header[inputs : inputs + kept],
        x=np.ascontiguousarray(values[:, :inputs]),
        y=np.ascontiguousarray(values[:, inputs : inputs + kept]),
        splits=[
            Split(
                number=s,
                train=np.setdiff1d(everything, tests[s]),
                validation=np.sort(validations[s]).astype(np.int64),
                test=np.sort(tests[s]).astype(np.int64),
            )
            for s in chosen
        ],
    )


def _table(folder: Path, dataset: str) -> tuple[list[str], Values]:
    plain = folder / f"{dataset}.csv"
    data = plain.read_bytes() if plain.exists() else gzip.decompress(plain.with_name(f"{plain.name}.gz").read_bytes())
    header, _, rows = data.decode().partition("\n")
    return header.rstrip("\r").split(","), np.loadtxt(rows.splitlines(), delimiter=",", ndmin=2)


def _documented_targets(folder: Path, dataset: str) -> int:
    readme = folder / "README.md"
    row = re.compile(rf"^\| `{re.escape(dataset)}\.csv(?:\.gz)?` \| \d+ \| \d+ \| (\d+) \|", re.MULTILINE)
    found = row.search(readme.read_text(encoding="utf-8")) if readme.exists() else None
    return int(found.group(1)) if found else 1
