"""A client for the service, sync and async.

    with Client("http://127.0.0.1:8000") as client:
        answer = client.predict("concrete", [{"Cement": 540, "Water": 162}], coverage=[0.5, 0.9])
        answer["predictions"][0]["mean"]

Answers are the server's JSON as it is. Whatever goes wrong is an ErrorbarError that carries the server's sentence. Where the
service has keys: `Client(url, key=...)`.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import timedelta
from decimal import Decimal
from numbers import Real
from typing import Any, NoReturn, Self, TypedDict, Unpack
from urllib.parse import quote

import httpx
import orjson

Row = Mapping[str, Any] | Sequence[Any]
"""A row: values by feature name, or all values in the model's order. None, NaN and NaT are missing; arrays are welcome."""

Answer = dict[str, Any]

Rows = Sequence[Row] | Any
"""Rows, or a table of Arrow, Polars or pandas, whose columns are called as the features are."""

_TABLES: tuple[tuple[str, dict[str, str]], ...] = (("to_pylist", {}), ("to_dicts", {}), ("to_dict", {"orient": "records"}))
"""How tables of Arrow, Polars and pandas give their rows, in this order: Polars has a `to_dict` too."""
_MISSING = ("NaTType", "NAType", "MaskedConstant")
"""Types of pandas and NumPy."""
_BYTES = bytes | bytearray
_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC | orjson.OPT_NON_STR_KEYS  # a text of NumPy is no `str` to it
_READY = "/v2/health/ready"
_RETRY_SECONDS = 0.1
_BROKEN = (httpx.HTTPError, httpx.InvalidURL, UnicodeError)


class PredictOptions(TypedDict, total=False):
    """What may be asked besides mean, std and the model's default interval."""

    coverage: float | Sequence[float]
    """Of the prediction intervals."""
    quantiles: float | Sequence[float]
    """Probabilities."""
    thresholds: float | Sequence[float]
    """Values t, for P(y <= t)."""
    samples: int
    """Draws from the predictive distribution of each row."""
    seed: int
    """Makes the samples repeatable."""
    strict: bool
    """Refuse unknown categories instead of warning."""


class ErrorbarError(Exception):
    """A request that was not answered: the server's sentence, or why the server was not reached."""

    def __init__(
        self,
        sentence: str,
        *,
        status: int | None = None,
        details: Sequence[Mapping[str, Any]] = (),
        request_id: str | None = None,
    ):
        super().__init__(sentence)
        self.status = status
        """HTTP status; None where the server was not reached."""
        self.details = list(details)
        """What is wrong, by `row`, `feature` and `problem`."""
        self.request_id = request_id
        """Finds the request in the server's log."""


class Client:
    """Asks a service. Close it, or use it in a `with` block."""

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = 30.0, transport: httpx.BaseTransport | None = None
    ):
        """key: sent as `Authorization: Bearer`, where the service has keys. timeout: in seconds."""
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout, transport=transport)

    def predict(
        self,
        model: str,
        rows: Rows,
        *,
        version: int | str | None = None,
        label: str | None = None,
        **options: Unpack[PredictOptions],
    ) -> Answer:
        """`{"model": ..., "predictions": [...]}` for `rows`.

        options: those of PredictOptions. Raises ErrorbarError.
        """
        return self._ask("POST", _model_path(model, version, label) + ":predict", content=_body(rows, options))

    def models(self) -> list[Answer]:
        """The models that the server knows, with versions, states and labels."""
        models: list[Answer] = self._ask("GET", "/v1/models")["models"]
        return models

    def metadata(self, model: str, *, version: int | str | None = None, label: str | None = None) -> Answer:
        """What is known about a model: manifest, device, JSON Schema of a row, an example."""
        return self._ask("GET", _model_path(model, version, label) + "/metadata")

    def ready(self) -> bool:
        """Whether every model of the server can answer. Raises ErrorbarError where no server answers."""
        return _is_ready(self._send("GET", _READY))

    def wait_until_ready(self, timeout: float = 30.0) -> None:
        """Return once the server is ready; ErrorbarError says what it waits for when `timeout` seconds have passed."""
        end = time.monotonic() + timeout
        while True:
            try:
                _answer(self._send("GET", _READY, timeout=_time_left(end, self._http.timeout)))
            except ErrorbarError as error:
                _give_up_after(end, timeout, error)
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, path: str, *, content: bytes | None = None) -> Answer:
        return _answer(self._send(method, path, content=content))

    def _send(
        self, method: str, path: str, *, content: bytes | None = None, timeout: Any = httpx.USE_CLIENT_DEFAULT
    ) -> httpx.Response:
        try:
            return self._http.request(method, path, content=content, timeout=timeout)
        except _BROKEN as error:
            _not_reached(self._http.base_url, error)


class AsyncClient:
    """As Client, for asyncio."""

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = 30.0, transport: httpx.AsyncBaseTransport | None = None
    ):
        """As Client."""
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout, transport=transport)

    async def predict(
        self,
        model: str,
        rows: Rows,
        *,
        version: int | str | None = None,
        label: str | None = None,
        **options: Unpack[PredictOptions],
    ) -> Answer:
        """As Client.predict."""
        return await self._ask("POST", _model_path(model, version, label) + ":predict", content=_body(rows, options))

    async def models(self) -> list[Answer]:
        """As Client.models."""
        models: list[Answer] = (await self._ask("GET", "/v1/models"))["models"]
        return models

    async def metadata(self, model: str, *, version: int | str | None = None, label: str | None = None) -> Answer:
        """As Client.metadata."""
        return await self._ask("GET", _model_path(model, version, label) + "/metadata")

    async def ready(self) -> bool:
        """As Client.ready."""
        return _is_ready(await self._send("GET", _READY))

    async def wait_until_ready(self, timeout: float = 30.0) -> None:
        """As Client.wait_until_ready."""
        end = time.monotonic() + timeout
        while True:
            try:
                _answer(await self._send("GET", _READY, timeout=_time_left(end, self._http.timeout)))
            except ErrorbarError as error:
                _give_up_after(end, timeout, error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(self, method: str, path: str, *, content: bytes | None = None) -> Answer:
        return _answer(await self._send(method, path, content=content))

    async def _send(
        self, method: str, path: str, *, content: bytes | None = None, timeout: Any = httpx.USE_CLIENT_DEFAULT
    ) -> httpx.Response:
        try:
            return await self._http.request(method, path, content=content, timeout=timeout)
        except _BROKEN as error:
            _not_reached(self._http.base_url, error)


def _headers(key: str | None) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    if key is None:
        return headers
    if len(key.split()) != 1:  # said here: the HTTP client's own error would show the key
        raise ValueError("a key is one word; this one is empty or holds a space or a line break")
    return headers | {"authorization": f"Bearer {key.strip()}"}


def _model_path(model: str, version: int | str | None, label: str | None) -> str:
    if version is not None and label is not None:
        raise ValueError(f"give a version ({version}) or a label ({label}), not both")
    path = f"/v1/models/{quote(model, safe='')}"
    if version is not None:
        return f"{path}/versions/{quote(str(version), safe='')}"
    return path if label is None else f"{path}/labels/{quote(label, safe='')}"


def _body(rows: Rows, options: PredictOptions) -> bytes:
    request = {"instances": [_row(row, number) for number, row in enumerate(_rows(rows))], **options}
    for name in ("coverage", "quantiles", "thresholds"):
        given = request.get(name)
        if hasattr(given, "tolist"):
            request[name] = given = given.tolist()
        for value in given if isinstance(given, Sequence) else [given]:
            number = _from_decimal(value) if isinstance(value, Decimal) else value
            if isinstance(number, Real) and not isinstance(number, int) and not math.isfinite(number):
                raise ErrorbarError(f"{name} holds {given!r}, which is no number of JSON")
    try:
        return orjson.dumps(request, _plain, _JSON)  # NaN becomes null
    except orjson.JSONEncodeError as error:
        raise ErrorbarError(f"the request cannot be written as JSON: {error.__cause__ or error}") from error


def _rows(given: Any) -> Iterable[Any]:
    """The rows of a table; what is none is rows already."""
    if hasattr(given, "columns"):
        _check_names(getattr(given, "column_names", given.columns), "the table")  # Arrow's columns are arrays
        for method, options in _TABLES:
            if hasattr(given, method):
                try:
                    rows: list[Any] = getattr(given, method)(**options)
                except (ValueError, OverflowError) as error:  # times of Arrow that Python's datetime has not
                    sentence = f"the table cannot be read as rows ({error}); give times as numbers of seconds since 1970"
                    raise ErrorbarError(sentence) from error
                return rows
    if isinstance(given, Mapping | str | _BYTES) or getattr(given, "ndim", 1) == 0 or not isinstance(given, Iterable):
        raise ErrorbarError(f"the rows are one {type(given).__name__}; give a list of rows, or a table")
    return given


def _row(row: Any, number: int) -> Any:
    """A row with values that JSON has, by name where it has names."""
    if is_dataclass(row) and not isinstance(row, type):
        row = {field.name: getattr(row, field.name) for field in fields(row)}
    for method in ("_asdict", "model_dump"):  # of a named tuple; of pydantic
        if hasattr(row, method):
            row = getattr(row, method)()
    dtype = getattr(row, "dtype", None)
    names = getattr(dtype, "names", None)
    if names is None and hasattr(row, "keys"):  # a Series of pandas and a row of SQLite are no Mappings
        names = row.keys()
    if names is not None:
        _check_names(names, f"row {number}")
        return {name: _value(row[name], number) for name in names}
    if isinstance(row, memoryview) and row.format == "B":
        row = row.tobytes()
    if isinstance(row, _BYTES | AbstractSet):
        what = "bytes" if isinstance(row, _BYTES) else "a set, which has no order"
        raise ErrorbarError(f"row {number} is {what}; give values by name, or all values in the model's order")
    if hasattr(row, "tolist") and getattr(dtype, "kind", "") not in ("m", "M"):  # NumPy makes numbers of times
        row = row.tolist()
    return [_value(value, number) for value in row] if isinstance(row, Iterable) and not isinstance(row, str) else row


def _check_names(names: Collection[Any], place: str) -> None:
    """Raise ErrorbarError where a name is no text, or stands twice."""
    for name in names:
        if not isinstance(name, str):
            raise ErrorbarError(f"{place} has the name {name!r}, which is no text; rename it as the feature is called")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ErrorbarError(f"{place} has the name {twice!r} twice; give each feature once")


def _value(value: Any, number: int) -> Any:
    """A value that JSON has; None where it is missing."""
    if isinstance(value, str | int | None):
        return value
    if type(value).__name__ in _MISSING:
        return None
    if isinstance(value, Decimal):
        value = _from_decimal(value)
    if isinstance(value, _BYTES):
        raise ErrorbarError(f"row {number} holds the bytes {bytes(value[:50])!r}; give a text: decode them")
    kind = ""
    if getattr(value, "ndim", None) == 0:
        kind = getattr(value.dtype, "kind", "")
        value = value if kind else value.item()  # PyTorch's types have none
    if (isinstance(value, float) or kind == "f") and math.isinf(value):
        raise ErrorbarError(f"row {number} holds infinity, which is no number of JSON; a missing value is None or NaN")
    if kind in ("m", "M") and value != value:
        return None
    if kind == "m" or isinstance(value, timedelta):
        raise ErrorbarError(f"row {number} holds a duration, {value}; give a number, in the unit of the training table")
    return value


def _from_decimal(value: Decimal) -> float:
    """As JSON has it: whole where it is, since databases give ids so, and float64 has not every one."""
    if value.is_nan():
        return math.nan
    return int(value) if -(2**63) <= value < 2**64 and value == int(value) else float(value)


def _plain(value: Any) -> Any:
    """What orjson does not know, in types that it knows."""
    if isinstance(value, Decimal):
        return _from_decimal(value)
    if hasattr(value, "to_pydatetime"):  # pandas
        return value.to_pydatetime(warn=False)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return float(value) if getattr(value.dtype, "kind", "") == "f" else value.item()  # which leaves a longdouble one
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{value!r} is of type {type(value).__name__}")


def _answer(response: httpx.Response) -> Answer:
    """The JSON of a successful response; anything else is an ErrorbarError."""
    request_id = response.headers.get("x-request-id")
    try:
        content = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        content = None
    if response.is_success and isinstance(content, dict):
        return content
    known = content if isinstance(content, dict) else {}
    sentence = known.get("error") or f"{_shown(response.url)} answered {response.status_code}, and not in errorbar's form"
    raise ErrorbarError(sentence, status=response.status_code, details=known.get("details") or (), request_id=request_id)


def _is_ready(response: httpx.Response) -> bool:
    if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
        _answer(response)
    return response.is_success


def _time_left(end: float, own: httpx.Timeout) -> float:
    """Seconds that a request may take."""
    return max(0.001, min(end - time.monotonic(), own.read or math.inf))


def _give_up_after(end: float, timeout: float, error: ErrorbarError) -> None:
    if time.monotonic() >= end:
        raise ErrorbarError(f"not ready within {timeout:g} s: {error}", status=error.status) from error


def _not_reached(url: httpx.URL, error: Exception) -> NoReturn:
    raise ErrorbarError(f"{_shown(url)} cannot be reached: {error or type(error).__name__}") from error


def _shown(url: httpx.URL) -> str:
    """An address without the password that it may hold."""
    return str(url.copy_with(userinfo=b"") if url.userinfo else url)
