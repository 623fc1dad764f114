"""The client against the application in process, and against answers that no errorbar gives."""

import asyncio
import math
import sqlite3
from collections import UserDict, deque
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import NamedTuple

import httpx
import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pydantic
import pytest
import torch

from service.client import AsyncClient, Client, ErrorbarError
from service.security import add_key
from tests.model_files import MIXED, write_formula_model
from tests.service.conftest import running

pytestmark = pytest.mark.anyio


def async_client(service, **options):
    return AsyncClient("http://test", transport=httpx.ASGITransport(service.app), **options)


def answering(status, content, *, key=None):
    """A sync client whose server always gives this answer, and the requests it saw."""
    seen = []

    def answer(request):
        seen.append(request)
        return httpx.Response(status, content=content)

    return Client("http://test", key=key, transport=httpx.MockTransport(answer)), seen


async def test_predictions_come_as_the_server_sends_them(repository):
    async with running(repository) as service, async_client(service) as client:
        answer = await client.predict("m", [{"a": 1, "b": 2}, [1, 2]], coverage=0.5, quantiles=[0.1, 0.9], samples=2, seed=1)
    assert answer["model"] == {"name": "m", "version": "1"}
    first, second = answer["predictions"]
    assert first["mean"] == second["mean"] == 5.0
    assert [interval["coverage"] for interval in first["intervals"]] == [0.5]
    assert len(first["quantiles"]) == len(first["samples"]) == 2


async def test_rows_may_be_numpy_arrays_tuples_and_dates_and_nan_is_missing(tmp_path):
    write_formula_model(tmp_path / "m" / "1" / "model.onnx", columns=MIXED)
    row = {"a": np.float32(1), "b": float("nan"), "colour": None, "open": True, "when": datetime(2022, 1, 1)}  # noqa: DTZ001 - without a zone it is UTC
    plain = {"a": 1, "colour": None, "open": True, "when": "2022-01-01T00:00:00Z"}
    async with running(tmp_path) as service, async_client(service) as client:
        first, second = (await client.predict("m", (row, plain)))["predictions"]
    assert first == second


async def test_an_array_of_rows_is_taken_as_it_is(repository):
    async with running(repository) as service, async_client(service) as client:
        answer = await client.predict("m", np.array([[1.0, 2.0], [np.nan, 2.0]]))
    assert [prediction["mean"] for prediction in answer["predictions"]] == [5.0, 4.0]


async def test_an_error_carries_the_servers_sentence_details_and_request_id(repository):
    async with running(repository) as service, async_client(service) as client:
        with pytest.raises(ErrorbarError) as caught:
            await client.predict("m", [{"a": "x", "b": 1}])
    assert str(caught.value) == "row 0, feature 'a': 'x' is a text; give a number"
    assert caught.value.status == 400
    assert caught.value.details == [{"row": 0, "feature": "a", "problem": "'x' is a text; give a number"}]
    assert len(caught.value.request_id or "") == 16


async def test_models_metadata_and_readiness_can_be_asked_for(repository, tmp_path):
    async with running(repository) as service, async_client(service) as client:
        assert [model["name"] for model in await client.models()] == ["m"]
        assert (await client.metadata("m", version=1))["version"] == "1"
        assert await client.ready()
        await client.wait_until_ready()
    async with running(tmp_path / "none") as service, async_client(service) as client:
        assert not await client.ready()
        with pytest.raises(ErrorbarError, match=r"not ready within 0 s: not ready: .* does not exist yet") as caught:
            await client.wait_until_ready(timeout=0)
        assert caught.value.status == 503


async def test_waiting_ends_when_the_first_model_comes(tmp_path):
    async with running(tmp_path) as service, async_client(service) as client:
        waiting = asyncio.create_task(client.wait_until_ready(timeout=20))
        write_formula_model(tmp_path / "m" / "1" / "model.onnx")
        await service.state.repository.rescan()
        await waiting


async def test_a_service_with_keys_answers_the_client_that_has_one(repository, tmp_path):
    key = add_key(tmp_path / "keys.json", name="user", scopes=frozenset(["predict"]))
    async with running(repository, keys=tmp_path / "keys.json") as service:
        async with async_client(service, key=f"{key}\n") as client:  # as a file of one line holds it
            assert len((await client.predict("m", [[1, 2]]))["predictions"]) == 1
            assert [model["name"] for model in await client.models()] == ["m"]
        for wrong, sentence in ((None, "send the header 'Authorization: Bearer <key>'"), ("eb_wrong", "this key is not known")):
            async with async_client(service, key=wrong) as client:
                assert await client.ready()  # health needs no key
                with pytest.raises(ErrorbarError, match=sentence) as caught:
                    await client.predict("m", [[1, 2]])
                assert caught.value.status == 401


def test_the_sync_client_sends_its_key_too():
    client, seen = answering(403, b'{"error": "key ci lacks the scope"}', key="eb_ci")
    with pytest.raises(ErrorbarError, match="key ci lacks the scope") as caught:
        client.predict("m", [])
    assert caught.value.status == 403
    assert seen[0].headers["authorization"] == "Bearer eb_ci"


@pytest.mark.parametrize("key", ["", " ", "eb_one\neb_two"])
def test_what_is_no_key_is_refused_unseen(key):
    with pytest.raises(ValueError, match="a key is one word") as caught:
        Client("http://test", key=key)
    assert "eb_" not in str(caught.value)


def test_version_and_label_choose_the_path():
    client, seen = answering(200, b"{}")
    client.predict("m", [], version=3)
    client.predict("m", [], label="stable")
    client.metadata("a/b")
    paths = [request.url.raw_path.decode() for request in seen]
    assert paths == ["/v1/models/m/versions/3:predict", "/v1/models/m/labels/stable:predict", "/v1/models/a%2Fb/metadata"]
    with pytest.raises(ValueError, match="not both"):
        client.predict("m", [], version=3, label="stable")


def test_the_sync_client_speaks_like_the_async_one():
    client, seen = answering(200, b'{"models": [{"name": "m"}]}')
    with client:
        assert client.models() == [{"name": "m"}]
        assert client.ready()
        client.wait_until_ready()
        client.predict("m", [[1]], coverage=[0.5])
    assert seen[-1].content == b'{"instances":[[1]],"coverage":[0.5]}'


@pytest.mark.parametrize(
    ("status", "content"), [(502, b"<html>Bad gateway</html>"), (200, b"<html>"), (200, b"[]"), (500, b"[]")]
)
def test_an_answer_of_another_server_is_an_error_too(status, content):
    client, _ = answering(status, content)
    with pytest.raises(ErrorbarError, match=f"answered {status}, and not in errorbar's form") as caught:
        client.predict("m", [])
    assert caught.value.status == status


def test_a_server_that_is_not_there_is_an_error_too():
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(ErrorbarError, match=r"http://127.0.0.1:9 cannot be reached: ") as caught:
            client.ready()
        assert caught.value.status is None
        with pytest.raises(ErrorbarError, match="not ready within 0 s"):
            client.wait_until_ready(timeout=0)


def test_arrays_of_numpy_in_whatever_order_in_memory_are_rows():
    client, seen = answering(200, b"{}")
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    for rows in (np.asfortranarray(x), x[:, ::-1][:, ::-1], x.astype(object), [x[0], x[1]], [{"a": np.float32(1)}]):
        client.predict("m", rows)
    sent = [orjson.loads(request.content)["instances"] for request in seen]
    assert sent == [[[1.0, 2.0], [3.0, 4.0]]] * 4 + [[{"a": 1.0}]]
    client.predict("m", [{"when": np.datetime64("2022-01-01T00:00:00"), "a": np.array([1.0, 2.0])}])  # the service tells
    assert orjson.loads(seen[-1].content)["instances"] == [{"when": "2022-01-01T00:00:00+00:00", "a": [1.0, 2.0]}]


def test_tensors_of_pytorch_and_series_of_polars_are_rows():
    client, seen = answering(200, b"{}")
    x = torch.tensor([[1.0, 2.0], [3.0, math.nan]])
    series = [pl.Series([1.0, 2.0]), pl.Series([3.0, None])]
    for rows in (x, x.bfloat16(), list(x), x.requires_grad_(), [list(row) for row in x], series):
        client.predict("m", rows)
    assert [orjson.loads(request.content)["instances"] for request in seen] == [[[1.0, 2.0], [3.0, None]]] * 6
    client.predict("m", [{"a": torch.tensor(1.5), "b": torch.tensor(2), "c": torch.tensor(True)}])
    assert orjson.loads(seen[-1].content)["instances"] == [{"a": 1.5, "b": 2, "c": True}]


NOON = datetime(2022, 1, 1, 12, tzinfo=UTC)
AT_NOON = np.datetime64("2022-01-01T12:00:00", "ns")
TABLE = {"a": [1.0, None], "when": [NOON, None], "colour": ["red", None]}


class Named(NamedTuple):
    a: float
    when: datetime


@dataclass(slots=True)
class Record:
    a: float
    when: datetime


class Model(pydantic.BaseModel):
    a: float
    when: datetime


class Series:
    """What the client uses of a Series of pandas; each value is told by iteration."""

    def keys(self):
        return ["a", "when"]

    def __getitem__(self, name):
        return {"a": np.float64(1.0), "when": AT_NOON}[name]

    def __iter__(self):
        return iter([1.0, AT_NOON])


def sqlite_row(query):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(query).fetchone()


class Frame:
    """What the client uses of a DataFrame of pandas; each column is told by iteration."""

    columns = tuple(TABLE)

    def __iter__(self):
        return iter(self.columns)

    def to_dict(self, orient):
        assert orient == "records"
        return pl.DataFrame(TABLE).to_dicts()


@pytest.mark.parametrize(
    "table",
    [pl.DataFrame(TABLE), pa.table(TABLE), pa.table(TABLE).to_batches()[0], Frame()],
    ids=["polars", "arrow", "batch", "pandas"],
)
def test_tables_are_rows_by_name(table):
    client, seen = answering(200, b"{}")
    client.predict("m", table)
    first, second = orjson.loads(seen[0].content)["instances"]
    assert datetime.fromisoformat(first.pop("when")) == NOON
    assert (first, second) == ({"a": 1.0, "colour": "red"}, {"a": None, "when": None, "colour": None})


@pytest.mark.parametrize(
    "row",
    [
        {"a": np.array(1.0), "when": AT_NOON},
        MappingProxyType({"a": Decimal("1.0"), "when": NOON}),
        UserDict(a=1.0, when=AT_NOON.astype("M8[s]")),
        Named(1.0, NOON),
        Record(1.0, NOON),
        Model(a=1.0, when=NOON),
        Series(),
        sqlite_row(f"SELECT 1.0 AS a, '{NOON.isoformat()}' AS 'when'"),
        {np.str_("a"): 1.0, np.str_("when"): NOON},
        np.array([(1.0, AT_NOON)], dtype=[("a", "f8"), ("when", "M8[ns]")])[0],
        np.rec.array([(1.0, AT_NOON)], dtype=[("a", "f8"), ("when", "M8[ns]")])[0],
    ],
    ids=lambda row: type(row).__name__,
)
def test_rows_of_every_kind_that_has_names(row):
    client, seen = answering(200, b"{}")
    client.predict("m", [row])
    (sent,) = orjson.loads(seen[0].content)["instances"]
    assert datetime.fromisoformat(sent.pop("when")) == NOON
    assert sent == {"a": 1.0}


class WithDuplicates(Frame):
    columns = ("a", "a")


class WithNumbers(Frame):
    columns = (0, 1)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (pa.table([[1.0], [2.0]], names=["a", "a"]), "the table has the name 'a' twice; give each feature once"),
        (pa.record_batch([[1.0], [2.0]], names=["a", "a"]), "the table has the name 'a' twice"),
        (WithDuplicates(), "the table has the name 'a' twice"),
        ([{"a": 1.0}, sqlite_row("SELECT 1.0 AS a, 2.0 AS a")], "row 1 has the name 'a' twice"),
        (WithNumbers(), "the table has the name 0, which is no text; rename it as the feature is called"),
        ([{0: 1.0}], "row 0 has the name 0, which is no text"),
    ],
)
def test_names_are_texts_and_each_stands_once(rows, sentence):
    client, seen = answering(200, b"{}")
    with pytest.raises(ErrorbarError, match=sentence):
        client.predict("m", rows)
    assert seen == []


@pytest.mark.parametrize("row", [deque([1.0, NOON]), np.array([AT_NOON, AT_NOON])], ids=lambda row: type(row).__name__)
def test_rows_without_names(row):
    client, seen = answering(200, b"{}")
    client.predict("m", [row])
    (sent,) = orjson.loads(seen[0].content)["instances"]
    assert datetime.fromisoformat(sent[1]) == NOON


@pytest.mark.parametrize("unit", ["", "ns", "us", "ms", "s", "D"])
def test_no_time_is_missing_and_no_date_of_another_century(unit):
    client, seen = answering(200, b"{}")
    nothing = np.datetime64("NaT", unit) if unit else np.datetime64("NaT")
    client.predict("m", [{"when": nothing}, [nothing], np.array([nothing])])
    assert orjson.loads(seen[0].content)["instances"] == [{"when": None}, [None], [None]]


@pytest.mark.parametrize("rows", [{"a": 1.0}, "ab", b"ab", 5, None, np.array(1.0), torch.tensor(1.0)])
def test_what_is_one_row_is_told_that_rows_are_a_list(rows):
    client, seen = answering(200, b"{}")
    with pytest.raises(ErrorbarError, match=f"the rows are one {type(rows).__name__}; give a list of rows, or a table"):
        client.predict("m", rows)
    assert seen == []


def test_a_row_without_an_order_or_values_is_refused():
    client, seen = answering(200, b"{}")
    with pytest.raises(ErrorbarError, match="row 0 is a set, which has no order"):
        client.predict("m", [{1.0, 2.0}])
    with pytest.raises(ErrorbarError, match="row 0 is bytes"):
        client.predict("m", [memoryview(b"red")])
    client.predict("m", [np.array([1.5, 2.5]).data])
    assert orjson.loads(seen[0].content)["instances"] == [[1.5, 2.5]]


@pytest.mark.parametrize("given", [b"red", bytearray(b"red"), np.bytes_(b"red")])
def test_bytes_are_no_array_of_numbers(given):
    client, seen = answering(200, b"{}")
    with pytest.raises(ErrorbarError, match="row 0 is bytes; give values by name"):
        client.predict("m", [given])
    for row in ({"colour": given}, [given]):
        with pytest.raises(ErrorbarError, match="row 0 holds the bytes b'red'; give a text: decode them"):
            client.predict("m", [row])
    assert seen == []


def test_numbers_of_80_bits_are_numbers():
    client, seen = answering(200, b"{}")
    client.predict("m", [{"a": np.longdouble(1.5)}, [np.longdouble("nan")], np.array([1.5], np.longdouble)])
    assert orjson.loads(seen[0].content)["instances"] == [{"a": 1.5}, [None], [1.5]]


@pytest.mark.parametrize("moment", [pa.scalar(1, pa.timestamp("ns")), pa.scalar(2**62, pa.timestamp("s"))])
def test_a_time_of_arrow_that_python_has_not_is_an_error(moment):
    client, _ = answering(200, b"{}")
    with pytest.raises(
        ErrorbarError, match=r"the table cannot be read as rows \(.*\); give times as numbers of seconds since 1970"
    ):
        client.predict("m", pa.table({"when": pa.array([moment])}))


def test_options_may_be_arrays():
    client, seen = answering(200, b"{}")
    client.predict("m", [[1.0]], coverage=np.linspace(0.1, 0.9, 9)[::4], thresholds=np.float32(2), quantiles=np.array(0.5))
    sent = orjson.loads(seen[0].content)
    assert (sent["coverage"], sent["thresholds"], sent["quantiles"]) == ([0.1, 0.5, 0.9], 2.0, 0.5)
    assert "samples" not in sent


def test_a_password_in_an_address_is_not_shown():
    with Client("http://user:secret@127.0.0.1:9/at") as client, pytest.raises(ErrorbarError) as caught:
        client.models()
    assert str(caught.value).startswith("http://127.0.0.1:9/at/ cannot be reached: ")


@pytest.mark.parametrize(
    "value",
    [float("inf"), np.float32("-inf"), np.float64("inf"), np.longdouble("inf"), Decimal("-Infinity"), torch.tensor(math.inf)],
)
def test_infinity_is_refused_and_not_sent_as_a_missing_value(value):
    client, seen = answering(200, b"{}")
    for rows in (
        [[0.0], [value]],
        [{"a": 1.0}, {"a": value}],
        [Record(0.0, NOON), Record(value, NOON)],
        np.array([[0.0], [value]]),
    ):
        with pytest.raises(ErrorbarError, match="row 1 holds infinity"):
            client.predict("m", rows)
    for option in ("coverage", "quantiles", "thresholds"):
        for given in (float("nan"), [0.5, float(value)], np.float32("nan"), np.array([0.5, value]), value):
            with pytest.raises(ErrorbarError, match=f"{option} holds .*, which is no number of JSON"):
                client.predict("m", [[1.0]], **{option: given})
    assert seen == []


@pytest.mark.parametrize("nothing", [Decimal("NaN"), np.float32("nan"), np.longdouble("nan")])
def test_an_option_that_is_no_number_is_not_sent_as_none(nothing):
    client, seen = answering(200, b"{}")
    with pytest.raises(ErrorbarError, match=r"coverage holds .*, which is no number of JSON"):
        client.predict("m", [[1.0]], coverage=nothing)
    assert seen == []


def test_decimals_keep_what_they_are():
    client, seen = answering(200, b"{}")
    values = [
        Decimal(2**53 + 1),
        Decimal("-7.00"),
        Decimal("1.5"),
        Decimal("1E+20"),
        Decimal("1E+300"),
        Decimal("NaN"),
        Decimal("sNaN"),
    ]
    client.predict("m", [{"a": value} for value in values])
    sent = [row["a"] for row in orjson.loads(seen[0].content)["instances"]]
    assert sent == [2**53 + 1, -7, 1.5, 1e20, 1e300, None, None]
    assert list(map(type, sent[:3])) == [int, int, float]


def test_what_is_masked_is_missing():
    client, seen = answering(200, b"{}")
    x = np.ma.array([[1.0, 2.0]], mask=[[False, True]])
    named = np.ma.array([(1.0, 2)], mask=[(False, True)], dtype=[("a", "f8"), ("b", "i8")])
    for rows in (x, [list(x[0])], named, [{"a": 1.0, "b": np.ma.masked}]):
        client.predict("m", rows)
    sent = [orjson.loads(request.content)["instances"] for request in seen]
    assert sent == [[[1.0, None]], [[1.0, None]], [{"a": 1.0, "b": None}], [{"a": 1.0, "b": None}]]


@pytest.mark.parametrize("value", [np.timedelta64(3, "ns"), np.timedelta64(3, "s"), timedelta(seconds=3)])
def test_a_duration_is_refused(value):
    client, seen = answering(200, b"{}")
    for row in ({"a": value}, np.array([value])):
        with pytest.raises(
            ErrorbarError, match=r"row 0 holds a duration, .*; give a number, in the unit of the training table"
        ):
            client.predict("m", [row])
    assert seen == []


def test_waiting_gives_each_request_no_more_time_than_is_left():
    seen = []

    def answer(request):
        seen.append(request.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("nothing came")

    client = Client("http://test", timeout=6.0, transport=httpx.MockTransport(answer))
    with pytest.raises(ErrorbarError, match=r"not ready within 0\.5 s"):
        client.wait_until_ready(timeout=0.5)
    assert max(seen) <= 0.5


@pytest.mark.parametrize("content", [b'{"error": "bad", "details": null}', b'{"error": "bad"}'])
def test_details_may_be_missing(content):
    client, _ = answering(400, content)
    with pytest.raises(ErrorbarError, match="bad") as caught:
        client.predict("m", [])
    assert caught.value.details == []


def test_an_address_that_is_none_is_an_error():
    with pytest.raises(ErrorbarError, match="cannot be reached"):
        Client("http://a..b").models()


def test_a_row_that_is_no_json_is_an_error():
    client, _ = answering(200, b"{}")
    with pytest.raises(ErrorbarError, match="cannot be written as JSON"):
        client.predict("m", [{"a": object()}])
