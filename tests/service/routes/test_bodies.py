"""Many bodies at once, and how each is encoded."""

import asyncio
import gzip
import select
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import orjson
import pytest

from service.errors import OverloadedError
from service.routes import hot
from service.routes.bodies import LARGEST_BODIES, SMALL_BYTES, BodyRoom, HeldBody
from tests.model_files import write_formula_model
from tests.service.conftest import running
from tests.service.live import ROW, Process, answers, connected, post

pytestmark = pytest.mark.anyio
PREDICT = "/v1/models/m:predict"
LARGEST = 200_000
FITTING = LARGEST_BODIES * LARGEST // (LARGEST - SMALL_BYTES)
"""So many bodies of the largest size have room."""


def test_what_a_body_holds_is_counted_beyond_what_always_has_room_and_given_back():
    room = BodyRoom(SMALL_BYTES)
    first, second = HeldBody(room), HeldBody(room)
    first.grow(SMALL_BYTES)
    assert room.taken == 0
    first.grow(10)
    first.grow(room.bytes - 10)
    assert room.taken == room.bytes
    second.grow(SMALL_BYTES)
    with pytest.raises(OverloadedError, match=f"overloaded: {room.bytes} bytes of large bodies are here or arriving, at most"):
        second.grow(1)
    first.free()
    assert room.taken == 0
    second.grow(1)
    assert room.taken == 2, "with the byte that it was refused for"
    first.free()
    assert room.taken == 2


async def test_no_more_bodies_are_decompressed_at_a_time_than_there_are_threads(repository, monkeypatch):
    order = []

    def told(name, function):
        def call(*arguments, **options):
            order.append(name)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(hot, "decompressed", told("decompressed", hot.decompressed))
    monkeypatch.setattr(hot, "check_support", told("read", hot.check_support))
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    async with running(repository) as service:
        order.clear()
        body, headers = gzip.compress(ROW), {"content-encoding": "gzip"}
        asked = [service.http.post(PREDICT, content=body, headers=headers) for _ in range(5)]
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 5
    assert order == ["decompressed", "read"] * 5


@pytest.mark.parametrize(
    ("encoding", "status"),
    [(["gzip "], 200), (["GZIP"], 200), (["x-gzip"], 200), (["identity"], 400), ([""], 400), (["gzip", "gzip"], 400)],
)
async def test_names_of_encodings(repository, encoding, status):
    async with running(repository) as service:
        headers = [("content-encoding", one) for one in encoding]
        answer = await service.http.post(PREDICT, content=gzip.compress(ROW), headers=headers)
        assert answer.status_code == status
        if len(encoding) == 2:
            assert "Content-Encoding 'gzip, gzip' is not read here" in answer.json()["error"]


async def test_what_takes_long_is_done_one_at_a_time_and_the_wait_counts_in_the_deadline(repository, monkeypatch):
    reading, most, read = 0, 0, hot._Work.read

    def slow(*arguments):
        nonlocal reading, most
        if threading.current_thread() is not threading.main_thread():
            reading += 1
            most = max(most, reading)
            time.sleep(0.4)
            reading -= 1
        return read(*arguments)

    monkeypatch.setattr(hot._Work, "read", slow)
    headers = {"Content-Encoding": "gzip"}
    async with running(repository, deadline_seconds=1.0) as service:
        large = gzip.compress(ROW.ljust(SMALL_BYTES + 1))
        tasks = [asyncio.create_task(service.http.post(PREDICT, content=large, headers=headers)) for _ in range(5)]
        await asyncio.sleep(0.05)
        small = await service.http.post(PREDICT, content=gzip.compress(ROW), headers=headers)
        assert (small.status_code, [task.done() for task in tasks]) == (200, 5 * [False]), "a small one waits for none of them"
        statuses = [answer.status_code for answer in await asyncio.gather(*tasks)]
        assert (most, statuses[0], statuses[-1], set(statuses)) == (1, 200, 504, {200, 504})
        assert service.state.metrics.rejected["deadline"] == statuses.count(504)
        assert service.state.metrics.in_flight == 0


async def test_a_compressed_body_that_is_large_is_never_read_on_the_event_loop(repository, monkeypatch):
    """However little it holds: what it takes to decompress it depends on what was sent."""
    read, threads = hot.decompressed, []

    def noted(*arguments, **options):
        threads.append(threading.current_thread())
        return read(*arguments, **options)

    monkeypatch.setattr(hot, "decompressed", noted)
    monkeypatch.setattr(hot, "beginning", lambda *_, **__: pytest.fail("it was decompressed to see how large it is"))
    empty_block = b"\x00\x00\x00\xff\xff"
    writer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = empty_block * (SMALL_BYTES // 4) + writer.compress(ROW) + writer.flush()
    body = b"\x1f\x8b\x08" + bytes(7) + deflated + struct.pack("<II", zlib.crc32(ROW), len(ROW))
    assert len(body) > SMALL_BYTES
    async with running(repository) as service:
        answer = await service.http.post(PREDICT, content=body, headers={"Content-Encoding": "gzip"})
        assert (answer.status_code, threading.main_thread() in threads, len(threads)) == (200, False, 1)


async def test_reading_and_writing_are_no_waiting(repository, monkeypatch):
    """A request that waits for no other is answered, however long its own work takes."""
    read, write = hot.decompressed, hot._Work.write

    def slow_read(*arguments, **options):
        time.sleep(0.4)
        return read(*arguments, **options)

    def slow_write(*arguments):
        time.sleep(0.4)
        return write(*arguments)

    monkeypatch.setattr(hot, "decompressed", slow_read)
    monkeypatch.setattr(hot._Work, "write", slow_write)
    async with running(repository, deadline_seconds=0.3) as service:
        answer = await service.predict(instances=[[1, 2]] * 20_000)
    assert answer.status_code == 200


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    repository = tmp_path_factory.mktemp("repository")
    write_formula_model(repository / "m" / "1" / "model.onnx")
    running = Process(repository, "--max-body-bytes", str(LARGEST))
    yield running
    assert running.stop() == 0


def as_json():
    """A request whose body is as large as allowed, and goes through ASGI."""
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (PREDICT.encode(), LARGEST) + ROW.ljust(LARGEST)


def as_tensor():
    """The same as bytes of numbers, which do not go through ASGI."""
    rows = (LARGEST - 200) // 16
    raw = bytes(16 * rows)
    tensor = {"name": "x", "datatype": "FP64", "shape": [rows, 2], "parameters": {"binary_data_size": len(raw)}}
    told = orjson.dumps({"inputs": [tensor]})
    body = (told + raw).ljust(LARGEST)
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
    return head % (len(told), len(body)) + body


@pytest.mark.parametrize(("request_", "answered"), [(as_json(), 200), (as_tensor(), 400)], ids=["asgi", "direct"])
def test_bodies_that_arrive_slowly_have_room_together(service, request_, answered):
    for closed in (False, True, False):  # and give it back: what one round keeps would be missing in the next
        with ExitStack() as stack:
            clients = [stack.enter_context(connected(service)) for _ in range(FITTING + 1)]
            for client in clients:
                client.sendall(request_[:-1])
            (refused,), _, _ = select.select(clients, [], [], 10)
            clients.remove(refused)
            ((status, headers, body),) = answers(refused, 1)
            assert status == 503
            assert headers[b"retry-after"] == b"1"
            assert "bytes of large bodies are here or arriving, at most 3200000 may" in orjson.loads(body)["error"]
            assert httpx.post(service.url + PREDICT, content=ROW).status_code == 200
            if closed:
                stack.close()
                time.sleep(0.5)  # for the service to notice
                continue
            refused.sendall(request_[-1:] + post(ROW))  # the rest is dropped, and the connection goes on
            assert answers(refused, 1)[0][0] == 200
            for client in clients:
                client.sendall(request_[-1:])
            assert [answers(client, 1)[0][0] for client in clients] == [answered] * FITTING
