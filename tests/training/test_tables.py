import gzip
import hashlib
import io

import numpy as np
import polars as pl
import pytest

from training.config import TableOptions
from training.errors import TableError
from training.tables import read_table

ROWS = 200


def frame(**columns) -> pl.DataFrame:
    random = np.random.default_rng(0)
    base = {"a": random.normal(size=ROWS), "y": random.uniform(1, 2, ROWS)}
    return pl.DataFrame(base | columns)


def written(tmp_path, table: pl.DataFrame, name: str = "t.csv"):
    path = tmp_path / name
    if name.endswith(".parquet"):
        table.write_parquet(path)
    else:
        text = io.BytesIO()
        table.write_csv(text)
        path.write_bytes(gzip.compress(text.getvalue()) if name.endswith(".gz") else text.getvalue())
    return path


def read(tmp_path, table: pl.DataFrame, *, name: str = "t.csv", **options):
    return read_table(written(tmp_path, table, name), TableOptions(**({"target": ["y"]} | options)))


def refusal(tmp_path, table: pl.DataFrame, **options) -> str:
    with pytest.raises(TableError) as refused:
        read(tmp_path, table, **options)
    return str(refused.value)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_a_table_is_the_same_from_every_format(tmp_path, name):
    kinds = ["red", "blue", None, "red"] * (ROWS // 4)
    table = frame(
        k=kinds,
        flag=[True, False, None, True] * (ROWS // 4),
        day=pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 7, 18), eager=True),
        count=[1, None, 3, 4] * (ROWS // 4),
    )
    result = read(tmp_path, table, name=name)
    assert [(c.name, c.kind) for c in result.columns] == [
        ("a", "numeric"),
        ("k", "categorical"),
        ("flag", "boolean"),
        ("day", "datetime"),
        ("count", "numeric"),
    ]
    np.testing.assert_array_equal(result.x[:, 0], table["a"])
    np.testing.assert_array_equal(result.x[:4, 1], [1, 0, np.nan, 1])
    np.testing.assert_array_equal(result.x[:4, 2], [1, 0, np.nan, 1])
    np.testing.assert_array_equal(np.diff(result.x[:, 3]), 86400)
    np.testing.assert_array_equal(result.x[:4, 4], [1, np.nan, 3, 4])
    np.testing.assert_array_equal(result.y[:, 0], table["y"])
    assert result.columns[4].integer
    assert result.columns[1].missing == 0.25
    assert (result.name, result.rows, result.notes) == (name, ROWS, [])
    assert result.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert (result.weights, result.groups, result.time) == (None, None, None)


def test_several_targets_keep_the_order_they_were_named_in(tmp_path):
    result = read(tmp_path, frame(z=np.arange(ROWS) / ROWS), target=["z", "y"], transform=["y=log"])
    assert [(t.name, t.transform) for t in result.targets] == [("z", "identity"), ("y", "log")]
    assert (result.targets[0].minimum, result.targets[0].maximum) == (0, (ROWS - 1) / ROWS)
    assert result.y.shape == (ROWS, 2)
    np.testing.assert_array_equal(result.y[:, 0], np.arange(ROWS) / ROWS)


def test_group_time_weight_and_excluded_columns_are_no_features(tmp_path):
    table = frame(
        g=["v", "u"] * (ROWS // 2), t=[f"2024-01-01T00:00:{i % 60:02}" for i in range(ROWS)], w=1 + np.arange(ROWS), junk=1
    )
    result = read(tmp_path, table, group="g", time="t", weight="w", exclude=["junk"])
    assert [column.name for column in result.columns] == ["a"]
    assert result.groups[:3].tolist() == [1, 0, 1]
    assert result.groups.dtype == np.int64
    np.testing.assert_array_equal(np.diff(result.time[:60]), 1)
    np.testing.assert_array_equal(result.weights, 1 + np.arange(ROWS))


def test_rows_of_weight_0_are_left_out_whatever_else_they_hold(tmp_path):
    y = [None if i % 10 == 0 else i + 1.0 for i in range(ROWS)]
    table = frame(y=y, w=[0.0 if i % 10 == 0 else 2.0 for i in range(ROWS)])
    result = read(tmp_path, table, weight="w", transform=["log"])
    assert result.rows == ROWS - ROWS // 10
    assert set(result.weights) == {2.0}
    assert f"{ROWS // 10} rows of weight 0 were left out" in result.notes


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_numbers_can_group_and_order_rows(tmp_path, name):
    result = read(tmp_path, frame(g=[7, 9, 7, 8] * (ROWS // 4)), name=name, group="g", time="g")
    assert result.groups[:4].tolist() == [0, 2, 0, 1]
    assert result.time[:4].tolist() == [7, 9, 7, 8]


def test_excluded_columns_are_not_looked_at(tmp_path):
    table = frame(note=[f"free text {i}" for i in range(ROWS)], empty=pl.Series([None] * ROWS, dtype=pl.String))
    assert "'note' is text with 200 different values" in refusal(tmp_path, table)
    assert "'empty' has no value" in refusal(tmp_path, table, exclude=["note"])
    assert read(tmp_path, table, exclude=["note", "empty"]).rows == ROWS


def test_a_word_in_row_50_000_of_a_numeric_column_is_named(tmp_path):
    values = [str(i) for i in range(60_000)]
    values[49_999] = "abc"
    table = pl.DataFrame({"a": values, "y": np.arange(60_000.0)})
    assert "most of its values are numbers, but data row 50000 holds 'abc'" in refusal(tmp_path, table)
    assert (
        refusal(tmp_path, table, target=["a"])
        == "target 'a' is not a number in 1 of 60000 rows: data row 50000 holds 'abc'; a target is a quantity, so "
        "correct these or choose another column"
    )


def test_missing_targets_are_refused_or_left_out(tmp_path):
    table = frame(y=[None, None] + [float(i) for i in range(ROWS - 2)], w=[5.0, 5.0] + [1.0] * (ROWS - 2))
    sentence = refusal(tmp_path, table, weight="w")
    assert sentence == (
        f"target 'y' is missing in 2 of {ROWS} rows, first in data row 1; leave them out with --drop-missing-target"
    )
    result = read(tmp_path, table, weight="w", drop_missing_target=True)
    assert result.notes == ["2 rows with a missing target were left out"]
    assert len(result.x) == len(result.y) == len(result.weights) == ROWS - 2
    np.testing.assert_array_equal(result.x[:, 0], table["a"][2:])
    assert set(result.weights) == {1}


def test_rows_left_out_for_a_missing_target_need_no_weight(tmp_path):
    gap = [None, None] + [2.0] * (ROWS - 2)
    assert read(tmp_path, frame(y=[None, None, *range(ROWS - 2)], w=gap), weight="w", drop_missing_target=True).rows == ROWS - 2
    assert "target 'y' is missing in 2 of 200 rows" in refusal(
        tmp_path, frame(y=[None, None, *range(ROWS - 2)], w=gap), weight="w"
    )
    assert "weight column 'w' is missing in 1 of 199 rows" in refusal(
        tmp_path, frame(y=[None, *range(ROWS - 1)], w=gap), weight="w", drop_missing_target=True
    )
    assert "has no value in any row" in refusal(
        tmp_path, frame(y=gap[:1] * ROWS, w=gap[:1] * ROWS), weight="w", drop_missing_target=True
    )


def test_blank_lines_are_left_out_and_rows_keep_their_numbers(tmp_path):
    path = tmp_path / "t.csv"
    lines = [f"{i},{i / 2}" for i in range(ROWS)]
    path.write_text("a,y\n\n" + "\n".join(lines) + "\n\n")
    result = read_table(path, TableOptions(target=["y"]))
    assert result.rows == ROWS
    assert "2 rows without any value were left out" in result.notes
    lines[9] = "inf,3"
    path.write_text("a,y\n\n" + "\n".join(lines) + "\n")
    with pytest.raises(TableError, match="in data row 11"):
        read_table(path, TableOptions(target=["y"]))


@pytest.mark.parametrize(
    ("name", "file", "note"),
    [
        ("", "t.csv", "the first column has no name and is left out"),
        ("Unnamed: 0", "t.csv", "column 'Unnamed: 0' is left out"),
        ("__index_level_0__", "t.parquet", "column '__index_level_0__' is left out"),
    ],
)
def test_the_row_index_of_r_and_pandas_is_left_out_unless_it_has_a_role(tmp_path, name, file, note):
    table = frame().with_row_index(name)
    result = read(tmp_path, table, name=file)
    assert [column.name for column in result.columns] == ["a"]
    assert [text[: len(note)] for text in result.notes] == [note]
    assert read(tmp_path, table, name=file, exclude=[name]).notes == []
    if name:
        assert [column.name for column in read(tmp_path, table, name=file, categorical=[name]).columns] == [name, "a"]
    else:
        assert "categorical names '', which is no feature" in refusal(tmp_path, table, name=file, categorical=[name])


def test_all_columns_that_cannot_be_features_are_told_at_once(tmp_path):
    ids = [f"id {i}" for i in range(ROWS)]
    first, second = refusal(tmp_path, frame(**{"last name": ids, "key": ids})).splitlines()
    assert first.endswith("leave it out with --exclude 'last name', or keep it with --categorical 'last name'")
    assert second.endswith("leave it out with --exclude key, or keep it with --categorical key")


def test_a_feature_that_goes_with_a_target_is_noted(tmp_path):
    y = np.round(np.random.default_rng(1).uniform(1, 2, ROWS), 2)
    near = np.argsort(np.argsort(y + np.random.default_rng(2).normal(scale=0.05, size=ROWS)))
    cents = [None if i % 7 == 0 else -100 * value for i, value in enumerate(y)]
    gaps = [value if i < 20 else None for i, value in enumerate(y)]
    table = frame(y=y, same=y, cents=cents, near=near, gaps=gaps, constant=[1] * ROWS, text=[f"{v:.1f}" for v in y])
    same, cents = read(tmp_path, table, categorical=["text"], exclude=["constant"]).notes
    assert same == (
        "column 'same' rises or falls with the target 'y' in nearly every row; if it is known only afterwards: --exclude same"
    )
    assert cents == same.replace("same", "cents")
    other = read(tmp_path, table.select("y", "a", "cents", z="near"), target=["z", "y"])
    assert [note[:45] for note in other.notes] == ["column 'cents' rises or falls with the target"]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_numbers_with_leading_zeros_are_noted_as_possible_codes(tmp_path, name):
    table = frame(zip=[f"{i % 90:05}" for i in range(ROWS)], share=["0.5", "0", "00.5", "-1"] * (ROWS // 4), code=["01"] * ROWS)
    result = read(tmp_path, table, name=name, exclude=["code"])
    assert result.notes == ["column 'zip' holds numbers with leading zeros ('00000'); if they are codes: --categorical zip"]
    assert [column.kind for column in result.columns] == ["numeric"] * 3
    assert read(tmp_path, table, name=name, exclude=["code"], categorical=["zip"]).notes == []


def test_repeated_rows_are_noted(tmp_path):
    table = pl.concat([frame(), frame()[:3]])
    (note,) = read(tmp_path, table).notes
    assert note.startswith(
        "3 rows repeat another row; if they are copies, those on both sides of a division make the scores look"
    )
    assert "and intervals too narrow for new rows" in note
    assert note.endswith("drop them, or name a column that marks the copies with --group")


def test_with_a_time_column_the_advice_on_repeated_rows_names_no_group_which_time_refuses(tmp_path):
    table = pl.concat([frame(), frame()[:3]]).with_row_index("t")
    (note,) = read(tmp_path, table, time="t").notes
    assert note.startswith("3 rows repeat another row")
    assert note.endswith("too narrow for new rows: drop them")


def test_copies_that_a_group_keeps_together_are_not_noted(tmp_path):
    table = frame(g=[f"g{i}" for i in range(ROWS)])
    assert read(tmp_path, pl.concat([table, table[:3]]), group="g").notes == []
    (note,) = read(tmp_path, pl.concat([table, table[:3], table[:2].with_columns(g=pl.lit("other"))]), group="g").notes
    assert note.startswith("2 rows repeat another row")


def test_a_million_cells_are_read_without_losing_a_digit(tmp_path):
    values = np.random.default_rng(1).normal(size=(50_000, 20))
    table = pl.DataFrame(values, schema=[f"c{i}" for i in range(20)])
    result = read(tmp_path, table, target=["c0"])
    np.testing.assert_array_equal(result.x, values[:, 1:])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target": ["Y"]}, "target: t.csv has no column 'Y'; the nearest are 'y'"),
        ({"exclude": ["weigth"]}, "exclude: t.csv has no column 'weigth'; the nearest are 'weight'"),
        ({"categorical": ["q"]}, "categorical: t.csv has no column 'q'; there are 'a', 'y', 'weight'"),
        ({"group": "q"}, "group: t.csv has no column 'q'"),
        ({"time": "q"}, "time: t.csv has no column 'q'"),
        ({"weight": "q"}, "weight: t.csv has no column 'q'"),
        ({"target": ["y", "y"]}, "the target 'y' is named twice"),
        ({"exclude": ["y"]}, "column 'y' is a target and cannot be named by exclude too"),
        ({"group": "y"}, "column 'y' is a target and cannot be named by group too"),
        ({"categorical": ["weight"], "weight": "weight"}, "categorical names 'weight', which is no feature"),
        ({"exclude": ["a", "weight"]}, "no column left to predict from besides 'y'"),
        ({"transform": ["logit"]}, "the transform logit needs values between 0 and 1"),
    ],
)
def test_options_that_do_not_fit_the_table_are_refused(tmp_path, options, sentence):
    assert sentence in refusal(tmp_path, frame(weight=np.arange(ROWS)), **options)


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({"y": ["high", "low"] * 100}, {}, "target 'y' is not a number in 200 of 200 rows: data row 1 holds 'high'"),
        ({"y": ["1,5", "2,5"] * 100}, {}, "holds '1,5' ('1,5': write decimals with a point)"),
        ({"y": [True, False] * 100}, {"name": "t.parquet"}, "target 'y' is not a number in 200 of 200 rows"),
        ({"y": [3] * 200}, {}, "target 'y' is 3 in every row: there is nothing to predict"),
        ({"y": [None] * 200}, {"drop_missing_target": True}, "target 'y' has no value in any row"),
        ({"y": [1.0, float("inf")] * 100}, {}, "column 'y' holds an infinite value (inf) in data row 2"),
        ({"y": [1, 0] * 100}, {"transform": ["log"]}, "target 'y' holds 0 in data row 2, and the transform log"),
        ({"y": [0.5, 1] * 100}, {"transform": ["logit"]}, "target 'y' holds 1 in data row 2"),
        ({"w": [1, -2] * 100}, {"weight": "w"}, "weight column 'w' holds -2 in data row 2; weights are 0 or more"),
        ({"w": [0] * 200}, {"weight": "w"}, "weight column 'w' is 0 in every row"),
        ({"w": [1, None] * 100}, {"weight": "w"}, "weight column 'w' is missing in 100 of 200 rows"),
        ({"w": ["x", "1"] * 100}, {"weight": "w"}, "column 'w' holds 'x' in data row 1, which is not a number"),
        ({"w": [1.0, np.inf] * 100}, {"weight": "w"}, "column 'w' holds an infinite value (inf) in data row 2"),
        ({"g": ["u", None] * 100}, {"group": "g"}, "group column 'g' is missing in 100 of 200 rows"),
        ({"t": ["u", "v"] * 100}, {"time": "t"}, "time column 't' is categorical, which has no order"),
        ({"t": ["1/2/2024", "2/2/2024"] * 100}, {"time": "t"}, "write dates as 2024-01-31"),
        ({"t": [1, None] * 100}, {"time": "t"}, "time column 't' is missing in 100 of 200 rows"),
        ({"l": [[1]] * 200}, {"name": "t.parquet"}, "column 'l' has the type List, which is no single value a row"),
    ],
)
def test_columns_that_cannot_have_their_role_are_refused(tmp_path, columns, options, sentence):
    assert sentence in refusal(tmp_path, frame(**columns), **options)


def test_too_few_rows_are_refused_with_the_number_needed(tmp_path):
    assert refusal(tmp_path, frame()[:29]) == "29 rows are too few to train on; at least 30 are needed"
    assert read(tmp_path, frame()[:30]).rows == 30
    assert refusal(tmp_path, frame()[:0]) == "t.csv has a header but no rows"


def test_a_semicolon_table_is_read_with_its_delimiter(tmp_path):
    path = tmp_path / "t.csv"
    frame().write_csv(path, separator=";")
    with pytest.raises(TableError, match="read it with --delimiter ';'"):
        read_table(path, TableOptions(target=["y"]))
    assert read_table(path, TableOptions(target=["y"], delimiter=";")).rows == ROWS
