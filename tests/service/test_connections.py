"""Clients that do their worst, on real sockets."""

import asyncio
import contextlib
import socket
import threading
import time
from unittest.mock import Mock

import httpx
import orjson
import pytest
import uvicorn
from uvicorn.server import ServerState

from service.connections import LEFTOVER_BYTES, MOST_WAITING, Connection, ConnectionLimits
from service.metrics import ServiceMetrics
from service.server import DrainingServer, make_room
from tests.service.live import HEAD, ROW, Process, answers, connected, post, read, until


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    from tests.model_files import write_formula_model

    repository = tmp_path_factory.mktemp("repository")
    write_formula_model(repository / "m" / "1" / "model.onnx")
    running = Process(repository, "--request-seconds", "1", "--max-connections", "20", "--max-body-bytes", "100000")
    yield running
    assert running.stop() == 0


def all_of(client):
    """What the service sends until it closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            received += part
    return received


def refusal(received):
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), orjson.loads(body)["error"]


def rejected(service, reason):
    return read(httpx.get(f"{service.url}/metrics").text).get(("errorbar_rejected_total", reason), 0)


def serves(service):
    assert httpx.post(f"{service.url}/v1/models/m:predict", content=ROW).status_code == 200


@pytest.mark.parametrize(
    "beginning", [b"", b"POST /v1/mod", HEAD % 100, HEAD % 100 + b"\r\n", HEAD % 100 + b"\r\n{"], ids=range(5)
)
def test_what_does_not_arrive_is_not_waited_for(service, beginning):
    before = rejected(service, "slow")
    with connected(service) as client:
        client.sendall(beginning)
        start = time.monotonic()
        status, sentence = refusal(all_of(client))
    assert (status, sentence) == (408, "the request did not arrive within 1 seconds (setting request_seconds)")
    assert 0.5 < time.monotonic() - start < 5
    assert rejected(service, "slow") == before + 1
    serves(service)


@pytest.mark.anyio
async def test_what_waits_behind_other_requests_is_not_late_while_these_are_answered():
    loop, answer, made = asyncio.get_running_loop(), asyncio.Event(), []

    async def app(scope, receive, send):
        await answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    def connection():
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        config.load()
        limits, metrics = ConnectionLimits(request_seconds=1, connections=10), ServiceMetrics()
        made.append(Connection(config, ServerState(), {}, limits=limits, metrics=metrics, draining=lambda: False))
        return made[-1]

    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    async with await loop.create_server(connection, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(2 * request + request[:5])
        while not made or not made[0].pipeline:
            await asyncio.sleep(0)
        made[0].check(loop.time() + 100)
        answer.set()
        writer.write(request[5:])
        for _ in range(3):
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).startswith(b"HTTP/1.1 200 ")
        writer.close()


def test_a_byte_now_and_then_is_not_enough(service):
    with connected(service) as client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(HEAD % 100 + b"\r\n")
        start = time.monotonic()
        client.settimeout(0.1)
        while time.monotonic() - start < 8:
            client.sendall(b" ")
            try:
                if not client.recv(1000):
                    break
            except TimeoutError:
                continue
        assert time.monotonic() - start < 5
    serves(service)


def test_a_flood_of_headers_is_cut(service):
    before = rejected(service, "too_large")
    sent = 0
    with connected(service) as client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(b"GET / HTTP/1.1\r\n")
        for number in range(100_000):
            line = b"X-%d: %s\r\n" % (number, b"a" * 1000)
            client.sendall(line)
            sent += len(line)
    assert sent < 10_000_000
    assert rejected(service, "too_large") == before + 1
    serves(service)


@pytest.mark.parametrize(
    "bytes_", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"BREW /pot HTCPCP/1.0\r\n\r\n", b"GET x y\r\n\r\n"]
)
def test_what_is_no_http_is_refused(service, bytes_):
    with connected(service) as client:
        client.sendall(bytes_)
        status, sentence = refusal(all_of(client))
    assert status == 400
    assert sentence
    serves(service)


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(service):
    with connected(service) as client:
        client.sendall(HEAD % 10**9 + b"\r\n")
        client.settimeout(5)
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    serves(service)


def test_a_body_without_an_end_is_cut(service):
    sent = 0
    with connected(service) as client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100_000):
            client.sendall(b"1000\r\n" + b" " * 0x1000 + b"\r\n")
            sent += 0x1000
    assert sent < 1.2 * LEFTOVER_BYTES
    serves(service)


def test_too_many_connections_are_refused_and_room_comes_back(service):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(connected(service))
            client.sendall(post(ROW))
            assert answers(client, 1)[0][0] == 200
        with connected(service) as beyond:
            received = all_of(beyond)
        assert refusal(received) == (503, "overloaded: 20 connections are open (setting max_connections); try again later")
        assert b"retry-after: 1" in received
    until(lambda: httpx.get(f"{service.url}/v2/health/live").status_code == 200)
    serves(service)


def test_thousands_of_requests_on_one_connection(service):
    one = HEAD % len(ROW) + b"\r\n" + ROW
    with connected(service) as client:
        answered = 0
        for _ in range(20):
            client.sendall(one * 250)
            received = b""
            while received.count(b"HTTP/1.1 200 OK") < 250:
                received += client.recv(1 << 20)
            answered += received.count(b"HTTP/1.1 200 OK")
    assert answered == 5000


def test_a_client_that_does_not_read_is_dropped(service):
    before = rejected(service, "unread")
    many = orjson.dumps({"instances": [[1, 2]] * 400, "coverage": [0.5, 0.6, 0.7, 0.8, 0.9]})
    with connected(service) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            client.settimeout(1)
            for _ in range(300):
                client.sendall(HEAD % len(many) + b"\r\n" + many)
        until(lambda: rejected(service, "unread") > before)
    serves(service)


@pytest.mark.parametrize("more", [(), (b"Connection: close",)], ids=["kept", "closing"])
def test_a_client_that_reads_nothing_of_a_long_answer_is_dropped(tmp_path, more):
    from tests.model_files import write_formula_model

    write_formula_model(tmp_path / "m" / "1" / "model.onnx")
    service = Process(tmp_path, "--request-seconds", "2", "--keep-alive-seconds", "1")
    body = orjson.dumps({"instances": [[1, 2]], "samples": 900_000})
    with connected(service) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(post(body, *more))
        until(lambda: rejected(service, "unread") == 1)
    assert service.stop() == 0


def test_a_few_bytes_that_nobody_reads_do_not_keep_a_connection():
    config = uvicorn.Config(Mock(), log_config=None, lifespan="off", interface="asgi3")
    config.load()
    limits, metrics = ConnectionLimits(request_seconds=1, connections=10), ServiceMetrics()
    connection = Connection(config, ServerState(), {}, Mock(), limits=limits, metrics=metrics, draining=lambda: False)
    connection.transport = Mock()
    connection.transport.is_closing.return_value = True
    for now, aborted in ((100.0, 0), (100.9, 0), (101.1, 1)):
        connection.check(now)
        assert connection.transport.abort.call_count == metrics.rejected["unread"] == aborted


def test_answers_that_nobody_reads_have_room_together():
    def unread(size, since):
        transport = Mock()
        transport.get_write_buffer_size.return_value = size
        return Mock(transport=transport, unread_since=since)

    half = 50
    newest, oldest, reads, small = unread(half, 3.0), unread(half, 1.0), unread(10 * half, None), unread(1, 2.0)
    make_room([newest, oldest, reads], most_bytes=100)
    assert not oldest.drop_unread.called, "both have room"
    alone = unread(1000, 1.0)
    make_room([alone, reads], most_bytes=100)
    assert not alone.drop_unread.called, "a large answer that is being read"
    make_room([newest, oldest, reads, small], most_bytes=100)
    assert [one.drop_unread.called for one in (newest, oldest, reads, small)] == [False, True, False, False]


@pytest.mark.anyio
async def test_the_server_makes_room_for_answers(monkeypatch):
    state = Mock()
    state.settings.max_answer_values = 10
    server = DrainingServer(uvicorn.Config(Mock(), log_config=None), state)
    connection, told = Mock(spec=Connection), []
    server.server_state.connections = {connection, Mock()}
    monkeypatch.setattr("service.server.make_room", lambda *asked, **options: told.append((*asked, options)))
    for tick in range(1, 6):
        assert not await server.on_tick(tick)
    assert told == [([connection], {"most_bytes": 1280})]
    connection.check.assert_called_once()


@pytest.mark.parametrize("more", [(), (b"Connection: close",)], ids=["kept", "closing"])
def test_a_client_that_reads_slowly_gets_all_of_a_long_answer(tmp_path, more):
    from tests.model_files import write_formula_model

    write_formula_model(tmp_path / "m" / "1" / "model.onnx")
    service = Process(tmp_path, "--request-seconds", "1")
    body = orjson.dumps({"instances": [[1, 2]], "samples": 900_000})
    with connected(service) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.sendall(post(body, *more))
        head, _, received = client.recv(65536).partition(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].split()[0])
        began = time.monotonic()
        while len(received) < length:
            part = client.recv(65536)
            assert part, "the answer was cut"
            received += part
            time.sleep(0.025)
        assert time.monotonic() - began > 1.5
    assert received.endswith(b"]}")
    assert service.stop() == 0


def test_a_connection_is_not_idle_while_a_request_arrives(tmp_path):
    from tests.model_files import write_formula_model

    write_formula_model(tmp_path / "m" / "1" / "model.onnx")
    service = Process(tmp_path, "--keep-alive-seconds", "1")
    with connected(service) as client:
        client.sendall(post(ROW) + post(ROW)[:30])
        time.sleep(2.5)
        client.sendall(post(ROW)[30:])
        assert [status for status, _, _ in answers(client, 2)] == [200, 200]
        client.sendall(post(b"{") + post(ROW)[:30])
        time.sleep(2.5)
        client.sendall(post(ROW)[30:])
        assert [status for status, _, _ in answers(client, 2)] == [400, 200]
    assert service.stop() == 0


def test_requests_that_come_together_are_answered_in_their_order(service):
    rows = [b'{"instances": [[%d, 2]]}' % number for number in range(6)]
    get = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    together = post(rows[0]) + post(rows[1]) + get + post(rows[2]) + get + post(b"{") + post(rows[3])
    with connected(service) as client:
        for _ in range(2):
            client.sendall(together)
            found = answers(client, 7)
            assert [status for status, _, _ in found] == [200, 200, 200, 200, 200, 400, 200]
            means = [orjson.loads(found[place][2])["predictions"][0]["mean"] for place in (0, 1, 3, 6)]
            assert means == sorted(means)
            assert len(set(means)) == 4
            assert [orjson.loads(found[place][2])["name"] for place in (2, 4)] == ["errorbar"] * 2


@pytest.mark.parametrize("path", ["/v1/models/m:predict", "/v1/models/other:predict"])
def test_a_request_that_is_refused_at_once_brings_those_behind_it_out_of_no_order(service, path):
    slow = post(b'{"instances": [[1, 2]], "samples": 900000, "seed": 1}')
    refused = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{" % path.encode()
    with connected(service) as client:
        for _ in range(2):  # from then on the head is known
            client.sendall(post(ROW))
            answers(client, 1)
        client.sendall(refused + slow)
        time.sleep(0.02)
        client.sendall(post(ROW))
        found = answers(client, 3)
    assert [status < 400 for status, _, _ in found] == [False, True, True]
    assert len(found[1][2]) > 1_000_000 > len(found[2][2])


OFFERS = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA",
    b"Connection: upgrade\r\nUpgrade: websocket",
]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("piece", [1, 150, 10_000])
def test_an_offer_to_speak_another_protocol_is_passed_over(service, offer, piece):
    hidden = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    text = post(ROW, offer) + post(hidden, offer) + post(ROW) + post(ROW, offer)
    with connected(service) as client:
        for start in range(0, len(text), piece):
            client.sendall(text[start : start + piece])
        assert [status for status, _, _ in answers(client, 4)] == [200, 400, 200, 200]
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)


@pytest.mark.parametrize("wish", [b"Connection: Upgrade, close", b"Connection: close\r\nConnection: Upgrade"])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_an_offer_of_a_last_request_is_passed_over_too(service, wish, version):
    with connected(service) as client:
        client.sendall(post(ROW, b"Upgrade: h2c", wish, version=version))
        received = all_of(client)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in received


def test_offers_in_great_number_are_passed_over(service):
    get = b"GET /v2 HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    with connected(service) as client:
        for _ in range(5):
            client.sendall(get * 400)
            assert {status for status, _, _ in answers(client, 400)} == {200}


@pytest.mark.parametrize("target", [b"x:80", b"http://x/v2"])
def test_no_tunnel_is_made(service, target):
    with connected(service) as client:
        client.sendall(b"CONNECT %b HTTP/1.1\r\nHost: x:80\r\nContent-Length: 4\r\n\r\nGET " % target)
        assert refusal(all_of(client)) == (400, "Invalid HTTP request received.")


def test_a_large_body_behind_another_request_arrives(tmp_path):
    from tests.model_files import write_formula_model

    write_formula_model(tmp_path / "m" / "1" / "model.onnx")
    service = Process(tmp_path)
    rows = b'{"instances": [%b]}' % b",".join([b"[1, 2]"] * 50_000)
    with connected(service) as client:
        sender = threading.Thread(target=client.sendall, args=(post(rows) + post(ROW + b" " * 3_000_000),))
        sender.start()
        assert [status for status, _, _ in answers(client, 2)] == [200, 200]
        sender.join()
    assert service.stop() == 0


def test_too_many_requests_that_wait_are_refused_after_their_answers(service):
    before = rejected(service, "overloaded")
    get = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(service) as client:
        client.sendall(get * 2000)
        received = all_of(client)
    whole, _, last = received.rpartition(b"HTTP/1.1 ")
    assert whole.count(b"HTTP/1.1 200 OK") == MOST_WAITING + 1
    status, sentence = refusal(last := b"HTTP/1.1 " + last)
    assert (status, b"retry-after: 1" in last) == (503, True)
    assert sentence == "overloaded: 500 requests of this connection wait for an answer; read the answers first"
    assert rejected(service, "overloaded") == before + 1


@pytest.mark.parametrize("rows", [1, 3000])
def test_what_is_no_http_is_refused_after_the_answers_before_it(service, rows):
    body = orjson.dumps({"instances": [[1, 2]] * rows})
    with connected(service) as client:
        client.sendall(post(body) + post(body) + b"what is this\r\n\r\n")
        received = all_of(client)
    found = received.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in found] == [b"200", b"200", b"400"]
    assert refusal(b"HTTP/1.1 " + found[2]) == (400, "Invalid HTTP request received.")


@pytest.mark.parametrize("path", [b"/v1/models/m:predict", b"/v2/repository/index"])
def test_what_is_wrong_with_a_body_is_told_in_the_place_of_its_answer(service, path):
    get = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path
    with connected(service) as client:
        client.sendall(get + head + b"1\r\n{\r\nwhat\r\n" + get)
        found = all_of(client).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in found] == [b"200", b"400"]


def test_a_request_that_was_answered_early_is_not_answered_again(service):
    with connected(service) as client:
        client.sendall(HEAD % 200_000 + b"\r\n")
        received = all_of(client)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"POST /nowhere", 404),
        (b"POST /v1/models/other:predict", 404),
        (b"PUT /v1/models/m:predict", 405),
        (b"POST /invocations", 413),
    ],
)
def test_who_sends_all_before_reading_gets_to_read_the_refusal(service, line, status):
    """As a proxy does, which takes a reset for a server that fails."""
    body = bytes(5_000_000)
    with connected(service) as client:
        client.sendall(line + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body + post(ROW))
        assert [answer[0] for answer in answers(client, 2)] == [status, 200]
    for last in (b" HTTP/1.0\r\n", b" HTTP/1.1\r\nConnection: close\r\n"):
        with connected(service) as client:
            client.sendall(line + last + b"Host: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert refusal(all_of(client))[0] == status


def test_a_refused_request_is_not_read_without_end(repository, start):
    service, piece = start(repository), bytes(1024 * 1024)
    with connected(service) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % 10**12)
        sent = 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 2 * LEFTOVER_BYTES:
                client.sendall(piece)
                sent += len(piece)
    assert LEFTOVER_BYTES / 2 < sent < 2 * LEFTOVER_BYTES
    serves(service)


@pytest.mark.parametrize(
    "more",
    [b"0\r\na: x\r\n\r\n", b"0\r\n" + b"a: x\r\n" * 30_000, b"0\r\na: " + b"x" * 200_000, b"5;" + b"x" * 200_000],
    ids=["trailer", "trailers", "long trailer", "long extension"],
)
def test_trailers_and_extensions_of_chunks_are_cut(service, more):
    head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(service) as client, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.sendall(head + b"%x\r\n%b\r\n" % (len(ROW), ROW))
        for start in range(0, len(more), 10_000):
            client.sendall(more[start : start + 10_000])
            time.sleep(0.001)
        assert refusal(all_of(client))[0] in (400, 431)
    serves(service)


def test_extensions_of_chunks_between_which_a_body_grows_are_passed_over(service):
    head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(service) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(head)
        for byte in ROW[:8]:
            for piece in (b"1;" + b"x" * 20_000, b"\r\n%c\r\n" % byte):
                client.sendall(piece)
                time.sleep(0.005)  # so that it comes alone
        client.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(ROW) - 8, ROW[8:]))
        assert answers(client, 1)[0][0] == 200


@pytest.mark.parametrize("beginning", [post(ROW), b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"])
def test_a_connection_is_idle_though_line_ends_or_leftovers_came(tmp_path, beginning):
    from tests.model_files import write_formula_model

    write_formula_model(tmp_path / "m" / "1" / "model.onnx")
    service = Process(tmp_path, "--keep-alive-seconds", "1")
    with connected(service) as client:
        client.sendall(beginning)
        answers(client, 1)
        client.sendall(b"\r\n")
        start = time.monotonic()
        assert client.recv(1) == b""
        assert time.monotonic() - start < 5
    assert service.stop() == 0


def test_a_request_in_pieces_is_one(service):
    text = post(ROW)
    with connected(service) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(text), 7):
            client.sendall(text[start : start + 7])
            time.sleep(0.001)
        ((status, _, _),) = answers(client, 1)
    assert status == 200


@pytest.mark.parametrize(
    ("request_", "closes"),
    [
        (post(ROW), False),
        (post(ROW, b"Connection: close"), True),
        (post(ROW, version=b"1.0"), True),
        (post(b"{", b"Connection: close"), True),
        (post(ROW, b"Expect: 100-continue"), False),
        (post(ROW, b"Content-Type: text/plain"), False),
    ],
)
def test_a_connection_stays_or_goes_as_its_client_asks(service, request_, closes):
    with connected(service) as client:
        client.sendall(request_)
        if b"100-continue" in request_:
            assert client.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        ((_, headers, _),) = answers(client, 1)
        assert (headers.get(b"connection") == b"close") is closes
        assert {b"date", b"x-request-id", b"content-type"} <= headers.keys()
        if closes:
            assert client.recv(1) == b""
        else:
            client.sendall(post(ROW))
            assert answers(client, 1)[0][0] == 200


def test_an_idle_connection_is_closed(tmp_path):
    from tests.model_files import write_formula_model

    write_formula_model(tmp_path / "m" / "1" / "model.onnx")
    running = Process(tmp_path, "--keep-alive-seconds", "1")
    with connected(running) as client:
        for _ in range(3):
            client.sendall(post(ROW))
            assert answers(client, 1)[0][0] == 200
        start = time.monotonic()
        assert client.recv(1) == b""
        assert 0.5 < time.monotonic() - start < 8
    assert running.stop() == 0


def test_the_id_of_a_request_stands_in_its_answer_and_the_log(service):
    with connected(service) as client:
        client.sendall(post(ROW, b"X-Request-Id: shown-7", b"X-Forwarded-For: 10.1.2.3"))
        ((_, headers, _),) = answers(client, 1)
    assert headers[b"x-request-id"] == b"shown-7"
    until(lambda: any("shown-7" in line and "predict 200" in line for line in service.log))


def test_answers_are_not_written_without_end_to_a_client_that_does_not_read(service):
    """Small requests, each answered as soon as it is there: unread answers must stop the reading of requests."""
    before = rejected(service, "unread")
    with connected(service) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(5)
        body = b'{"instances": [%b]}' % b",".join([b"[1, 2]"] * 2000)
        with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            for _ in range(3000):
                client.sendall(post(body))
            pytest.fail("3000 requests were taken, whose answers are 600 MB")
    until(lambda: rejected(service, "unread") > before)
    serves(service)
