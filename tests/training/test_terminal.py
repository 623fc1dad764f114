import pytest

from models.manifest import Column, Evaluation, IntervalScores, Scores, Target
from tests.model_files import MIXED, NUMERIC, write_formula_model
from training import terminal

COLUMNS = (
    NUMERIC[0],
    Column(name="speed [km/h]", kind="numeric", minimum=0.0, maximum=1.0),
    Column(name="[/b] :smile:", kind="categorical", categories=["[red]", "x [/]"]),
)
TARGET = Target(name="[/b]", minimum=0.0, maximum=1.0, unit="[kN]")
SCORES = Scores(
    nll=1.0,
    rmse=2.0,
    r2=0.5,
    mae=1.6,
    crps=1.5,
    calibration_error=0.01,
    pit_histogram=[1.0],
    intervals=[IntervalScores(coverage=0.9, observed_coverage=0.91, mean_width=3.0, interval_score=4.0)],
)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Consoles that wrap nothing."""
    for console in (terminal._console, terminal._errors):
        monkeypatch.setattr(console, "_width", 200)
        monkeypatch.setattr(console, "_height", 50)


def test_names_with_brackets_are_shown_as_they_are_in_the_scores(capsys):
    by_predictor = {"model": {"[/b]": SCORES, "[bold]x": SCORES}}
    terminal.show_scores("rows [1] :smile:.csv, 9 rows", by_predictor, rows=9)
    shown = capsys.readouterr().out
    for name in ("[/b]", "[bold]x", "rows [1] :smile:.csv, 9 rows"):
        assert name in shown


@pytest.mark.parametrize(("rows", "shown"), [(None, "91.0% "), (9, "91.0% "), (7, "91.0% of 7 ")])
def test_intervals_of_fewer_rows_than_were_scored_say_of_how_many(capsys, rows, shown):
    interval = SCORES.intervals[0].model_copy(update={"rows": rows})
    terminal.show_scores("9 rows", {"model": {"y": SCORES.model_copy(update={"intervals": [interval]})}}, rows=9)
    assert shown in capsys.readouterr().out


def test_names_with_brackets_are_shown_as_they_are_in_a_manifest(tmp_path, capsys):
    manifest = write_formula_model(tmp_path / "model.onnx", columns=COLUMNS, targets=(TARGET,), group_column="[/b] :smile:")
    evaluation = Evaluation(rows=9, targets={"[/b]": SCORES})
    terminal.show_manifest(manifest.model_copy(update={"evaluation": evaluation, "default_coverage": 0.96}))
    shown = capsys.readouterr().out
    for text in (
        "speed [km/h]",
        "[/b] :smile:",
        "[red], x [/]",
        "target [/b]: 0 to 1 [kN]",
        "[/b] :smile: [red] has 19 calibration rows",
    ):
        assert text in shown


@pytest.mark.parametrize(("group_column", "said"), [(None, True), ("colour", False)])
def test_the_range_of_all_rows_is_said_only_where_these_make_the_intervals(tmp_path, capsys, group_column, said):
    manifest = write_formula_model(tmp_path / "model.onnx", columns=MIXED, group_column=group_column)
    terminal.show_calibration(manifest)
    assert ("coverage 0.9 on new rows: between" in capsys.readouterr().out) == said


@pytest.mark.parametrize(
    ("group_factors", "shown"),
    [((), "std times 1\n"), ((0.9, 4.7, None), "std times 1; by colour 0.9 (blue) to 4.7 (green)\n")],
)
def test_the_least_and_the_largest_scale_factor_of_a_group_are_told(tmp_path, capsys, group_factors, shown):
    columns = {"columns": MIXED, "group_column": "colour"}
    terminal.show_calibration(write_formula_model(tmp_path / "model.onnx", **columns, group_factors=group_factors))
    assert shown in capsys.readouterr().out


def test_scores_say_which_rows_they_are_of(tmp_path, capsys):
    manifest = write_formula_model(tmp_path / "model.onnx", targets=(TARGET,))
    for source, words in (
        ("test", "9 test rows that nothing was fitted to"),
        ("out_of_fold", "9 out-of-fold rows, each predicted by networks that had not seen it"),
        ("calibration", "9 calibration rows, each with an interval made from the others"),
    ):
        evaluation = Evaluation(rows=9, source=source, targets={"[/b]": SCORES})
        terminal.show_evaluation(manifest.model_copy(update={"evaluation": evaluation}))
        assert words in capsys.readouterr().out
    terminal.show_evaluation(manifest)
    assert "no scores" in capsys.readouterr().err


def test_sentences_with_brackets_are_said_as_they_are(capsys):
    terminal.say("note: column '[/b]' :smile:")
    terminal.complain("target 'speed [km/h]'")
    with terminal.fit_progress() as display:
        display.stage("fitting [/b]")
    said = capsys.readouterr().err.splitlines()[:3]  # what is left is the end of the bar
    assert said == ["note: column '[/b]' :smile:", "error: target 'speed [km/h]'", "fitting [/b]"]


def test_a_hopeless_r2_leaves_room_for_the_other_columns(capsys):
    terminal.show_scores("9 rows", {"model": {"y": SCORES.model_copy(update={"r2": -1e80})}}, rows=9)
    assert "-1e+80 " in capsys.readouterr().out
    terminal.show_scores("9 rows", {"model": {"y": SCORES.model_copy(update={"r2": -12.3456})}}, rows=9)
    assert "-12.346 " in capsys.readouterr().out


def test_dates_are_shown_as_dates(tmp_path, capsys):
    terminal.show_manifest(write_formula_model(tmp_path / "model.onnx", columns=MIXED))
    assert "2020-09-13 12:26:40 to 2023-11-14 22:13:20" in capsys.readouterr().out


def test_what_would_steer_a_terminal_is_shown_as_text(capsys):
    terminal.say("note: \x1b[2Jcolour\x07 is \x9b1m\rred")
    assert capsys.readouterr().err == "note: \\x1b[2Jcolour\\x07 is \\x9b1m\\rred\n"
