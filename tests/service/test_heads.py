"""What is remembered of the heads of requests, and that no answer changes by it."""

import random
import socket

import pytest

from service.heads import Head, KnownHeads
from service.routes.hot import find_route
from service.security import add_key
from tests.service.live import HEAD, ROW, answers, connected, post, until

HEAD_OF_ROW = HEAD % len(ROW) + b"\r\n"


def head_of(body):
    return Head(find_route("/v1/models/m:predict"), {"type": "http"}, len(body))


def test_a_head_is_known_again_with_another_body_of_its_length():
    heads, other = KnownHeads(), ROW.replace(b"1", b"7")
    assert heads.find(HEAD_OF_ROW + ROW) is None
    heads.add(HEAD_OF_ROW + ROW, head_of(ROW))
    assert heads.find(HEAD_OF_ROW + other) == (head_of(ROW), other)
    with_ends = b"\r\n\r\n" + b" " * (len(ROW) - 4)
    assert heads.find(HEAD_OF_ROW + with_ends) == (head_of(ROW), with_ends)


@pytest.mark.parametrize(
    "data",
    [
        HEAD_OF_ROW + ROW[:-1],
        HEAD_OF_ROW + ROW + b" ",
        (HEAD_OF_ROW + ROW) * 2,
        HEAD_OF_ROW,
        HEAD_OF_ROW[:-2] + b"X: y\r\n\r\n" + ROW,
        HEAD_OF_ROW.replace(b"Host: x", b"Host: y") + ROW,
        b"\r\n\r\n",
        b"",
        ROW,
    ],
    ids=range(9),
)
def test_what_is_not_one_whole_request_with_the_same_head_is_not_known(data):
    heads = KnownHeads()
    heads.add(HEAD_OF_ROW + ROW, head_of(ROW))
    assert heads.find(data) is None


@pytest.mark.parametrize(
    "data",
    [
        HEAD_OF_ROW.replace(b"\r\n", b"\n") + b"\r\n\r\n" + ROW,  # where bytes behind the body hide where it begins
        HEAD_OF_ROW.replace(b"\r\n", b"\n") + ROW,
        HEAD_OF_ROW[:-2] + b"\n" + ROW,
        b"\r\n" + HEAD_OF_ROW + ROW,
        b"\r\n\r\n" + HEAD_OF_ROW + ROW,
        b" " + HEAD_OF_ROW + ROW,
        HEAD_OF_ROW + ROW + HEAD_OF_ROW + ROW,
        HEAD_OF_ROW[:-2] + b"X: %b\r\n\r\n" % (b"y" * 2000) + ROW,
        HEAD_OF_ROW[:-2] + b"a:\r\n" * 60 + b"\r\n" + ROW,
    ],
    ids=range(9),
)
def test_unusual_heads_are_not_remembered(data):
    heads = KnownHeads()
    heads.add(data, head_of(ROW))
    assert heads.find(data) is None


def test_heads_do_not_fill_the_memory():
    heads = KnownHeads()
    for number in range(10_000):
        heads.add(HEAD_OF_ROW.replace(b"Host: x", b"Host: %d" % number) + ROW, head_of(ROW))
        assert len(heads._heads) <= 1000
    assert heads.find(HEAD_OF_ROW.replace(b"Host: x", b"Host: 9999") + ROW)


def content(answer):
    """What does not differ between two answers to one request."""
    status, headers, body = answer
    return status, headers.keys(), headers.get(b"x-request-id") if b"kept" in headers[b"x-request-id"] else None, body


def test_answers_are_those_of_new_connections(start, repository):
    """Requests of every kind that repeat, in pieces and together, each beside its answer on a connection of its own."""
    rng = random.Random(1)  # noqa: S311 - chooses requests
    bodies = [b'{"instances": [[%d, 2]]}' % number for number in range(5)] + [b'{"instances": [[1]]}', b"{" + b" " * 22]
    bodies.append(b'{"instances": [[1, "\r\n\r\n"]]}')
    requests = [post(body) for body in bodies]
    requests += [post(body, b"X-Request-Id: kept-1") for body in bodies]
    requests += [
        post(ROW, b"Expect: x"),
        post(ROW, b"Content-Type: text/csv"),
        post(b"a,b\r\n1,2\r\n", b"Content-Type: text/csv"),
    ]
    requests += [b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", post(ROW).replace(b"models/m", b"models/n"), b"\r\n" + post(ROW)]
    service, expected = start(repository), []
    for request in requests:
        with connected(service) as client:
            client.sendall(request)
            expected.append(content(answers(client, 1)[0]))
    assert {status for status, _, _, _ in expected} == {200, 400, 404}
    with connected(service) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(300):
            chosen = rng.choices(range(len(requests)), k=rng.choice((1, 1, 1, 1, 3)))
            text = b"".join(requests[number] for number in chosen)
            cut = rng.choice((0, 0, rng.randrange(len(text))))
            client.sendall(text[:cut])
            client.sendall(text[cut:])
            assert [content(answer) for answer in answers(client, len(chosen))] == [expected[number] for number in chosen]


def test_a_key_that_is_withdrawn_opens_nothing_though_its_head_is_known(start, repository, tmp_path):
    keys = tmp_path / "keys.json"
    key = add_key(keys, name="old", scopes=frozenset(["predict"]))
    service = start(repository, "--keys", str(keys))
    request = post(ROW, b"Authorization: Bearer " + key.encode())
    with connected(service) as client:

        def status():
            client.sendall(request)
            return answers(client, 1)[0][0]

        assert [status() for _ in range(3)] == [200] * 3
        keys.unlink()
        add_key(keys, name="new", scopes=frozenset(["predict"]))
        until(lambda: status() == 401)


def test_the_log_names_the_client_that_asks(start, repository):
    service = start(repository)
    for source in ("127.0.0.2", "127.0.0.3"):
        with connected(service, source=source) as client:
            for _ in range(3):
                client.sendall(post(ROW))
                assert answers(client, 1)[0][0] == 200
    found = [f"127.0.0.{number} POST /v1/models/m:predict 200" for number in (2, 3)]
    until(lambda: [sum(text in line for line in service.log) for text in found] == [3, 3])
