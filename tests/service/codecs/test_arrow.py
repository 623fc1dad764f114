import datetime as dt
import io
import math
import random
import struct
import sys
from decimal import Decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.manifest import Column
from service.codecs.features import features_of
from service.codecs.tables import FORMATS, read_table
from service.codecs.terms import Limits, Terms
from service.errors import InvalidRequestError, TooLargeError
from service.predictions import Prediction
from tests.model_files import MIXED, NUMERIC

NUMERIC_FEATURES, MIXED_FEATURES = features_of(NUMERIC), features_of(MIXED)
ARROW = FORMATS[b"application/vnd.apache.arrow.stream"]
A, B, COLOUR, OPEN, WHEN = range(5)


def stream(columns, *, rows=None, **options):
    """The bytes of a table, in batches of so many rows."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


def read(body, query="", features=MIXED_FEATURES, *, targets=1, **limits):
    limits = Limits(**({"rows": 1000, "answer_values": 10_000} | limits))
    return read_table(body, query.encode(), ARROW, Terms(features, targets, 0.9, limits))


def column(name, values):
    """How a column is read; `values` is an Arrow array."""
    return read(stream({name: values})).question.x[:, MIXED_FEATURES.positions[name]].tolist()


def refusal(body, **more):
    with pytest.raises(InvalidRequestError) as caught:
        read(body, **more)
    return [str(problem) for problem in caught.value.problems] or [caught.value.sentence]


@pytest.mark.parametrize("rows", [None, 1])
def test_columns_of_all_kinds_in_any_order_and_in_several_batches(rows):
    body = stream(
        {
            "when": pa.array([dt.datetime(2021, 1, 1), None], pa.timestamp("us")),  # noqa: DTZ001 - without a zone it is UTC
            "colour": pa.array(["red", None]).dictionary_encode(),
            "open": [True, False],
            "b": pa.array([4, 5], pa.int16()),
            "a": pa.array([0.5, None], pa.float32()),
        },
        rows=rows,
    )
    np.testing.assert_equal(read(body).question.x, [[0.5, 4, 2, 1, 1609459200.0], [np.nan, 5, np.nan, 0, np.nan]])


@pytest.mark.parametrize(
    "type_", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
)
def test_numbers_of_every_type(type_):
    array = pa.array([1, None, 3]).cast(type_)
    np.testing.assert_equal(column("a", array), [1, math.nan, 3])
    np.testing.assert_equal(column("a", array.cast("float64").dictionary_encode()), [1, math.nan, 3])


def test_decimals_and_columns_of_null():
    assert column("a", pa.array([Decimal("1.50")])) == [1.5]
    np.testing.assert_equal([column(name, pa.nulls(1)) for name in ("a", "colour", "when")], [[math.nan]] * 3)
    largest = Decimal(10**37)
    np.testing.assert_equal(column("a", pa.array([Decimal(2), None, largest], pa.decimal128(38, 0))), [2, math.nan, 1e37])


@pytest.mark.parametrize("type_", [pa.decimal128(38, 0), pa.decimal128(30, 2), pa.int64(), pa.uint64(), pa.string()])
def test_ids_that_float64_does_not_tell_apart(type_):
    ids = [2**53 + more for more in (0, 1, 3)]
    features = features_of([Column(name="id", kind="categorical", categories=[*map(str, ids)], integer=True)])
    array = pa.array([ids[2], None, ids[1]]).cast(type_)
    for sent in (array, array.dictionary_encode()):
        np.testing.assert_equal(read(stream({"id": sent}), features=features).question.x, [[2], [math.nan], [1]])
    huge = pa.array([Decimal(ids[1]), Decimal(10**30)], pa.decimal128(38, 0))
    np.testing.assert_equal(read(stream({"id": huge}), features=features).question.x, [[1], [math.nan]])
    assert "may stand for several whole numbers" in refusal(stream({"id": pa.array([float(ids[0])])}), features=features)[0]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["red", None, "blue"]),
        pa.array(["red", None, "blue"], pa.large_string()),
        pa.array(["red", None, "blue"], pa.string_view()),
        pa.array(["red", None, "blue"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([2, None, 1], pa.uint64()), pa.array(["x", "blue", "red"], pa.string_view())),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int8()), ["red", None, "blue"]),
    ],
    ids=["string", "large", "view", "dictionary", "dictionary of views", "null in the dictionary"],
)
def test_texts_of_every_type(values):
    for rows in (None, 2):
        x = read(stream({"colour": values}, rows=rows)).question.x
        np.testing.assert_equal(x[:, COLOUR], [2, math.nan, 0])


@pytest.mark.parametrize(
    "values",
    [
        *(pa.array([86400 * 10**k, None], pa.timestamp(unit)) for k, unit in ((0, "s"), (3, "ms"), (6, "us"), (9, "ns"))),
        pa.array([86400, None], pa.timestamp("s", tz="Europe/Rome")),
        pa.array([1, None], pa.date32()),
        pa.array([86400_000, None], pa.date64()),
        pa.array(["1970-01-02", None]),
        pa.array([86400.0, None]),
        pa.array([86400, None]),
    ],
    ids=lambda values: str(values.type),
)
def test_moments_of_every_type(values):
    np.testing.assert_equal(column("when", values), [86400.0, math.nan])


def test_booleans_may_be_numbers():
    np.testing.assert_equal(column("open", pa.array([1.0, 0.0, math.nan, None])), [1, 0, math.nan, math.nan])


def test_what_polars_writes():
    frame = pl.DataFrame({"colour": ["red", "blue", None], "open": [True, False, None], "when": ["2021-01-01"] * 3})
    expected = [[2, 1, 1609459200.0], [0, 0, 1609459200.0], [math.nan, math.nan, 1609459200.0]]
    for colour in (pl.String, pl.Categorical, pl.Enum(["red", "green", "blue"])):
        sink = io.BytesIO()
        frame.with_columns(pl.col("colour").cast(colour), pl.col("when").str.to_date()).write_ipc_stream(sink)
        np.testing.assert_equal(read(sink.getvalue()).question.x[:, [COLOUR, OPEN, WHEN]], expected)


def test_columns_that_are_left_out_are_missing():
    request = read(stream({"b": [2]}), features=NUMERIC_FEATURES)
    np.testing.assert_equal(request.question.x, [[math.nan, 2]])
    assert request.warnings == {0: ["a is missing; it never was in training"]}


def test_dictionaries_that_change_between_batches():
    chunks = [pa.DictionaryArray.from_arrays(pa.array([0]), [text]) for text in ("red", "mauve", "blue")]
    request = read(stream({"colour": pa.chunked_array(chunks)}))
    np.testing.assert_equal(request.question.x[:, COLOUR], [2, math.nan, 0])
    assert request.warnings[1][0].startswith("colour 'mauve' is an unknown category")


def test_unknown_categories_are_told_by_row():
    body = stream({"colour": ["mauve", "red", "mauve", "pink"]})
    request = read(body, features=features_of(MIXED[2:3]))
    assert {row: [text[:14] for text in texts] for row, texts in request.warnings.items()} == {
        0: ["colour 'mauve'"],
        2: ["colour 'mauve'"],
        3: ["colour 'pink' "],
    }
    assert [problem[:30] for problem in refusal(body, query="strict=true")] == [
        f"row {row}, feature 'colour': {text!r}"[:30] for row, text in ((0, "mauve"), (2, "mauve"), (3, "pink"))
    ]


@pytest.mark.parametrize(
    ("columns", "problems"),
    [
        ({"a": ["1", "x", "1"]}, ["row 0, feature 'a': '1' is a text; give a number, without quotes",
                                  "row 1, feature 'a': 'x' is a text; give a number",
                                  "row 2, feature 'a': '1' is a text; give a number, without quotes"]),
        ({"a": [1.0, math.inf]}, ["row 1, feature 'a': is infinite; give a finite number"]),
        ({"a": [None, True]}, ["row 1, feature 'a': true is a boolean; give a number"]),
        ({"colour": [3]}, ["row 0, feature 'colour': 3 is a number; give a text: blue, green, red"]),
        ({"open": [2]}, ["row 0, feature 'open': 2 is a number; give true or false (or 1 or 0)"]),
        ({"b": [dt.date(2021, 1, 1)]}, ["feature 'b': is a column of date32[day]; give numbers"]),
        ({"a": [[1.0]], "colour": [b"red"]}, ["feature 'a': is a column of list<item: double>; give numbers",
                                              "feature 'colour': is a column of binary; give texts"]),
        ({"coluor": ["red"]}, ["column 'coluor' is no feature of this model; did you mean 'colour'?"]),
        (pa.table([[1], [2]], names=["a", "a"]), ["column 'a' stands twice in the header"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_said(columns, problems):
    assert refusal(stream(columns)) == problems


def test_at_most_as_many_problems_are_listed_as_of_other_formats():
    assert len(refusal(stream({"a": ["x"] * 100, "b": [f"{row}" for row in range(100)]}))) > 20
    with pytest.raises(InvalidRequestError, match="the request has more than 20 problems; the first: row 0") as caught:
        read(stream({"a": ["x"] * 100}))
    assert len(caught.value.body()["details"]) == 20


def test_too_many_rows_are_refused_before_they_are_read():
    with pytest.raises(TooLargeError, match="1001 rows; at most 1000"):
        read(stream({"a": ["x"] * 1001}))


def without_columns(rows):
    batch = pa.RecordBatch.from_struct_array(pa.array([{}] * 7, pa.struct([])))
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    body = sink.getvalue()
    place = body.rindex(struct.pack("<q", 7))
    return body[:place] + struct.pack("<q", rows) + body[place + 8 :]


def test_a_batch_without_columns_holds_rows_that_miss_everything():
    assert read(without_columns(3), features=NUMERIC_FEATURES).question.x.shape == (3, 2)
    with pytest.raises(TooLargeError, match=f"{2**62} rows"):
        read(without_columns(2**62))
    assert refusal(without_columns(-1)) == ["a record batch says that it has -1 rows"]


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_buffers_are_refused(compression):
    for columns in ({"a": [1.0] * 100}, {"colour": pa.array(["red"] * 100).dictionary_encode()}):
        assert "compressed Arrow buffers are not read" in refusal(stream(columns, compression=compression))[0]


def test_deltas_of_dictionaries_are_refused():
    chunks = [pa.DictionaryArray.from_arrays(pa.array([0]), texts) for texts in (["red"], ["red", "blue"])]
    body = stream({"colour": pa.chunked_array(chunks)}, emit_dictionary_deltas=True)
    assert "deltas of dictionaries are not read" in refusal(body)[0]


def test_buffers_that_overlap_are_refused():
    body = stream({"a": np.full(1024, 0.1), "b": np.full(1024, 0.1)})
    own, shared = (
        struct.pack("<4q", 8192, 0, 8192, 8192),
        struct.pack("<4q", 8192, 0, 0, 8192),
    )  # offsets and sizes of b's buffers
    both, one = struct.pack("<q", 16384), struct.pack("<q", 8192)  # size of all buffers
    assert (body.count(own), body.count(both)) == (1, 1)
    shorter = body[: -8 - 8192] + body[-8:]
    assert refusal(shorter.replace(own, shared).replace(both, one)) == ["the buffers of the Arrow stream overlap"]


def views(text, rows):
    """`rows` views of one text: alike, or each a byte shorter than the one before."""

    def made(lengths):
        raw = b"".join(struct.pack("<i4sii", length, text[:4].encode(), 0, 0) for length in lengths)
        return pa.Array.from_buffers(pa.string_view(), rows, [None, pa.py_buffer(raw), pa.py_buffer(text.encode())])

    return made([len(text)] * rows), made(range(len(text), len(text) - rows, -1))


def test_views_may_share_a_text_but_no_part_of_one():
    alike, shorter = views("x" * 10_000, 500)
    request = read(stream({"colour": alike}))
    assert len(request.warnings) == 500
    assert "the texts of a string_view column overlap" in refusal(stream({"colour": shorter}))[0]
    dictionary = pa.DictionaryArray.from_arrays(pa.array(range(500)), shorter)
    assert "the texts of a string_view column overlap" in refusal(stream({"colour": dictionary}))[0]


def test_the_view_of_a_null_may_lead_anywhere():
    raw = struct.pack("<i4sii", 3, b"red\0", 0, 0) + struct.pack("<i4sii", 2**30, b"none", 99, 2**30)
    array = pa.Array.from_buffers(pa.string_view(), 2, [pa.py_buffer(b"\1"), pa.py_buffer(raw)])
    np.testing.assert_equal(column("colour", array), [2, math.nan])


def test_an_index_that_is_not_in_its_dictionary_is_refused():
    indices = pa.array([0, 5], pa.int8())
    array = pa.DictionaryArray.from_arrays(indices, ["red"], safe=False)
    assert refusal(stream({"colour": array})) == ["the body is not a valid Arrow stream: an index is not in its dictionary"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body is not a valid Arrow stream: "),
        (b'{"instances": []}', "the body is not a valid Arrow stream: "),
        (b"ARROW1\0\0", "the body is an Arrow file; send a stream"),
        (stream({"a": [1.0]})[:-20], "the body is not a valid Arrow stream: Expected to read 136 metadata bytes"),
        (stream({"a": [1.0]}) * 2, "the body holds 280 bytes after its Arrow stream; send one stream"),
    ],
)
def test_what_is_no_stream_is_refused(body, sentence):
    assert refusal(body)[0].startswith(sentence)


def test_the_answer_has_the_columns_of_a_csv_answer():
    request = read(stream({"a": [100.0, 1.0], "b": [2.0, 2.0]}), "coverage=0.5&thresholds=4", NUMERIC_FEATURES)
    numbers = np.arange(2, dtype=np.float32)[:, None]
    bounds = numbers[:, :, None]
    prediction = Prediction(numbers, numbers, numbers, bounds, bounds + 1, cdf=bounds.astype(float))
    answer = pa.ipc.open_stream(ARROW.write(prediction, request, ["y"])).read_all()
    assert answer.column_names == FORMATS[b"text/csv"].write(prediction, request, ["y"]).decode().split("\n")[0].split(",")
    assert [str(type_) for type_ in answer.schema.types] == ["float"] * 5 + ["double", "string"]
    assert answer["y_upper_0.5"].to_pylist() == [1.0, 2.0]
    assert answer["warnings"].to_pylist() == ["a 100 is outside the training range -3 to 3", None]
    prediction.mean[1, 0] = np.inf
    with pytest.raises(InvalidRequestError, match="row 1: the prediction of y is not a finite number"):
        ARROW.write(prediction, request, ["y"])


def test_without_pyarrow_the_way_out_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "service.codecs.arrow")
    monkeypatch.delattr("service.codecs.arrow")
    assert refusal(b"") == ["this service reads no Arrow until it has pyarrow: pip install pyarrow"]


def mutated(body, rng):
    """`body` with one to four changes of the kinds that broken writers and attackers make."""
    changed = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[place] = rng.randrange(256)
            case 1:
                changed[place : place + 4] = rng.choice([b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff" * 4, rng.randbytes(4)])
            case 2:
                place -= place % 8
                changed[place : place + 8] = (1 << rng.randrange(63)).to_bytes(8, "little")
            case _:
                del changed[place : place + rng.randrange(1, 16)]
    return bytes(changed)


def test_no_stream_whatever_is_a_bug():
    texts = ["red", None, "blue", "longer than twelve bytes"]
    bodies = [
        stream({"when": pa.array([1, None], pa.timestamp("us")), "a": [0.5, None], "open": [True, None]}, rows=1),
        stream({"colour": pa.array(texts).dictionary_encode(), "b": pa.array([1, 2, 3, 4], pa.int16())}),
        stream({"colour": pa.array(texts, pa.string_view()), "when": ["2021-01-01", None, "", "x"]}, rows=3),
        stream({"a": [1.0] * 20}, compression="zstd"),
    ]  # fmt: skip
    rng = random.Random(7)  # noqa: S311
    read_whole = 0
    for _ in range(2000):
        try:
            question = read(mutated(rng.choice(bodies), rng)).question
        except (InvalidRequestError, TooLargeError):
            continue
        assert not np.isinf(question.x).any()
        read_whole += 1
    assert read_whole
