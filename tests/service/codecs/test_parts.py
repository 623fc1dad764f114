import json
import time
from collections.abc import Iterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs import parts
from service.codecs.parts import in_parts

texts = st.text(alphabet='"}],[{ \\a') | st.sampled_from(["instances", "},{", '"},{"', "],["])
values = st.recursive(
    st.none() | st.integers(0, 9) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
rows = st.lists(st.dictionaries(texts, values, max_size=3) | st.lists(values, max_size=3), min_size=1, max_size=12)
scalars = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
arrays = rows | st.lists(scalars, min_size=1, max_size=30) | st.lists(values, min_size=1, max_size=12)
others = st.dictionaries(texts.filter(lambda key: key != "instances"), values, max_size=3)


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 20)


def read(text):
    """The document in parts put together; None where it is to be read whole."""
    try:
        document = in_parts(text, ["rows", "instances"], lambda document: [(document, "rows"), (document, "instances")])
        if document is None:
            return None
        assert isinstance(document["instances"], Iterator)
        return document | {"instances": [row for part in document["instances"] for row in part]}
    except orjson.JSONDecodeError:
        return None


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n ", " : ")])
@pytest.mark.parametrize(
    "array",
    [[{"a": k, "b": [1.5, None]} for k in range(1000)], [[k, None, 1e9] for k in range(1000)], [0.123456789, None, True] * 500],
)
def test_an_array_is_read_part_by_part(array, separators, monkeypatch):
    document = {"seed": 7, "instances": array, "coverage": [0.5, 0.9]}
    read_bytes = []

    def loads(text):
        read_bytes.append(len(text))
        return json.loads(text)

    monkeypatch.setattr(orjson, "loads", loads)
    assert read(json.dumps(document, separators=separators).encode()) == document
    assert len(read_bytes) > 300
    assert max(read_bytes) < 300


@pytest.mark.parametrize("element", [b'"instances":[[1]],', b'"instances":[1],', b'"instances":[1,', b'"instances":[[1,'])
def test_the_time_grows_with_the_text_and_no_faster(element, monkeypatch):
    """What looks like many arrays is not searched to its end for each of them: that would take minutes here."""
    monkeypatch.setattr(parts, "PART_BYTES", 128 * 1024)
    text = b"{" + element * 100_000 + b'"a":1}'
    begin = time.perf_counter()
    assert in_parts(text, ["instances"], lambda document: [(document, "instances")]) is None
    assert time.perf_counter() - begin < 5


@given(arrays, others, st.booleans(), st.booleans())
def test_what_is_read_in_parts_is_what_is_there(array, others, first, spaced):
    document = {"instances": array} | others if first else others | {"instances": array}
    text = json.dumps(document, separators=(", ", ": ") if spaced else (",", ":"), ensure_ascii=False).encode()
    assert read(text) in (None, document)


@given(arrays, st.data())
def test_a_byte_that_is_wrong_is_seen(array, data):
    text = bytearray(json.dumps({"instances": array, "seed": 7}, ensure_ascii=False).encode())
    place = data.draw(st.integers(0, len(text) - 1))
    text[place : place + data.draw(st.integers(0, 1))] = data.draw(
        st.sampled_from([b"\x0b", b"\x0c", b'"', b",", b"[", b"]", b"}", b"\xff"])
    )
    outcome = read(bytes(text))
    if outcome is not None:
        assert outcome == orjson.loads(bytes(text))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"instances": []}',
        b'{"instances": [1, 2, 3], "more": [1, 2, 3, 4, 5, 6, 7, 8, 9]}',
        b'{"instances": [                         , 1, 2, 3, 4, 5, 6, 7]}',
        b'{"instances": [1, 2, 3, 4, 5, 6, 7,                         ]}',
        b'{"instances": [1, 2, 3, 4, 5, 6, 7,, 8, 9, 10, 11, 12, 13, 14]}',
        b'{"instances": [1, 2, 3, 4, 5, 6, 7, 8,                           , 9, 10, 11, 12, 13, 14]}',
        b'{"instances": [1, 2, 3, 4, 5, 6, [7, 8, 9, 10, 11, 12, 13, 14]]',
        b'{"inputs": [[1], [2]]}',
        b'[{"instances": [[1], [2], [3], [4], [5], [6], [7], [8]]}]',
        b'{"more": {"instances": [[1], [2], [3], [4], [5], [6], [7], [8]]}}',
        b'{"instances": [[1], [2], [3], [4], [5], [6], [7], [8]], "instances": [[9]]}',
        b'{"instances": [[1], [2], [3], [4], [5], [6], [7], [8]], "inst\\u0061nces": [[9]]}',
        b'{"instances": [[1], [2], [3], [4], [5], [6], [7], [8]]',
        b'{"instances": [[1], [2], [3], [4],\x0c[5], [6], [7], [8]]}',
        b'{"instances": [[1], [2], [3], [4]\x0b, [5], [6], [7], [8]]}',
        b'{"instances": [[1], [2], [3], [4], [5], {6}, [7], [8]]}',
        b'{"instances": [[1], [2], [3], [4], [5}, {6], [7], [8]]}',
        b'{"instances": [[1, [2, "], [3], [4], [5], [6], [7], [8]"]]}',
    ],
)
def test_what_has_not_the_form_is_to_be_read_whole(text):
    assert read(text) is None


def test_a_text_that_looks_like_a_place_between_rows_is_none():
    assert read(orjson.dumps({"instances": [{"a": number, "b": "}, {"} for number in range(1000)]})) is None
