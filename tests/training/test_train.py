from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from models.artifact import open_model, read_manifest
from models.manifest import Column
from training import train as wiring
from training.config import FitOptions
from training.datasets import dataset
from training.errors import OptionError, TableError
from training.fit import Epoch
from training.splits import plan_rows
from training.train import Progress, train

SMALL = {
    "members": 4,
    "folds": 2,
    "fold_members": 2,
    "width": 16,
    "depth": 1,
    "frequencies": 4,
    "embedding_outputs": 2,
    "epochs": 8,
    "batch_rows": 64,
}


@pytest.fixture
def mixed_table(tmp_path):
    """Every kind of column, holes in some, and a target that depends on all."""
    rng = np.random.default_rng(0)
    n = 400
    colour = rng.choice(["red", "green", "blue"], n)
    size, height = rng.normal(size=n), rng.lognormal(size=n)
    day = rng.integers(0, 900, n)
    is_open = rng.random(n) < 0.5
    y = 2 * size + np.log(height) + (colour == "red") + is_open + np.sin(day / 58) + 0.3 * rng.normal(size=n)
    frame = pl.DataFrame(
        {
            "size": [None if hole else value for value, hole in zip(size, rng.random(n) < 0.1, strict=True)],
            "height": height,
            "colour": [None if hole else value for value, hole in zip(colour, rng.random(n) < 0.1, strict=True)],
            "open": is_open,
            "day": [f"{np.datetime64('2020-01-01') + number}" for number in day],
            "batch": rng.integers(0, 40, n),
            "share": rng.random(n),
            "y": y,
            "price": np.exp(y / 4),
        }
    )
    path = tmp_path / "mixed.csv"
    frame.write_csv(path)
    return path


def trained(path, tmp_path, **options):
    values = {"target": ["y"], **SMALL, "baselines": False} | options
    if values.get("calibration") in ("split", "none"):
        del values["folds"], values["fold_members"]
    train(path, FitOptions(**values), output=tmp_path / "model.onnx", command="test")
    return open_model(tmp_path / "model.onnx")


def test_a_table_with_every_kind_of_column_becomes_a_model_that_beats_the_constant(mixed_table, tmp_path):
    options = {"exclude": ["price"], "group": "batch", "weight": "share", "baselines": True, "epochs": 60}
    run, manifest = trained(mixed_table, tmp_path, **options)
    assert [column.kind for column in manifest.columns] == ["numeric", "numeric", "categorical", "boolean", "datetime"]
    evaluation = manifest.evaluation
    assert set(evaluation.baselines) == {"constant", "homoscedastic"}
    assert evaluation.targets["y"].rmse < 0.7 * evaluation.baselines["constant"]["y"].rmse
    assert evaluation.targets["y"].nll < evaluation.baselines["constant"]["y"].nll
    assert (evaluation.source, evaluation.rows) == ("out_of_fold", 400)
    answers = run(np.full((1, 5), np.nan), np.array([0.9]))
    assert all(np.isfinite(values).all() for values in answers.values()), "a row with everything missing has an answer"
    report = (tmp_path / "model.html").read_text()
    assert "colour" in report


def test_the_manifest_says_what_was_done(mixed_table, tmp_path):
    words = {"unit": ["height=m", "y=MPa"], "description": ["height=above ground"]}
    _, manifest = trained(mixed_table, tmp_path, exclude=["price", "batch", "share"], seed=3, coverage=0.8, **words)
    assert (manifest.columns[1].unit, manifest.columns[1].description, manifest.targets[0].unit) == ("m", "above ground", "MPa")
    assert manifest.calibration.method == "cross"
    assert manifest.calibration.rows == 400
    assert manifest.default_coverage == 0.8
    assert manifest.network.seed == 3
    assert manifest.network.options["epochs"] == SMALL["epochs"]
    assert manifest.origin.data == "mixed.csv"
    assert manifest.origin.rows == 400
    assert manifest.origin.rows_by_use == {"fit": 360, "early stopping": 40, "calibration": 400, "test": 0}
    assert manifest.network.options["dropout"] in (0.0, 0.1)
    assert manifest.network.options["frequency_scale"] in (0.3, 1.0, 3.0)
    assert manifest.origin.libraries["torch"]
    assert "CV+" in manifest.calibration.guarantee


def test_the_same_seed_gives_the_same_answers(mixed_table, tmp_path):
    x, coverage = np.zeros((3, 5)), np.array([0.9])
    (tmp_path / "again").mkdir()
    first, _ = trained(mixed_table, tmp_path, exclude=["price", "batch", "share"])
    second, _ = trained(mixed_table, tmp_path / "again", exclude=["price", "batch", "share"])
    for name, values in first(x, coverage).items():
        np.testing.assert_array_equal(values, second(x, coverage)[name])


def test_a_model_calibrated_by_group_takes_no_family_of_heavy_tails_from_scales_that_differ(tmp_path):
    rng = np.random.default_rng(0)
    noisy = rng.integers(2, size=600)
    frame = pl.DataFrame({"a": rng.normal(size=600), "noisy": noisy == 1, "y": (1 + 9 * noisy) * rng.normal(size=600)})
    frame.write_csv(tmp_path / "table.csv")
    found = [trained(tmp_path / "table.csv", tmp_path, loss="homoscedastic", **by)[1] for by in ({}, {"calibrate_by": "noisy"})]
    assert [manifest.network.family for manifest in found] == ["student_t", "gaussian"]


@pytest.mark.parametrize("calibration", ["split", "cross"])
def test_without_the_baselines_network_the_constant_remains(mixed_table, tmp_path, calibration):
    _, manifest = trained(mixed_table, tmp_path, calibration=calibration)
    assert list(manifest.evaluation.baselines) == ["constant"]
    assert manifest.evaluation.baselines["constant"]["y"].nll > manifest.evaluation.targets["y"].nll


def test_the_values_of_test_rows_change_nothing_but_the_evaluation(tmp_path):
    frame = dataset("sine", rows=300).with_row_index("moment")  # ordered by time, so that the test rows are known
    frame.write_csv(tmp_path / "one.csv")
    frame.with_columns(y=pl.when(pl.col("moment") >= 270).then(99.0).otherwise("y")).write_csv(tmp_path / "two.csv")
    options = {"target": ["y"], "time": "moment", "test_share": 0.1}
    (tmp_path / "two").mkdir()
    one, manifest_one = trained(tmp_path / "one.csv", tmp_path, **options)
    two, manifest_two = trained(tmp_path / "two.csv", tmp_path / "two", **options)
    x = np.linspace(-3, 3, 7)[:, None]
    np.testing.assert_array_equal(one(x, np.array([0.9]))["upper"], two(x, np.array([0.9]))["upper"])
    assert manifest_one.calibration == manifest_two.calibration
    assert manifest_two.evaluation.targets["y"].rmse > 10 * manifest_one.evaluation.targets["y"].rmse


@pytest.mark.parametrize(
    ("options", "method", "rows"),
    [
        ({"calibration": "split"}, "split", 80),
        ({"calibration": "cross"}, "cross", 400),
        ({"calibration": "none"}, "none", 9999),
        ({"calibration": "split", "interval": "equal_tailed"}, "split", 80),
        ({"loss": "student_t"}, "cross", 400),
        ({"loss": "laplace", "calibration": "none"}, "none", 9999),
        ({"loss": "mse"}, "cross", 400),
    ],
)
def test_calibration_methods_and_losses_go_through(mixed_table, tmp_path, options, method, rows):
    _, manifest = trained(mixed_table, tmp_path, exclude=["price", "batch", "share"], **options)
    assert (manifest.calibration.method, manifest.calibration.rows) == (method, rows)
    assert manifest.calibration.interval == options.get("interval", "symmetric")
    assert (manifest.network.family == "laplace") == (options.get("loss") == "laplace")


def spied(monkeypatch, module, name):
    """The calls that `name` of `module` will have had: (arguments, arguments by name, answer)."""
    function, calls = getattr(module, name), []

    def spy(*arguments, **by_name):
        calls.append((arguments, by_name, function(*arguments, **by_name)))
        return calls[-1][2]

    monkeypatch.setattr(module, name, spy)
    return calls


@pytest.mark.parametrize("more", [{"calibration": "split", "calibration_share": 0.3}, {"calibration": "cross"}], ids=str)
def test_what_is_asked_for_reaches_the_table_the_plan_the_fits_and_the_baselines(mixed_table, tmp_path, monkeypatch, more):
    frame = pl.read_csv(mixed_table).with_row_index("code").with_columns(pl.col("code") % 3)
    frame.with_columns(y=pl.when(pl.col("size") < 1).then("y")).write_csv(mixed_table, separator=";")
    given = {"exclude": ["price"], "categorical": ["code"], "group": "batch", "weight": "share", "drop_missing_target": True}
    given |= {"delimiter": ";", "stop_share": 0.25, "seed": 3, "loss": "nll"} | more
    functions = ("read_table", "plan_rows", "chosen_options", "feature_statistics", "fit")
    calls = {name: spied(monkeypatch, wiring, name) for name in functions}
    calls["cross_predicted"] = spied(monkeypatch, wiring.evaluate, "cross_predicted")
    _, manifest = trained(mixed_table, tmp_path, **given, baselines=True, epochs=2)

    (((_, for_table), _, table),) = calls["read_table"]
    (((_, for_plan), asked, plan),) = calls["plan_rows"]
    assert for_table.model_dump(include={*given}) == for_plan.model_dump(include={*given}) == given
    assert asked["groups"] is table.groups
    assert manifest.calibration.dependence == "group"

    ((described, _, _),) = calls["feature_statistics"]
    np.testing.assert_array_equal(described[0], table.x[np.setdiff1d(np.arange(table.rows), plan.calibration)])
    assert [asked["options"].loss for _, asked, _ in calls["fit"]] == ["nll", "homoscedastic"]
    assert all(asked["weights"] is table.weights for _, asked, _ in calls["fit"] + calls["chosen_options"])

    parts = plan.folds or [plan.calibration]
    for _, asked, _ in calls["cross_predicted"]:
        np.testing.assert_array_equal(asked["groups"], table.groups[np.concatenate(parts)])
    others = [np.setdiff1d(np.arange(table.rows), part) for part in parts]
    means = [np.average(table.y[rows, 0], weights=table.weights[rows]) for rows in others]
    (constant, *_), *_ = calls["cross_predicted"][0]
    np.testing.assert_allclose(constant[0][:, 0], np.repeat(means, [len(part) for part in parts]))


@pytest.mark.parametrize("calibration", ["cross", "split"])
def test_no_calibration_row_is_predicted_by_a_network_that_saw_it(monkeypatch, calibration):
    options = {"target": ["y"], "members": 2, "fold_members": 2, "test_share": 0.1, "calibration": calibration}
    plan = plan_rows(200, FitOptions.model_construct(**options))

    class Networks:
        """Stands for the fitted networks: a part of them is the rows that it saw."""

        def part(self, networks):
            return np.concatenate(plan.fit[networks] + plan.stop[networks])

    def moments(seen, x):
        return x, np.isin(x[:, :1], seen).astype(float)

    monkeypatch.setattr(wiring, "_moments", moments)
    row = np.arange(200.0)
    columns = [
        Column(name="row", kind="numeric"),
        *(Column(name=name, kind="categorical", categories=[]) for name in ("own", "shared")),
    ]
    table = SimpleNamespace(x=np.column_stack([row, row, row % 2]), columns=columns)
    networks = Networks()
    predicted, seen = wiring._unseen_moments(plan, table, networks, lambda x: moments(networks.part(slice(plan.members)), x))
    rows = wiring._calibration_rows(plan)
    assert predicted[:, 0].tolist() == rows.tolist()
    assert not seen.any()
    if calibration == "cross":  # the networks of a fold do not know the categories that it alone has
        assert np.isnan(predicted[:, 1]).all()
    assert predicted[:, 2].tolist() == (rows % 2).tolist()


@pytest.mark.parametrize(("calibration", "known"), [("cross", ["common", "rare"]), ("split", ["common"])])
def test_a_category_of_calibration_rows_alone_is_as_unknown_as_a_new_one(mixed_table, tmp_path, calibration, known):
    table = pl.read_csv(mixed_table).select("size", "y")
    shares = {"test_share": 0.1, "calibration": calibration}
    plan = plan_rows(table.height, FitOptions(target=["y"], **shares))
    kind = np.full(table.height, "common", dtype=object)
    kind[plan.calibration if calibration == "split" else plan.folds[0]] = "rare"
    kind[plan.test] = "tested"
    path = tmp_path / "kinds.csv"
    table.with_columns(pl.Series("kind", kind.tolist())).write_csv(path)
    _, manifest = trained(path, tmp_path, members=1, fold_members=1, **shares)
    assert manifest.columns[1].categories == known


def test_two_targets_with_transforms_of_their_own(mixed_table, tmp_path):
    run, manifest = trained(
        mixed_table, tmp_path, target=["y", "price"], exclude=["batch", "share"], transform=["price=log"], epochs=20
    )
    assert [target.transform for target in manifest.targets] == ["identity", "log"]
    lower = run(np.zeros((5, 5)), np.array([0.99]))["lower"]
    assert (lower[:, 1] > 0).all(), "a log-transformed target has positive bounds"
    assert set(manifest.evaluation.targets) == {"y", "price"}


def test_calibration_by_group_holds_the_groups_apart(mixed_table, tmp_path):
    _, manifest = trained(mixed_table, tmp_path, exclude=["price", "batch", "share"], calibrate_by="colour")
    assert [group.value for group in manifest.calibration.groups] == [None, "blue", "green", "red"]
    known = sum(group.rows for group in manifest.calibration.groups[1:])
    assert known < manifest.calibration.rows, "rows without a colour are in the first group only"


@pytest.mark.parametrize(
    ("options", "source", "rows"),
    [
        ({"test_share": 0.1}, "test", 40),
        ({"test_share": 0.1, "calibration": "none"}, "test", 40),
        ({"test_share": 0.1, "calibration": "split"}, "test", 40),
        ({"calibration": "split"}, "calibration", 80),
        ({"calibration": "cross"}, "out_of_fold", 400),
    ],
)
def test_the_evaluation_says_which_rows_it_is_of(mixed_table, tmp_path, options, source, rows):
    _, manifest = trained(mixed_table, tmp_path, exclude=["price", "batch", "share"], baselines=True, **options)
    assert (manifest.evaluation.source, manifest.evaluation.rows) == (source, rows)
    assert set(manifest.evaluation.baselines) == {"constant", "homoscedastic"}


def test_without_test_and_calibration_rows_nothing_is_measured(mixed_table, tmp_path):
    _, manifest = trained(mixed_table, tmp_path, exclude=["price", "batch", "share"], calibration="none")
    assert manifest.evaluation is None
    assert (tmp_path / "model.html").exists()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": ["z"]}, TableError, "'z'"),
        ({"calibrate_by": "size"}, OptionError, "categorical or boolean"),
        ({"calibrate_by": "nothing"}, OptionError, "is not a feature"),
        ({"coverage": 0.9999}, OptionError, "calibration rows support at most"),
        ({"transform": ["w=log"]}, OptionError, "'w' is not a target"),
        ({"transform": ["cube"]}, OptionError, "identity, log and logit"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_file(mixed_table, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        trained(mixed_table, tmp_path, **options)
    assert not (tmp_path / "model.onnx").exists()


def test_an_interrupted_fit_leaves_the_old_model(mixed_table, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"old")

    def interrupt(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            mixed_table,
            FitOptions(target=["y"], **SMALL),
            output=tmp_path / "model.onnx",
            command="test",
            progress=Progress(epoch=interrupt),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed.csv", "model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("calibration", ["cross", "split"])
def test_a_target_may_vary_in_one_group_only(tmp_path, calibration):
    rng = np.random.default_rng(0)
    plant = np.arange(300) // 30
    y = np.where(plant == 4, rng.integers(1, 9, 300), 0)
    path = tmp_path / "rare.csv"
    pl.DataFrame({"b": rng.normal(size=300), "plant": plant, "y": y}).write_csv(path)
    options = {"group": "plant", "calibration": calibration, "baselines": True, "epochs": 2}
    _, manifest = trained(path, tmp_path, **options)
    assert np.isfinite(manifest.evaluation.baselines["constant"]["y"].crps)


@pytest.mark.parametrize("name", ["folder", "nowhere.html", "mixed.csv", "mixed.csv/model.onnx"])
def test_an_output_that_cannot_be_written_is_refused_before_the_fit(mixed_table, tmp_path, name):
    (tmp_path / "folder").mkdir()
    before = mixed_table.read_bytes()

    def never(epoch: Epoch) -> None:
        pytest.fail("the fit began")

    options = FitOptions(target=["y"], **SMALL)
    with pytest.raises(OptionError, match="--output"):
        train(mixed_table, options, output=tmp_path / name, command="test", progress=Progress(epoch=never))
    assert mixed_table.read_bytes() == before


def test_a_category_of_test_rows_only_is_unknown_to_the_model(tmp_path):
    frame = dataset("sine", rows=200).with_row_index("moment")
    frame = frame.with_columns(kind=pl.when(pl.col("moment") >= 185).then(pl.lit("late")).otherwise(pl.lit("early")))
    frame.write_csv(tmp_path / "late.csv")
    _, manifest = trained(tmp_path / "late.csv", tmp_path, time="moment", test_share=0.1)
    assert manifest.columns[1].categories == ["early"]
    assert manifest.calibration.dependence == "time"
    assert "nothing changes with time" in manifest.calibration.guarantee


@pytest.mark.parametrize("column", ["size", "colour"])
def test_a_column_without_a_value_in_the_rows_that_are_fitted_is_refused(mixed_table, tmp_path, column):
    frame = pl.read_csv(mixed_table)
    late = pl.int_range(pl.len()) >= frame.height - frame.height // 10
    frame = frame.with_columns(pl.when(late).then(column).alias(column), order=pl.int_range(pl.len()))
    frame.write_csv(tmp_path / "late.csv")
    with pytest.raises(TableError, match=f"column '{column}' has no value in the rows that are fitted; leave it out"):
        trained(tmp_path / "late.csv", tmp_path, time="order", calibration="split")


def test_the_model_file_holds_no_row_of_the_table(tmp_path):
    frame = dataset("diabetes")
    frame.write_csv(tmp_path / "diabetes.csv")
    trained(tmp_path / "diabetes.csv", tmp_path, target=["progression"])
    golden = read_manifest(tmp_path / "model.onnx").golden
    rows = {tuple(row) for row in frame.drop("sex", "progression").rows()}
    assert not rows & {tuple(value for i, value in enumerate(row) if i != 1) for row in golden.x}
