"""Tables that the literature on predicted noise uses and that a formula can make, and one of real measurements."""

from collections.abc import Callable

import numpy as np
import polars as pl

from training.errors import TableError


def sine(*, rows: int = 1000, seed: int = 0) -> pl.DataFrame:
    """Noise that grows from the middle: x uniform on [-3, 3], y = sin(1.3 x) + (0.15 + 0.25 |x|) e.

    e here and below is standard normal. A classroom example, there with 256 rows to fit; 1000 leave as many after the
    rows for calibration, early stopping and test.
    """
    random = np.random.default_rng(seed)
    x = random.uniform(-3, 3, rows)
    y = np.sin(1.3 * x) + (0.15 + 0.25 * np.abs(x)) * random.standard_normal(rows)
    return pl.DataFrame({"x": x, "y": y})


def sinusoid(*, rows: int = 1000, seed: int = 0) -> pl.DataFrame:
    """Small noise of one size: x evenly spaced on [0, 12], y = 0.4 sin(2 pi x) + 0.01 e.

    Plain NLL fits it badly. Source: Seitzer et al. 2022 (beta-NLL), Fig. 1.
    """
    random = np.random.default_rng(seed)
    x = np.linspace(0, 12, rows)
    y = 0.4 * np.sin(2 * np.pi * x) + 0.01 * random.standard_normal(rows)
    return pl.DataFrame({"x": x, "y": y})


def heteroscedastic_sine(*, rows: int = 1000, seed: int = 0) -> pl.DataFrame:
    """Noise that grows with x: x uniform on [0, 10], y = x sin x + 0.3 e1 + 0.3 x e2, a std of 0.3 sqrt(1 + x^2).

    Source: Detlefsen et al. 2019, used again in Seitzer et al. 2022, Fig. 8.
    """
    random = np.random.default_rng(seed)
    x = random.uniform(0, 10, rows)
    e1, e2 = random.standard_normal((2, rows))
    return pl.DataFrame({"x": x, "y": x * np.sin(x) + 0.3 * e1 + 0.3 * x * e2})


def three_targets(*, rows: int = 1000, seed: int = 0) -> pl.DataFrame:
    """One line, with even noise, growing noise, and growing noise around a wave: x uniform on [0, 20].

    y1 = 2 x + 0.3 e1, y2 = 2 x + 0.3 |x| e2, y3 = 2 x + 5 sin(x / 2) + 0.3 |x| e3.
    """
    random = np.random.default_rng(seed)
    x = random.uniform(0, 20, rows)
    e1, e2, e3 = random.standard_normal((3, rows))
    return pl.DataFrame(
        {
            "x": x,
            "y1": 2 * x + 0.3 * e1,
            "y2": 2 * x + 0.3 * np.abs(x) * e2,
            "y3": 2 * x + 5 * np.sin(x / 2) + 0.3 * np.abs(x) * e3,
        }
    )


def diabetes(*, rows: int = 442, seed: int = 0) -> pl.DataFrame:
    """442 patients as measured, and how far their diabetes had progressed a year later (`progression`).

    Fewer rows are a random choice by `seed`; the whole table keeps its order. `sex` is coded 1 and 2 in the source,
    which does not say which is which, so it is the text `group 1` or `group 2`. Comes with scikit-learn.

    Source: Efron, Hastie, Johnstone and Tibshirani 2004, Least Angle Regression, Annals of Statistics 32, 407-499.
    """
    from sklearn.datasets import load_diabetes

    values, progression = load_diabetes(return_X_y=True, scaled=False)
    if rows > len(values):
        raise TableError(f"the dataset diabetes has {len(values)} rows, not {rows}")
    names = ["age", "sex", "bmi", "blood_pressure", "total_cholesterol", "ldl", "hdl", "cholesterol_ratio"]
    names += ["log_triglycerides", "glucose"]
    frame = pl.DataFrame(values, schema=names).with_columns(
        pl.format("group {}", pl.col("sex").cast(pl.Int64)).alias("sex"),
        pl.col("age", "glucose").cast(pl.Int64),
        pl.Series("progression", progression),
    )
    return frame if rows == len(values) else frame.sample(rows, seed=seed)


DATASETS: dict[str, Callable[..., pl.DataFrame]] = {
    "sine": sine,
    "sinusoid": sinusoid,
    "heteroscedastic_sine": heteroscedastic_sine,
    "three_targets": three_targets,
    "diabetes": diabetes,
}


def dataset(name: str, *, rows: int | None = None, seed: int = 0) -> pl.DataFrame:
    """The table of that name, by default with its usual number of rows. Raises TableError for a name not in DATASETS."""
    if name not in DATASETS:
        raise TableError(f"there is no dataset {name!r}; there are {', '.join(DATASETS)}")
    if rows is not None and rows < 1:
        raise TableError(f"rows is {rows}, but a dataset has at least one")
    return DATASETS[name](seed=seed) if rows is None else DATASETS[name](rows=rows, seed=seed)
