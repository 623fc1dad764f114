import gzip
import json
import shlex

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.errors import TableError
from training.files import cleaned, count_rows, open_table, read_batches

NUMBERS = "a,b\n" + "".join(f"{i},{i / 4}\n" for i in range(2000))


def refusal(path, **options) -> str:
    """The sentence for a file, wherever between the header and the last batch it is found."""
    with pytest.raises(TableError) as refused:
        list(read_batches(path, **options))
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert "polars" not in sentence.lower()
    assert "schema" not in sentence.lower()
    return sentence


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.csv", b"", "t.csv is empty"),
        ("t.csv", b" \n\n", "t.csv is empty"),
        ("t.csv", b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG picture; a table is a CSV, CSV.gz or Parquet file"),
        ("t.csv", b"PK\x03\x04" + bytes(99), "an Excel workbook"),
        ("t.csv", b"<!doctype html><html>", "an HTML or XML page"),
        ("t.csv", json.dumps([{"a": 1}]).encode(), "is JSON"),
        ("t.csv", json.dumps({"a": [1]}, indent=1).encode(), "is JSON"),
        ("t.csv", bytes(range(1, 9)) + bytes(99), "a binary file"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), "UTF-16 text"),
        ("t.csv", "a,b\n1,é\n".encode("latin1"), "not UTF-8 text: it holds the byte 0xe9"),
        ("t.csv", "é,b\n1,2\n".encode("latin1"), "not UTF-8 text: it holds the byte 0xe9"),
        ("t.csv", b"a,b\r1,2\r3,4\r", "bare carriage return"),
        ("t.csv", b"a;b\n1;2\n", "read it with --delimiter ';'"),
        ("t.csv", b"a\tb\n1\t2\n", "read it with --delimiter tab"),
        ("t.csv", b"a|b\n1|2\n", "read it with --delimiter '|'"),
        ("t.csv", b"a,b,a\n1,2,3\n", "more than one column 'a'"),
        ("t.csv", b"a, a\n1,2\n", "more than one column 'a'"),
        ("t.csv", b"a,*\n1,2\n", "t.csv has a column '*', which stands for several columns in queries; rename it"),
        ("t.csv", b"a,^a.*$\n1,2\n", "t.csv has a column '^a.*$'"),
        ("t.csv", b"a,,b\n0,1,2\n", "column 2 of t.csv has no name; name it (is the header the first line?)"),
        ("t.csv", b"a,b\n1,2\n3,4,5\n", "line 3 of t.csv has 3 fields where the header has 2"),
        ("t.csv", b"a,b\n1,2\n3\n5,6\n", "line 3 of t.csv has 1 fields where the header has 2"),
        ("t.csv", b'a,b\n1,2\n"3,4"\n5,6\n', "line 3 of t.csv has 1 fields where the header has 2"),
        ("t.csv", b'a,b\n1,2\n"3,4\n5,6\n', "a quote is misplaced or never closed"),
        ("t.csv.gz", gzip.compress(NUMBERS.encode())[:-2000], "truncated or damaged gzip"),
        ("t.csv.gz", gzip.compress(b"\x89PNG" + bytes(99)), "a PNG picture"),
        ("t.csv.gz", gzip.compress(b"PAR1" + bytes(99)), "a compressed Parquet file"),
        ("t.parquet", NUMBERS.encode(), "t.parquet is not a Parquet file"),
        ("t.parquet", b"PAR1" + bytes(99), "truncated Parquet"),
        ("t.parquet", b"PAR1", "truncated Parquet"),
        ("t.parquet", b"PAR1" + bytes(99) + b"PAR1", "damaged Parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_the_reason(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content)
    assert sentence in refusal(path)


def test_parquet_damaged_in_its_pages_is_refused_in_plain_words(tmp_path):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": [str(i) for i in range(5000)]}).write_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 2004) + content[-2000:])
    assert "damaged Parquet" in refusal(path)


def test_a_parquet_column_that_stands_for_several_is_refused(tmp_path):
    pl.DataFrame({"a": [1], "*": [2]}).write_parquet(tmp_path / "t.parquet")
    assert "t.parquet has a column '*'" in refusal(tmp_path / "t.parquet")


def test_a_cell_may_be_long(tmp_path):
    (tmp_path / "t.csv").write_text(f'a,b\n1,"{"x" * 200_000}, y"\n')
    (frame,) = read_batches(tmp_path / "t.csv")
    assert frame["b"].str.len_chars().to_list() == [200_003]


def test_a_path_that_holds_no_file_is_refused(tmp_path):
    (tmp_path / "concrete.csv").write_text("a,b\n1,2\n")
    assert "nearest names are 'concrete.csv'" in refusal(tmp_path / "concret.csv")
    assert "there is no file" in refusal(tmp_path / "no" / "such.csv")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("delimiter", ["", ",,", "é", '"', "\n", "TAB", "semicolon"])
def test_a_delimiter_is_one_ascii_character(tmp_path, delimiter):
    assert "is not one ASCII character such as ',' ';' '|', or the word tab" in refusal(tmp_path / "t.csv", delimiter=delimiter)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_that_a_refusal_advises_reads_the_table_when_a_shell_has_read_it(tmp_path, delimiter):
    path = tmp_path / "t.csv"
    path.write_text(f"a{delimiter}b\n1{delimiter}2\n")
    advised = shlex.split(refusal(path, delimiter="^"))[-1]
    assert next(read_batches(path, delimiter=advised)).rows() == [("1", "2")]


@pytest.mark.parametrize(("delimiter", "text"), [(";", ";"), ("|", "|"), ("\t", "\t"), (r"\t", "\t"), ("tab", "\t")])
def test_other_delimiters_can_be_named(tmp_path, delimiter, text):
    path = tmp_path / "t.csv"
    path.write_text(f"a{text}b\n1{text}2\n")
    assert next(read_batches(path, delimiter=delimiter)).rows() == [("1", "2")]


def test_cells_arrive_without_blanks_and_missing_words_as_null(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'\xef\xbb\xbf a , "b"\r\n 1 ,x y\r\n ?,NA\r\nNaN,null\r\n#N/A,""\r\n')
    (frame,) = read_batches(path)
    assert frame.to_dict(as_series=False) == {"a": ["1", None, None, None], '"b"': ["x y", None, None, None]}


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_text_as_it_stands_keeps_its_blanks_and_missing_words_until_it_is_cleaned(tmp_path, name):
    path = tmp_path / name
    frame = pl.DataFrame({"id": [" a ", "NA", "?", None, "007"], "n": [1, 2, None, 4, 5]})
    (frame.write_csv if name.endswith(".csv") else frame.write_parquet)(path)
    (stored,) = read_batches(path, columns=["n", "id"], as_it_stands=True)
    assert stored.columns == ["n", "id"]
    assert stored["id"].to_list() == [" a ", "NA", "?", None, "007"]
    (whole,) = read_batches(path, columns=["n", "id"])
    assert cleaned(stored).equals(whole)
    assert whole["id"].to_list() == ["a", None, None, None, "007"]


def test_quoted_delimiters_line_breaks_and_quotes_are_part_of_a_value(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('"a,1","b\nc"\n"1,5","two\nlines"\n"say ""x""",4\n')
    (frame,) = read_batches(path)
    assert frame.columns == ["a,1", "b\nc"]
    assert frame.rows() == [("1,5", "two\nlines"), ('say "x"', "4")]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t[1]*.csv", "t.parquet", "t.txt"])
def test_batches_hold_every_row_once_and_in_order(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".parquet"):
        pl.read_csv(NUMBERS.encode()).write_parquet(path, row_group_size=300)
    else:
        path.write_bytes(gzip.compress(NUMBERS.encode()) if name.endswith(".gz") else NUMBERS.encode())
    batches = list(read_batches(path, columns=["b", "a"], batch_rows=512))
    assert [batch.height for batch in batches] == [512, 512, 512, 464]
    whole = pl.concat(batches)
    assert whole.columns == ["b", "a"]
    assert whole["a"].cast(pl.Int64).to_list() == list(range(2000))
    assert count_rows(path) == (None if name.endswith(".gz") else 2000)


def test_gzip_is_known_by_its_content_and_not_by_its_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(gzip.compress(NUMBERS.encode()))
    assert sum(batch.height for batch in read_batches(path)) == 2000


def test_a_blank_line_is_a_row_of_a_batch_so_that_rows_stay_where_they_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n\n3,4\n")
    (frame,) = read_batches(path)
    assert frame.rows() == [("1", "2"), (None, None), ("3", "4")]
    assert count_rows(path) == 3


def test_a_header_without_rows_has_no_batches(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n")
    assert list(read_batches(path)) == []
    assert open_table(path).names == ["a", "b"]


def test_a_column_that_is_not_there_is_refused_before_the_first_batch(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Cement,Water\n1,2\n")
    with pytest.raises(TableError, match=r"t.csv has no column 'cemnt'; the nearest are 'Cement'"):
        read_batches(path, columns=["cemnt"])


def test_a_missing_file_has_no_row_count(tmp_path):
    with pytest.raises(TableError, match="there is no file"):
        count_rows(tmp_path / "t.csv")


@pytest.mark.parametrize("zone", ["+05:30", "Mars/Olympus"])
def test_a_time_zone_that_polars_does_not_know_is_told(tmp_path, zone):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"t": pa.array([0, 1], pa.timestamp("s", tz=zone)), "a": [1.0, 2.0]}), path)
    sentence = refusal(path)
    assert zone in sentence
    assert "write it with plain types and times in UTC" in sentence


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["red", "NA", " "])])
def test_a_word_for_a_missing_value_is_one_among_categories_of_parquet_too(tmp_path, kind):
    pl.DataFrame({"c": pl.Series(["red", "NA", " ", None], dtype=pl.String).cast(kind)}).write_parquet(tmp_path / "c.parquet")
    (frame,) = read_batches(tmp_path / "c.parquet")
    assert frame["c"].dtype in (pl.Categorical, pl.Enum)
    assert frame["c"].cast(pl.String).to_list() == ["red", None, None, None]
