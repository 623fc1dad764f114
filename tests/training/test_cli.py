import hashlib
import json
import re
import subprocess
import sys

import polars as pl
import pytest

from models.artifact import read_manifest, read_model, write_model
from tests.model_files import MIXED, write_formula_model
from training import cli
from training.config import FitOptions

SMALL_TOML = """
members = 2
folds = 2
width = 8
depth = 1
frequencies = 2
embedding-outputs = 2
epochs = 3
baselines = false
"""


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `python -m training` in this process: (status, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        out = capsys.readouterr()
        return status, out.out, " ".join(out.err.split())

    return run


@pytest.fixture
def model(tmp_path):
    write_formula_model(tmp_path / "formula.onnx", columns=MIXED)
    return tmp_path / "formula.onnx"


@pytest.fixture
def mixed_rows(tmp_path):
    frame = pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(60)],
            "a": [i / 30 - 1 for i in range(60)],
            "b": [i / 6 for i in range(60)],
            "colour": ["red", "green", "violet"] * 20,
            "open": [True, False] * 30,
            "when": ["2021-01-01T00:00:00"] * 60,
            "y": [float(i) for i in range(60)],
        }
    )
    frame.write_csv(tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


def test_help_names_every_option_of_the_fit(command):
    status, out, _ = command("fit", "--help")
    assert status == 0
    for name, field in FitOptions.model_fields.items():
        assert f"--{name.replace('_', '-')}" in out
        assert field.description.split()[0] in out
    words = " ".join(out.replace("│", " ").split())
    assert re.search(r"--seed .*\(default 0\)", words)
    assert re.search(r"--test-share .*\(default 0\.0\)", words)


def test_fit_reads_a_config_file_and_the_command_line_goes_before_it(command, tmp_path):
    (tmp_path / "fit.toml").write_text(SMALL_TOML)
    assert command("dataset", "sine", "--rows", "120")[0] == 0
    status, out, _ = command("dataset", "sine", "--rows", "120", "--seed", "1")
    (tmp_path / "sine.csv").write_text(out)
    status, out, err = command(
        "fit",
        tmp_path / "sine.csv",
        "--target",
        "y",
        "--config",
        tmp_path / "fit.toml",
        "--epochs",
        2,
        "-o",
        tmp_path / "m.onnx",
    )
    assert status == 0, err
    assert "120 out-of-fold rows" in out
    options = read_manifest(tmp_path / "m.onnx").network.options
    assert (options["members"], options["epochs"]) == (2, 2)
    assert "m.html" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "nowhere.csv", "--target", "y"], "nowhere.csv"),
        (["fit", "sine.csv"], "--target is needed"),
        (["fit", "sine.csv", "--target", "Y"], "'y'"),
        (["fit", "sine.csv", "--target", "y", "--dropout", "1.5"], "--dropout"),
        (["fit", "sine.csv", "--target", "y", "--minimum-std", "20"], "must be below maximum_std"),
        (["inspect", "sine.csv"], "is not an ONNX file"),
        (["predict", "formula.onnx", "rows.csv", "-o", "out.xlsx"], ".parquet or .csv"),
        (["predict", "formula.onnx", "rows.csv", "-o", "out.csv", "--coverage", "0.999"], "the largest is"),
        (["publish", "formula.onnx", "repository", "--name", "../up"], "model name"),
        (["evaluate", "formula.onnx", "sine.csv"], "has no column"),
        (["dataset", "moon"], "three_targets"),
        (["calibrate", "formula.onnx", "rows.csv", "-o", "rows.csv"], "would overwrite the table rows.csv"),
        (["calibrate", "formula.onnx", "rows.csv", "-o", "new.html"], "a model's name ends in .onnx"),
        (["calibrate", "formula.onnx", "rows.csv", "-o", "new-1.5"], "a model's name ends in .onnx"),
        (["calibrate", "plain.model", "rows.csv"], "error: plain.model would be replaced, but a model's name ends in .onnx; "),
        (["predict", "formula.onnx", "rows.csv", "-o", "folder.csv"], "--output folder.csv: is a folder"),
        (["fit", "nowhere.csv", "--target", "y", "-o", "new/folder/m.onnx"], "there is no file 'nowhere.csv'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(command, model, mixed_rows, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sine.csv").write_text("x,y\n" + "".join(f"{i},{i % 7}\n" for i in range(50)))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "plain.model").write_bytes(model.read_bytes())
    before = {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")}
    status, out, err = command(*arguments)
    assert {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")} == before
    assert status == 2
    assert words in err
    assert "Traceback" not in err + out


@pytest.mark.parametrize("name", ["evaluate", "calibrate"])
def test_the_table_that_a_model_was_fitted_to_is_refused(command, model, mixed_rows, name):
    data, manifest = read_model(model)
    digest = hashlib.sha256(mixed_rows.read_bytes()).hexdigest()
    origin = manifest.origin.model_copy(update={"data_sha256": digest})
    write_model(data, manifest.model_copy(update={"origin": origin}), model)
    before = model.read_bytes()
    status, _, err = command(name, model, mixed_rows)
    assert status == 2
    assert "rows.csv is the table that the model was fitted to" in err
    assert model.read_bytes() == before


def test_an_option_that_does_not_exist_is_refused(command):
    status, _, err = command("fit", "x.csv", "--targt", "y")
    assert status == 2
    assert "--targt" in err


def test_ctrl_c_is_told_and_leaves_nothing(command, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.train.train", interrupted)
    status, _, err = command("fit", "sine.csv", "--target", "y", "-o", tmp_path / "m.onnx")
    assert (status, err) == (130, "error: stopped; nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_inspect_tells_people_and_programs(command, model):
    _, out, _ = command("inspect", model)
    assert re.search(r"colour\s.*blue, green, red", out)
    assert "beta_nll" in out
    _, out, _ = command("inspect", model, "--json")
    assert json.loads(out)["columns"][2]["categories"] == ["blue", "green", "red"]


def test_predict_evaluate_calibrate_and_publish_a_model(command, model, mixed_rows, tmp_path):
    out_file = tmp_path / "out.parquet"
    status, _, err = command(
        "predict", model, mixed_rows, "-o", out_file, "--coverage", "0.5", "--coverage", "0.9", "--keep", "id"
    )
    assert status == 0, err
    assert "note: colour holds a category that the model does not know, which counts as missing: 20 rows" in err
    frame = pl.read_parquet(out_file)
    assert frame.columns == [
        "id", "y_mean", "y_std", "y_epistemic_std", "y_lower_0.5", "y_upper_0.5", "y_lower_0.9", "y_upper_0.9"
    ]  # fmt: skip
    assert frame["id"].to_list() == [f"r{i}" for i in range(60)]

    status, out, err = command("evaluate", model, mixed_rows, "--json")
    assert status == 0, err
    assert json.loads(out)["rows"] == 60
    assert "colour holds a category that the model does not know, which counts as missing: 20 rows" in err

    status, _, err = command("calibrate", model, mixed_rows, "-o", tmp_path / "new.onnx", "--interval", "equal_tailed")
    assert status == 0, err
    assert "colour holds a category that the model does not know, which counts as missing: 20 rows" in err
    status, _, err = command("evaluate", tmp_path / "new.onnx", mixed_rows)
    assert (status, "rows.csv is the table that the model was calibrated on" in err) == (2, True), err
    status, _, err = command("calibrate", tmp_path / "new.onnx", mixed_rows, "--interval", "equal_tailed")  # over it
    assert status == 0, err
    calibration = read_manifest(tmp_path / "new.onnx").calibration
    assert (calibration.rows, calibration.interval) == (60, "equal_tailed")

    for version in (1, 2):
        status, _, err = command("publish", tmp_path / "new.onnx", tmp_path / "repository", "--name", "mixed")
        assert status == 0, err
        assert (tmp_path / "repository" / "mixed" / str(version) / "model.onnx").exists()


def test_an_evaluation_tells_where_fewer_rows_than_chance_explains_lie_within(command, model, mixed_rows, tmp_path):
    predicted, within, outside = tmp_path / "predicted.csv", tmp_path / "within.csv", tmp_path / "outside.csv"
    command("predict", model, mixed_rows, "-o", predicted)
    middle = pl.read_csv(predicted)["y_mean"]
    rows = pl.read_csv(mixed_rows)
    far = pl.when(pl.int_range(pl.len()) < 20).then(1e15).otherwise(0.0)
    for path, y in ((within, middle), (outside, middle + far)):
        rows.with_columns(y=y).write_csv(path)
    for path, checked, expected in ((within, True, 0), (outside, False, 0), (outside, True, 1)):
        status, out, err = command("evaluate", model, path, "--json", *(["--check"] if checked else []))
        assert (status, "of y lie within the intervals of coverage 0.9, and chance explains no less" in err) == (
            expected,
            path == outside,
        )
        (shown,) = [one for one in json.loads(out)["targets"]["y"]["intervals"] if one["coverage"] == 0.9]
        assert 0.75 < shown["least_expected_coverage"] < 0.85
        assert (shown["observed_coverage"] < shown["least_expected_coverage"]) == (path == outside)


@pytest.mark.parametrize(
    ("update", "why"),
    [({"dependence": "time"}, "its calibration rows depend on each other"), ({"method": "none"}, "nothing calibrated it")],
)
def test_a_check_that_cannot_tell_says_so(command, model, mixed_rows, tmp_path, update, why):
    data, manifest = read_model(model)
    calibration = manifest.calibration.model_copy(update=update)
    write_model(data, manifest.model_copy(update={"calibration": calibration}), tmp_path / "other.onnx")
    status, _, err = command("evaluate", tmp_path / "other.onnx", mixed_rows, "--check")
    assert (status, f"--check: what chance explains is not known of this model, for {why}" in err) == (2, True)
    status, out, _ = command("evaluate", tmp_path / "other.onnx", mixed_rows, "--json")
    assert (status, json.loads(out)["targets"]["y"]["intervals"][0]["least_expected_coverage"]) == (0, None)


def test_a_check_says_how_many_intervals_are_finite(command, mixed_rows, tmp_path):
    write_formula_model(tmp_path / "by.onnx", columns=MIXED, group_column="colour")
    data, manifest = read_model(tmp_path / "by.onnx")
    write_model(data, manifest.model_copy(update={"default_coverage": 0.96}), tmp_path / "by.onnx")
    rows = pl.read_csv(mixed_rows).with_columns(y=0.0)
    for colours, status, sentence in (
        (["red", "blue", "blue"], 1, "note: only 20 of 60 values have a finite interval of their own group and were checked"),
        (["blue", "blue", "blue"], 2, "--check: no row has a finite interval of coverage 0.96"),
    ):
        rows.with_columns(colour=pl.Series(colours * 20)).write_csv(tmp_path / "rows.csv")
        found, _, err = command("evaluate", tmp_path / "by.onnx", tmp_path / "rows.csv", "--check")
        assert (found, sentence in err) == (status, True), err


def test_a_calibration_tells_of_a_value_far_from_its_prediction(command, model, mixed_rows, tmp_path):
    _, _, err = command("calibrate", model, mixed_rows, "-o", tmp_path / "new.onnx")
    assert "stds away" not in err
    far = tmp_path / "far.csv"
    pl.read_csv(mixed_rows).with_columns(y=pl.when(pl.col("id") == "r7").then(1e15).otherwise("y")).write_csv(far)
    status, _, err = command("calibrate", model, far, "-o", tmp_path / "new.onnx")
    assert status == 0, err
    assert re.search(r"note: y is 1e\+15 where about .* stds away; if that is a mistake, correct it and calibrate again", err)


def test_only_fit_imports_torch(model, mixed_rows, tmp_path):
    program = f"""
import sys
from training import cli
model, rows, out = {str(model)!r}, {str(mixed_rows)!r}, {str(tmp_path / "out.")!r}
for arguments in (["inspect", model], ["predict", model, rows, "-o", out + "csv"], ["evaluate", model, rows],
                  ["calibrate", model, rows, "-o", out + "onnx"]):
    sys.argv = ["training", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, end.code
assert "torch" not in sys.modules
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
