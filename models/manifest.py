"""What is known about a model: the JSON document that travels inside the model file."""

from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.conformal import CalibrationMethod, Dependence, IntervalKind, largest_coverage
from models.distributions import Family

SCHEMA_VERSION = 1
"""The newest manifest that this code reads; raised when a reader of the old form would misread the new one."""

SAME_VALUE = 2.0**-22
"""Values of a target that differ by no larger share are one: float32 does not tell them apart."""

Kind = Literal["numeric", "boolean", "categorical", "datetime"]
Transform = Literal["identity", "log", "logit"]
EvaluationSource = Literal["test", "out_of_fold", "calibration"]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    # Infinity and NaN have no JSON form: a manifest that held one could not be read back.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Column(_Part):
    """One feature, in raw units. A row of `x` holds, for each kind:

    numeric: the value; boolean: 0 or 1; categorical: the index of the value in `categories`;
    datetime: seconds since 1970-01-01 UTC. NaN stands for a missing value and for an unknown category.
    """

    name: str
    kind: Kind
    unit: str | None = None
    description: str | None = None
    categories: list[str] | None = None
    minimum: float | None = None
    maximum: float | None = None
    quantiles: dict[str, float] = {}
    missing: Share = 0.0
    integer: bool = False
    """All training values were whole numbers (numeric), or the categories are (categorical)."""

    @model_validator(mode="after")
    def _categories_belong_to_categorical_columns(self) -> Self:
        if (self.kind == "categorical") != (self.categories is not None):
            raise ValueError(f"column {self.name!r}: `categories` belongs to a categorical column and only there")
        return self


class Target(_Part):
    """One predicted quantity. The network works on `transform(target)`; answers are in raw units."""

    name: str
    unit: str | None = None
    description: str | None = None
    transform: Transform = "identity"
    minimum: float
    maximum: float
    values: Annotated[list[float], Field(min_length=2)] | None = None
    """All values of a target of few ones (counts, ratings), ascending, two at least; None of any other."""


class Network(_Part):
    """Which network answers, and how it was fitted."""

    family: Family
    """Of the predictive distribution: the likeliest for the calibration residuals; without calibration, that of the loss."""
    degrees_of_freedom: list[float] | None = None
    """student_t: one constant per target."""
    loss: str
    options: dict[str, Any]
    """Every training option as it was used."""
    members: int
    parameters: int
    seed: int
    minimum_std: float
    maximum_std: float
    """Floor and cap of a member's std, as multiples of the (transformed) target's std over the training rows."""
    target_scale: list[float] | None = None
    """That std by target: the unit of the network's float32 arithmetic. None in files that do not tell it."""


class ResidualGroup(_Part):
    """The calibration residuals of one group of rows, or (value None) of all rows together."""

    value: str | None = None
    code: float | None = None
    """The value as `x` holds it: the category's index, or 0 and 1 for a boolean column."""
    residuals: list[list[float]]
    """[targets][rows], ascending: (transform(y) - location) / scale of the exported graph, signed."""
    scale_factor: list[float] | None = None
    """[targets]: the factor of this group's rows; None where it has none of its own (too few rows; an older file)."""

    @property
    def rows(self) -> int:
        """The number of calibration rows."""
        return len(self.residuals[0])


class Calibration(_Part):
    """What the intervals are made of. The same residuals stand in the graph as a constant.

    `groups[0]` holds all rows; with `group_column` the others hold one value of that column each, and a row whose
    value is not among them gets the interval of `groups[0]`.
    """

    method: CalibrationMethod
    interval: IntervalKind
    dependence: Dependence | None = None
    """Rows were split by group or by time: they are not exchangeable one by one, which weakens the guarantee."""
    group_column: str | None = None
    groups: Annotated[list[ResidualGroup], Field(min_length=1)]
    scale_factor: list[float]
    """[targets]: what maximum likelihood on all calibration residuals made of the network's std; far from 1 is a warning."""
    guarantee: str

    @property
    def rows(self) -> int:
        """The number of calibration rows of all groups together."""
        return self.groups[0].rows

    @property
    def exchangeable(self) -> bool:
        """Whether rows calibrated it that do not depend on each other: only then is it known what chance explains."""
        return self.method != "none" and self.dependence is None

    @property
    def scale_factors(self) -> list[list[float]]:
        """[groups][targets]: the scale factor of the rows of each group."""
        return [group.scale_factor or self.scale_factor for group in self.groups]

    @property
    def moment_groups(self) -> list[int]:
        """[groups]: the group whose residuals make mean and std of a transformed target, by the group of the row."""
        return [0 if group.scale_factor is None else number for number, group in enumerate(self.groups)]

    @property
    def common_coverage(self) -> float:
        """The largest coverage that every group supports; 0 where one supports none."""
        return largest_coverage(min(group.rows for group in self.groups), interval=self.interval)


class IntervalScores(_Part):
    """How the prediction intervals of one coverage did, on those rows whose calibration group supports it."""

    coverage: float
    observed_coverage: float
    mean_width: float
    interval_score: float
    rows: int | None = None
    """How many rows these are; None in older files, which do not say it."""


class Scores(_Part):
    """How the predictions of one target did: nll in nats; rmse, mae and crps in the target's unit; the others without one."""

    nll: float
    rmse: float
    mae: float
    r2: float | None
    crps: float
    calibration_error: float
    intervals: list[IntervalScores]
    pit_histogram: list[float]
    """Share of rows in each of equally wide bins of the probability integral transform; flat is calibrated."""


class Evaluation(_Part):
    """Scores by target, for the model and for what it has to beat."""

    rows: int
    source: EvaluationSource = "test"
    """Which rows were scored; neither fit nor early stopping of the networks that predicted a row has seen it.

    test: held out from everything; the served model as a whole was scored. calibration: held out from fitting; the served
    networks predicted them, and a row's interval is made from the residuals of other rows only. out_of_fold: the same, but
    predicted by other networks than the served ones, each fitted without a fold of the rows.

    For the last two, coverage, calibration error and PIT of all rows together are close to perfect by construction: they say
    nothing of the model. The other scores do.
    """
    targets: dict[str, Scores]
    baselines: dict[str, dict[str, Scores]] = {}
    """`constant` (mean and std of the fit rows) and `homoscedastic` (the same network fitted with one std for all rows)."""


class Origin(_Part):
    """Where the model comes from."""

    data: str
    data_sha256: str
    calibration_sha256: str | None = None
    """Of the table that calibrated the model anew; None where none has."""
    rows: int
    rows_by_use: dict[str, int]
    command: str
    git_revision: str | None
    libraries: dict[str, str]
    created: str
    """ISO 8601, UTC."""
    seconds: float


class Golden(_Part):
    """A few rows with the answers that the exported graph gave; a server repeats them before it takes the model in."""

    x: list[list[float | None]]
    coverage: list[float]
    outputs: dict[str, Any]
    """By output name, nested lists of the output's shape; all finite, since `coverage` holds supported values only."""
    tolerance: float
    """Largest difference allowed, relative to the std of the row."""


class Manifest(_Part):
    """Everything a server or a reader must know about a model file, and nothing about where it runs."""

    schema_version: Literal[1] = 1
    columns: Annotated[list[Column], Field(min_length=1)]
    targets: Annotated[list[Target], Field(min_length=1)]
    network: Network
    calibration: Calibration
    default_coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9
    evaluation: Evaluation | None
    origin: Origin
    golden: Golden

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        for what, names in (("column", self.feature_names), ("target", self.target_names)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} names must differ: {', '.join(twice)}")
        for group in self.calibration.groups:
            if len(group.residuals) != len(self.targets):
                raise ValueError(f"calibration has residuals of {len(group.residuals)} targets, not {len(self.targets)}")
        if len(self.targets) > 1 and "warnings" in self.target_names:
            raise ValueError("with several targets none may be called 'warnings': answers hold the warnings of a row there")
        column = self.calibration.group_column
        if column is not None and column not in self.feature_names:
            raise ValueError(f"calibration group column {column!r} is not a feature")
        return self

    @property
    def feature_names(self) -> list[str]:
        """Names of the features in the order of `x`."""
        return [column.name for column in self.columns]

    @property
    def target_names(self) -> list[str]:
        """Names of the targets in the order of the outputs."""
        return [target.name for target in self.targets]

    def calibration_groups(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
        """The index in `calibration.groups` of the group that each row of x [n, features] belongs to: [n], 0 where to none."""
        numbers = np.zeros(len(x), dtype=np.int64)
        if self.calibration.group_column is not None:
            values = x[:, self.feature_names.index(self.calibration.group_column)]
            for number, group in enumerate(self.calibration.groups[1:], start=1):
                numbers[values == group.code] = number
        return numbers

    def residuals(self, group: int = 0) -> NDArray[np.float64]:
        """The sorted signed residuals of a calibration group: [targets, rows]."""
        return np.array(self.calibration.groups[group].residuals, dtype=np.float64)
