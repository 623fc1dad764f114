import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.artifact import ArtifactError, open_model
from models.manifest import Column, Target
from tests.model_files import MIXED, NUMERIC, write_formula_model
from training import predict
from training.calibrate import Residuals, calibrated
from training.errors import OptionError, TableError
from training.predict import Scored, predict_table, read_x_y, require_supported

ROOT = Path(__file__).parents[2]
COLUMNS = MIXED[:4]
TARGETS = (Target(name="y", minimum=0, maximum=1), Target(name="z", minimum=0, maximum=1))
UNKNOWN = "colour holds a category that the model does not know, which counts as missing"
STRANGE = {
    UNKNOWN: 7,
    "b is missing, which it never was in training": 5,
}
COLOURS = ["blue", "green", "red", "violet", None]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(predict, "BATCH_ROWS", 8)


def table(rows=35):
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "id": [f"row {i}" for i in range(rows)],
            "a": rng.normal(size=rows),
            "b": [None if i % 7 == 0 else i / 4 for i in range(rows)],
            "colour": [COLOURS[i % 5] for i in range(rows)],
            "open": [i % 2 == 0 for i in range(rows)],
            "y": rng.normal(size=rows),
            "z": np.arange(rows) / 3,
        }
    )


def as_x(frame):
    """The rows as the model takes them."""
    codes = {"blue": 0.0, "green": 1.0, "red": 2.0}
    columns = [
        frame["a"].to_numpy(),
        frame["b"].fill_null(np.nan).to_numpy(),
        [codes.get(value, np.nan) for value in frame["colour"]],
        frame["open"].cast(pl.Float64).to_numpy(),
    ]
    return np.column_stack(columns)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    write_formula_model(path, columns=COLUMNS, targets=TARGETS)
    return path


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "rows.csv"
    table().write_csv(path)
    return path


def read(path):
    return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)


@pytest.mark.parametrize("output", ["predictions.parquet", "predictions.csv"])
@pytest.mark.parametrize("source", ["rows.csv", "rows.parquet"])
@pytest.mark.parametrize("rows", [1, 8, 35])
def test_predictions_are_the_answers_of_the_model_in_the_order_of_the_table(model, tmp_path, source, output, rows):
    frame = table(rows)
    (frame.write_csv if source.endswith("csv") else frame.write_parquet)(tmp_path / source)
    predict_table(model, tmp_path / source, output=tmp_path / output, coverages=[0.9, 0.5], keep=["id", "z"])
    predictions = read(tmp_path / output)
    answer = open_model(model)[0](as_x(frame), np.array([0.9, 0.5]))
    expected = {"id": frame["id"].to_numpy(), "z": frame["z"].to_numpy()}
    for t, name in enumerate("yz"):
        expected |= {f"{name}_{moment}": answer[moment][:, t] for moment in ("mean", "std", "epistemic_std")}
        for k, coverage in enumerate(("0.9", "0.5")):
            expected |= {f"{name}_{end}_{coverage}": answer[end][:, t, k] for end in ("lower", "upper")}
    assert predictions.columns == list(expected)
    assert predictions["id"].to_list() == frame["id"].to_list()
    for name in predictions.columns[1:]:
        np.testing.assert_allclose(predictions[name].cast(pl.Float64), expected[name], rtol=1e-6, err_msg=name)


def test_without_choices_the_interval_is_the_default_one_and_no_column_is_copied(model, csv, tmp_path):
    predict_table(model, csv, output=tmp_path / "out.csv")
    moments = ["mean", "std", "epistemic_std", "lower_0.9", "upper_0.9"]
    predictions = read(tmp_path / "out.csv")
    assert predictions.columns == [f"{target}_{moment}" for target in "yz" for moment in moments]
    assert predictions.height == 35


def test_a_table_is_scored_batch_by_batch_and_every_batch_is_heard_of(model, csv, tmp_path, monkeypatch):
    run, manifest = open_model(model)
    sizes, heard = [], []

    def counted(x, coverage):
        sizes.append(len(x))
        return run(x, coverage)

    monkeypatch.setattr(predict, "open_model", lambda path: (counted, manifest))
    predict_table(model, csv, output=tmp_path / "out.csv", on_rows=heard.append)
    assert heard == sizes
    assert sum(sizes) == 35
    assert max(sizes) <= 8


def test_asking_twice_for_a_column_or_a_coverage_gives_it_once(model, csv, tmp_path):
    predict_table(model, csv, output=tmp_path / "out.csv", keep=["id", "id"], coverages=[0.9, 0.9])
    assert read(tmp_path / "out.csv").columns[:6] == ["id", "y_mean", "y_std", "y_epistemic_std", "y_lower_0.9", "y_upper_0.9"]


def test_a_feature_may_be_copied(model, csv, tmp_path):
    predict_table(model, csv, output=tmp_path / "out.parquet", keep=["colour"])
    assert read(tmp_path / "out.parquet")["colour"].to_list() == table()["colour"].to_list()


STORED = [" a ", "NA", "?", "007", "1.0", "", "nan", 'say "x", y', None]


@pytest.mark.parametrize("output", ["out.parquet", "out.csv"])
@pytest.mark.parametrize("source", ["rows.csv", "rows.parquet"])
def test_copied_columns_are_as_they_stand_in_the_table(model, tmp_path, source, output):
    frame = table(len(STORED)).with_columns(id=pl.Series(STORED), colour=pl.Series(["NA", " red ", "?", *["blue"] * 6]))
    (frame.write_csv if source.endswith("csv") else frame.write_parquet)(tmp_path / source)
    scored = predict_table(model, tmp_path / source, output=tmp_path / output, keep=["id", "colour"])
    assert UNKNOWN not in scored.unusual
    path = tmp_path / output
    copied = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, infer_schema=False)
    assert copied["id"].to_list() == STORED
    assert copied["colour"].to_list() == frame["colour"].to_list()
    as_text = copied["y_mean"].cast(pl.Float64).to_list()
    x = as_x(frame.with_columns(colour=pl.Series([None, "red", None, *["blue"] * 6])))
    np.testing.assert_allclose(as_text, open_model(model)[0](x, np.array([0.9]))["mean"][:, 0], rtol=1e-6)


def test_a_copied_column_that_csv_cannot_hold_is_refused_and_parquet_takes_it(model, tmp_path):
    took = pl.duration(seconds=pl.int_range(pl.len()))
    table(3).with_columns(tags=pl.Series([[1], [2, 3], []]), took=took).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(OptionError, match=r"--keep took: CSV cannot hold its type; write the predictions as \.parquet"):
        predict_table(model, tmp_path / "rows.parquet", output=tmp_path / "out.csv", keep=["took"])
    with pytest.raises(OptionError, match=r"--keep tags: CSV cannot hold its type; write the predictions as \.parquet"):
        predict_table(model, tmp_path / "rows.parquet", output=tmp_path / "out.csv", keep=["id", "tags"])
    predict_table(model, tmp_path / "rows.parquet", output=tmp_path / "out.parquet", keep=["tags"])
    assert read(tmp_path / "out.parquet")["tags"].to_list() == [[1], [2, 3], []]


def test_targets_whose_predictions_would_share_a_column_are_refused(csv, tmp_path):
    targets = (Target(name="y", minimum=0, maximum=1), Target(name="y_epistemic", minimum=0, maximum=1))
    write_formula_model(tmp_path / "model.onnx", columns=COLUMNS, targets=targets)
    with pytest.raises(OptionError, match="the targets 'y' and 'y_epistemic' would both have a column 'y_epistemic_std'"):
        predict_table(tmp_path / "model.onnx", csv, output=tmp_path / "out.csv")


def test_a_copied_column_with_the_name_of_a_prediction_is_refused(model, tmp_path):
    table().with_columns(y_std=1.0).write_csv(tmp_path / "rows.csv")
    with pytest.raises(OptionError, match="--keep y_std: a column of the predictions has that name"):
        predict_table(model, tmp_path / "rows.csv", output=tmp_path / "out.csv", keep=["id", "y_std"])
    assert not (tmp_path / "out.csv").exists()


def test_a_feature_with_the_name_of_a_prediction_is_no_problem(tmp_path):
    columns = (NUMERIC[0], Column(name="y_mean", kind="numeric"))
    write_formula_model(tmp_path / "model.onnx", columns=columns)
    pl.DataFrame({"a": [1.0, 2.0], "y_mean": [3.0, 4.0]}).write_csv(tmp_path / "rows.csv")
    predict_table(tmp_path / "model.onnx", tmp_path / "rows.csv", output=tmp_path / "out.csv")
    assert read(tmp_path / "out.csv")["y_mean"].to_list() == [7.0, 10.0]


def test_unknown_categories_are_counted_over_all_batches_and_missing_ones_are_not(model, csv, tmp_path):
    assert predict_table(model, csv, output=tmp_path / "out.csv") == Scored(unusual=STRANGE, unbounded={})


@pytest.mark.parametrize(
    ("coverage", "message"),
    [
        (0.995, r"--coverage 0\.995: this model has 99 calibration rows; the largest is 0\.99$"),
        (1.0, r"--coverage 1\.0: a coverage lies between 0 and 1"),
        (-0.5, r"--coverage -0\.5: a coverage lies between 0 and 1"),
        (float("nan"), r"--coverage nan: a coverage lies between 0 and 1"),
    ],
)
def test_a_coverage_that_the_model_cannot_give_is_refused(model, csv, tmp_path, coverage, message):
    with pytest.raises(OptionError, match=message):
        predict_table(model, csv, output=tmp_path / "out.csv", coverages=[0.5, coverage])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "rows.csv"]


@pytest.mark.parametrize("interval", ["symmetric", "equal_tailed"])
def test_rows_of_a_group_too_small_for_a_coverage_get_infinite_intervals_and_are_counted(tmp_path, csv, interval):
    # blue has 19 calibration rows, green 29, red 39 and all together 99: 0.96 wants 24, equal-tailed 49
    write_formula_model(tmp_path / "model.onnx", columns=COLUMNS, targets=TARGETS, group_column="colour", interval=interval)
    scored = predict_table(
        tmp_path / "model.onnx", csv, output=tmp_path / "out.parquet", coverages=[0.5, 0.96], keep=["colour"]
    )
    few = ["blue"] if interval == "symmetric" else ["blue", "green", "red"]
    assert scored == Scored(unusual=STRANGE, unbounded=dict.fromkeys(few, 7))
    predictions = read(tmp_path / "out.parquet")
    small = predictions["colour"].is_in(few).fill_null(value=False).to_list()
    assert predictions["y_upper_0.96"].is_infinite().to_list() == small
    assert predictions["z_lower_0.96"].is_infinite().to_list() == small
    assert predictions["y_upper_0.5"].is_finite().all()


def test_unbounded_rows_of_a_logit_target_are_counted_though_their_bounds_are_finite(tmp_path, csv):
    targets = (Target(name="y", minimum=0.1, maximum=0.9, transform="logit"),)
    write_formula_model(tmp_path / "model.onnx", columns=COLUMNS, targets=targets, group_column="colour")
    scored = predict_table(tmp_path / "model.onnx", csv, output=tmp_path / "out.csv", coverages=[0.96])
    assert scored.unbounded == {"blue": 7}


def test_a_coverage_too_large_for_all_calibration_rows_is_refused_in_a_grouped_model_too(tmp_path):
    manifest = write_formula_model(tmp_path / "model.onnx", columns=COLUMNS, group_column="colour")
    with pytest.raises(OptionError, match=r"--coverage 0\.995: this model has 99 calibration rows; the largest is 0\.99$"):
        require_supported([0.995], manifest)


def test_the_largest_coverage_that_is_named_is_accepted(model):
    _, manifest = open_model(model)
    many = Residuals(values=np.random.default_rng(0).normal(size=(123_456, 2)), x=np.empty((123_456, 0)))
    calibration = calibrated(many, method="split", interval="symmetric", family="gaussian", freedom=[None, None], columns=[])
    manifest = manifest.model_copy(update={"calibration": calibration})
    with pytest.raises(
        OptionError, match=r"--coverage 0\.999995: .* the largest is 0\.9999919$"
    ):  # six digits round it upwards
        require_supported([0.999995], manifest)
    require_supported([0.9999919, 0.99999190001], manifest)  # as the service takes it


@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
@pytest.mark.parametrize("row", [2, 8, 9, 20, 35])
def test_text_in_a_numeric_column_is_refused_with_its_row_and_the_old_predictions_stay(model, csv, tmp_path, row, output):
    frame = pl.read_csv(csv, infer_schema=False)
    frame[row - 1, "a"] = "n. a."
    frame.write_csv(csv)
    (tmp_path / output).write_text("old")
    with pytest.raises(TableError, match=rf"column 'a' holds 'n\. a\.' in data row {row}, which is not a number"):
        predict_table(model, csv, output=tmp_path / output)
    assert (tmp_path / output).read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", output, "rows.csv"]


def test_an_interruption_leaves_the_old_predictions_and_nothing_else(model, csv, tmp_path):
    (tmp_path / "out.csv").write_text("old")
    heard = []

    def interrupt(rows):
        heard.append(rows)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_table(model, csv, output=tmp_path / "out.csv", on_rows=interrupt)
    assert (tmp_path / "out.csv").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "out.csv", "rows.csv"]


@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
def test_predictions_that_cannot_be_written_whole_are_told_in_a_sentence_and_leave_nothing(model, csv, tmp_path, output):
    program = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
runpy.run_module("training", run_name="__main__")
"""
    command = [sys.executable, "-c", program, "predict", model, csv, "-o", tmp_path / output]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == "error: the output: File too large (os error 27)"
    assert "Traceback" not in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "rows.csv"]


def test_old_predictions_are_replaced_and_missing_folders_made(model, csv, tmp_path):
    output = tmp_path / "new" / "folder" / "out.csv"
    predict_table(model, csv, output=output, coverages=[0.5])
    predict_table(model, csv, output=output, coverages=[0.8])
    assert "y_lower_0.8" in read(output).columns
    assert [path.name for path in output.parent.iterdir()] == ["out.csv"]


def test_a_table_without_rows_is_refused(model, tmp_path):
    table(0).write_csv(tmp_path / "rows.csv")
    with pytest.raises(TableError, match=r"rows\.csv has a header but no rows"):
        predict_table(model, tmp_path / "rows.csv", output=tmp_path / "out.csv")
    table(0).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(TableError, match=r"rows\.parquet has a header but no rows"):
        predict_table(model, tmp_path / "rows.parquet", output=tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_table_without_a_feature_of_the_model_is_refused(model, tmp_path):
    table().rename({"colour": "color"}).write_csv(tmp_path / "rows.csv")
    with pytest.raises(TableError, match=r"rows\.csv has no column 'colour'; the nearest are 'color'"):
        predict_table(model, tmp_path / "rows.csv", output=tmp_path / "out.csv")


def test_an_output_of_no_known_format_is_refused(model, csv, tmp_path):
    with pytest.raises(OptionError, match=r"out\.xlsx: the name of the predictions ends in \.parquet or \.csv"):
        predict_table(model, csv, output=tmp_path / "out.xlsx")


def test_the_table_is_not_overwritten_by_its_predictions(model, csv, tmp_path):
    before = csv.read_bytes()
    with pytest.raises(OptionError, match="is the table itself"):
        predict_table(model, csv, output=tmp_path / "." / "rows.csv")
    assert csv.read_bytes() == before


def test_a_file_that_is_no_model_is_refused(csv, tmp_path):
    with pytest.raises(ArtifactError, match="is not an ONNX file"):
        predict_table(csv, csv, output=tmp_path / "out.csv")


# Features and targets of a table


def test_features_and_targets_are_read_in_the_order_of_the_model(model, csv):
    frame = table()
    frame.select(reversed(frame.columns)).write_csv(csv)
    x, y, _ = read_x_y(csv, open_model(model)[1])
    np.testing.assert_allclose(x, as_x(frame))
    np.testing.assert_allclose(y, frame.select("y", "z").to_numpy())


def test_rows_are_counted_over_the_batches_of_a_long_table(model, tmp_path):
    path, manifest = tmp_path / "long.parquet", open_model(model)[1]
    frame = pl.concat([table(7000)] * 10)
    frame.write_parquet(path)
    x, y, _ = read_x_y(path, manifest)
    assert x.shape == (70_000, 4)
    np.testing.assert_array_equal(y, frame.select("y", "z").to_numpy())
    frame.with_columns(y=pl.when(pl.int_range(pl.len()) != 69_000).then("y")).write_parquet(path)
    with pytest.raises(TableError, match=r"long\.parquet: data row 69001 has no target; leave such rows out"):
        read_x_y(path, manifest)
    frame.with_columns(a=pl.when(pl.int_range(pl.len()) != 69_000).then("a").otherwise(float("inf"))).write_parquet(path)
    with pytest.raises(TableError, match=r"infinite value .* in data row 69001"):
        read_x_y(path, manifest)


def test_a_table_without_rows_has_no_features_and_targets(model, csv):
    table(0).write_csv(csv)
    with pytest.raises(TableError, match=r"rows\.csv has a header but no rows"):
        read_x_y(csv, open_model(model)[1])


def test_rows_without_a_target_are_left_out_where_asked_and_those_without_anything_always(model, csv):
    manifest = open_model(model)[1]
    whole = table()
    frame = whole.with_columns(y=pl.when(pl.int_range(pl.len()) != 3).then("y"))
    frame.write_csv(csv)
    with pytest.raises(TableError, match="data row 4 has no target; leave such rows out with --drop-missing-target"):
        read_x_y(csv, manifest)
    x, y, unusual = read_x_y(csv, manifest, drop_missing_target=True)
    np.testing.assert_allclose(x, np.delete(as_x(whole), 3, axis=0))
    assert (len(y), unusual["no target, and the row was left out"]) == (34, 1)
    csv.write_text(whole.write_csv() + ",,,,,,\n")
    x, _, unusual = read_x_y(csv, manifest)
    assert (len(x), unusual["no target, and the row was left out"]) == (35, 1)
    whole.with_columns(y=None).write_csv(csv)
    with pytest.raises(TableError, match="has no row with a target"):
        read_x_y(csv, manifest, drop_missing_target=True)


def test_a_word_for_a_missing_value_is_the_category_that_an_older_model_has(tmp_path):
    columns = (Column(name="colour", kind="categorical", categories=["#N/A", "red"]), Column(name="b", kind="numeric"))
    write_formula_model(tmp_path / "old.onnx", columns=columns)
    (tmp_path / "rows.csv").write_text("colour,b,y\n#N/A,1,2\n NA ,#N/A,4\nred,5,6\n")
    x, _, _ = read_x_y(tmp_path / "rows.csv", open_model(tmp_path / "old.onnx")[1])
    np.testing.assert_equal(x, [[0, 1], [np.nan, np.nan], [1, 5]])
    predict_table(tmp_path / "old.onnx", tmp_path / "rows.csv", output=tmp_path / "out.csv")
    expected = open_model(tmp_path / "old.onnx")[0](x, np.array([0.9]))["mean"]
    np.testing.assert_allclose(pl.read_csv(tmp_path / "out.csv")["y_mean"], expected[:, 0], rtol=1e-6)


def test_values_unlike_the_training_table_are_counted(model, csv, tmp_path):
    frame = table().with_columns(a=pl.when(pl.int_range(pl.len()) < 4).then(9.0), b=pl.lit(5.0), colour=pl.lit("red"))
    frame.write_csv(csv)
    expected = {"a is outside of its training range, -3 to 3": 4, "a is missing, which it never was in training": 31}
    assert predict_table(model, csv, output=tmp_path / "out.csv").unusual == expected
    assert read_x_y(csv, open_model(model)[1])[2] == expected
