"""Every training option, with its default: one model for the command line, the TOML file and the manifest."""

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.conformal import IntervalKind
from models.manifest import Transform
from training.errors import OptionError

Loss = Literal["beta_nll", "nll", "mse", "homoscedastic", "moment_matching", "faithful", "crps", "laplace", "student_t"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TableOptions(_Options):
    """Which columns of the table are what."""

    target: Annotated[list[str], Field(min_length=1, description="Column to predict; give it again for several targets")]
    exclude: Annotated[list[str], Field(description="Column that is no feature (an id, a leak of the target)")] = []
    categorical: Annotated[list[str], Field(description="Column of integer codes that have no order")] = []
    group: Annotated[
        str | None, Field(description="Column whose rows stay together in every split (a patient, a batch); no feature")
    ] = None
    time: Annotated[
        str | None, Field(description="Column that orders the rows: test and calibration rows are the latest; no feature")
    ] = None
    weight: Annotated[str | None, Field(description="Column of row weights for the fit; no feature")] = None
    transform: Annotated[
        list[str], Field(description="log or logit for all targets, or TARGET=log for one: the network works on that scale")
    ] = []
    unit: Annotated[list[str], Field(description="COLUMN=UNIT, for the report, the metadata and the API's schema")] = []
    description: Annotated[list[str], Field(description="COLUMN=TEXT, what the column means; shown where the unit is")] = []
    drop_missing_target: Annotated[bool, Field(description="Leave out rows without a target")] = False
    delimiter: Annotated[str, Field(min_length=1, description="Delimiter of a CSV file; tab is a word for it")] = ","

    def transforms(self) -> dict[str, Transform]:
        """The transform of every target, in the targets' order. Raises OptionError."""
        known: dict[str, Transform] = {name: name for name in get_args(Transform)}
        chosen = dict.fromkeys(self.target, known["identity"])
        for entry in self.transform:
            name, _, transform = entry.rpartition("=")
            if transform not in known:
                raise OptionError(f"--transform {entry}: the transforms are identity, log and logit")
            if name and name not in self.target:
                raise OptionError(f"--transform {entry}: {name!r} is not a target ({', '.join(self.target)})")
            chosen |= dict.fromkeys([name] if name else self.target, known[transform])
        return chosen


SIZES: dict[str, dict[str, int]] = {
    "small": {"members": 4, "width": 64, "depth": 2, "frequencies": 8, "embedding_outputs": 4},
    "default": {},
    "large": {"members": 16, "width": 256},
}
"""What `size` changes of the other defaults; benchmarks/results/sizes.md shows what each costs and gains."""


class NetworkOptions(_Options):
    """The network and how it is fitted."""

    size: Annotated[
        Literal["small", "default", "large"],
        Field(description="small serves faster, large has more capacity: sets members, width, depth and embedding"),
    ] = "default"
    loss: Annotated[Loss, Field(description="Training loss; the best epoch always is by held-out CRPS")] = "beta_nll"
    beta: Annotated[float, Field(ge=0, le=1, description="beta of beta_nll: 0 is nll, 1 trains the mean as mse does")] = 0.5
    members: Annotated[Count, Field(description="Members of the ensemble")] = 8
    width: Annotated[Count, Field(description="Units of a hidden layer")] = 128
    depth: Annotated[Count, Field(description="Hidden layers")] = 3
    activation: Annotated[Literal["silu", "relu", "tanh"], Field(description="Activation of the hidden layers")] = "silu"
    dropout: Annotated[
        Share | None, Field(description="Dropout in the hidden layers; default 0.1, or 0 where a short trial is clearly better")
    ] = None
    frequencies: Annotated[int, Field(ge=0, description="Frequencies of a numeric feature's periodic embedding; 0: none")] = 16
    embedding_outputs: Annotated[Count, Field(description="Outputs of a numeric feature's embedding")] = 8
    frequency_scale: Annotated[
        Positive | None,
        Field(
            description="Standard deviation of the initial frequencies; default 0.3, or 1 or 3 where a trial is clearly better"
        ),
    ] = None
    learning_rate: Annotated[Positive, Field(description="Peak learning rate of AdamW (warm-up, then cosine to 0)")] = 4e-3
    weight_decay: Annotated[float, Field(ge=0, description="Decoupled weight decay")] = 1e-2
    batch_rows: Annotated[Count | None, Field(description="Rows a batch; default grows with the table, 32 to 1024")] = None
    epochs: Annotated[Count | None, Field(description="Epochs; default about 3 000 updates, 12 to 400 epochs")] = None
    patience: Annotated[
        Count | None,
        Field(
            description="Stop after so many epochs in which the held-out CRPS gained under 0.1 %; default a quarter of all, "
            "at least 10"
        ),
    ] = None
    minimum_std: Annotated[Positive, Field(description="Floor of a member's std, relative to the target's")] = 1e-3
    maximum_std: Annotated[float, Field(gt=1, le=1e6, description="Cap of a member's std, relative to the target's")] = 10.0
    seed: Annotated[int, Field(ge=0, lt=2**64, description="Seed of splits, weights and batches")] = 0
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="Where to train; auto takes a GPU if there is one")] = (
        "auto"
    )

    @model_validator(mode="after")
    def _apply_size(self) -> Self:
        for name, value in SIZES[self.size].items():
            if name not in self.model_fields_set:
                object.__setattr__(self, name, value)  # frozen, and not given: so no part of model_fields_set either
        return self

    @model_validator(mode="after")
    def _floor_under_cap(self) -> Self:
        if self.minimum_std >= self.maximum_std:
            raise ValueError(f"minimum_std {self.minimum_std:g} must be below maximum_std {self.maximum_std:g}")
        return self


class CalibrationOptions(_Options):
    """How rows are shared out, and how the intervals are calibrated."""

    calibration: Annotated[
        Literal["auto", "split", "cross", "none"],
        Field(
            description="split: rows held out for it; cross: out-of-fold residuals of all rows; auto: cross under 2 000 rows"
        ),
    ] = "auto"
    interval: Annotated[IntervalKind, Field(description="Symmetric about the mean, or equal probability on both sides")] = (
        "symmetric"
    )
    calibrate_by: Annotated[
        str | None, Field(description="Categorical or boolean feature whose values are calibrated apart")
    ] = None
    folds: Annotated[int, Field(ge=2, description="Folds of cross calibration")] = 5
    fold_members: Annotated[
        Count, Field(description="Networks fitted without each fold, for cross calibration; no more than members")
    ] = 4
    calibration_share: Annotated[Share, Field(description="Share of rows held out by split calibration (at most 10 000)")] = 0.2
    stop_share: Annotated[Share, Field(description="Share of a member's rows held out for early stopping")] = 0.1
    test_share: Annotated[
        Share, Field(description="Share of rows held out from everything, to measure with; 0: calibration rows measure")
    ] = 0.0
    coverage: Annotated[float, Field(gt=0, lt=1, description="Coverage of an interval when a request names none")] = 0.9
    baselines: Annotated[bool, Field(description="Also fit the homoscedastic network that the report compares with")] = True


class FitOptions(CalibrationOptions, NetworkOptions, TableOptions):  # pydantic puts the fields of the last base first
    """All options of `python -m training fit`."""

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> Self:
        idle = {
            "beta": self.loss != "beta_nll" and f"--loss {self.loss} has no beta",
            "embedding_outputs": not self.frequencies and "--frequencies 0 leaves the embedding out",
            "frequency_scale": not self.frequencies and "--frequencies 0 leaves the embedding out",
            "folds": self.calibration in ("split", "none") and f"--calibration {self.calibration} has no folds",
            "fold_members": self.calibration in ("split", "none") and f"--calibration {self.calibration} has no folds",
            "calibration_share": self.calibration in ("cross", "none") and f"--calibration {self.calibration} holds none out",
            "calibrate_by": self.calibration == "none" and "--calibration none takes no calibration rows",
        }
        for name in self.model_fields_set:
            if idle.get(name):
                raise ValueError(f"--{name.replace('_', '-')} has no effect here: {idle[name]}")
        return self

    @model_validator(mode="after")
    def _folds_are_predicted_no_better_than_new_rows(self) -> Self:
        if self.fold_members > self.members:
            if "fold_members" in self.model_fields_set:
                raise ValueError(
                    f"fold_members {self.fold_members} is more than members {self.members}: intervals would be calibrated on "
                    "more networks than predict new rows, and be too narrow for them"
                )
            object.__setattr__(self, "fold_members", self.members)  # frozen, and not given
        return self

    @model_validator(mode="after")
    def _answers_can_name_the_targets(self) -> Self:
        if len(self.target) > 1 and "warnings" in self.target:
            raise ValueError("--target warnings: with several targets, answers hold warnings under that name; rename it")
        return self


def column_words(entries: Sequence[str], *, option: str, names: Sequence[str]) -> dict[str, str]:
    """COLUMN=TEXT entries as a dictionary; a column's own name may hold `=`. Raises OptionError for an unknown column."""
    words = {}
    for entry in entries:
        known = [name for name in names if entry.startswith(f"{name}=")]
        if not known:
            near = difflib.get_close_matches(entry.partition("=")[0], names, n=1)
            raise OptionError(
                f"--{option} {entry}: is not COLUMN=TEXT for a column" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        name = max(known, key=len)
        words[name] = entry[len(name) + 1 :]
    return words


def fit_options(given: dict[str, Any], *, config: Path | None = None) -> FitOptions:
    """The options from a TOML file and, above them, those given on the command line (None means not given).

    Keys of the file are the options' names with `-` or `_`. Raises OptionError for an unknown key and for a bad value.
    """
    values = _from_toml(config) if config else {}
    values |= {name: value for name, value in given.items() if value is not None}
    try:
        return FitOptions.model_validate(values)
    except ValidationError as error:
        raise OptionError("; ".join(_sentence(problem) for problem in error.errors())) from error


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise OptionError(f"{path}: is not TOML ({error})") from error
    values: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in FitOptions.model_fields:
            near = difflib.get_close_matches(name, FitOptions.model_fields, n=1)
            advice = f"; did you mean {near[0]!r}?" if near else f"; the options are {', '.join(FitOptions.model_fields)}"
            raise OptionError(f"{path}: there is no option {key!r}{advice}")
        if name in values:
            raise OptionError(f"{path}: the option {key!r} is given twice, with - and with _")
        takes_list = isinstance(FitOptions.model_fields[name].get_default(call_default_factory=True), list) or name == "target"
        values[name] = [value] if takes_list and isinstance(value, str) else value
    return values


def _sentence(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"--{name.replace('_', '-')} is needed"
    message = problem["msg"].removeprefix("Value error, ")
    if not name:
        return str(message)
    return f"--{name.replace('_', '-')} {problem['input']!r}: {message[0].lower()}{message[1:]}"
