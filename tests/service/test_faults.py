"""Live services while what is around them fails: bombs, overload, bad files, a volume that goes, a clock that jumps."""

import contextlib
import signal
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.client import Client, ErrorbarError
from service.security import add_key
from tests.model_files import bad_model_files, write_formula_model
from tests.service.live import ROW as ROW_TEXT
from tests.service.live import answers, connected, post, read, until
from training.publish import publish

ROW = {"instances": [[0, 0]]}
MIB = 2**20


@contextlib.contextmanager
def asked_on(url, *, clients=2):
    """Clients that ask without a pause, and what they were told: means by version, and failures."""
    told, failures, stop = {}, [], threading.Event()

    def ask_on():
        with Client(url) as client:
            while not stop.is_set():
                try:
                    answer = client.predict("m", ROW["instances"])
                except ErrorbarError as error:
                    failures.append(error)
                    return
                version = int(answer["model"]["version"])
                told.setdefault(version, []).append(answer["predictions"][0]["mean"])

    threads = [threading.Thread(target=ask_on) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=30)
    assert failures == []


def counted(url, *labels):
    return read(httpx.get(f"{url}/metrics").text).get(labels, 0)


def states(url):
    return {one["version"]: one for one in httpx.get(f"{url}/v1/models/m").json()["versions"]}


def most_memory(process):
    """Bytes that a process has held at most so far."""
    lines = Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
    values = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return 1024 * int(values.get("VmHWM", values["VmRSS"]).split()[0])


def bomb(size):
    """A gzip stream of `size` zeros, most of it one block of a MiB again and again."""
    compress = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    block = compress.compress(bytes(MIB)) + compress.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + block * (size // MIB) + b"\x03\x00" + bytes(8)


def test_a_bomb_is_refused_in_bounded_memory(start, repository):
    process = start(repository)
    body = bomb(10 * 2**30)
    assert len(body) < 16 * MIB  # what the service takes
    assert httpx.post(f"{process.url}/v1/models/m:predict", json=ROW).status_code == 200
    before = most_memory(process)

    def throw(path):
        return httpx.post(process.url + path, content=body, headers={"content-encoding": "gzip"}, timeout=30)

    paths = ["/v1/models/m:predict", "/v2/models/m/infer", "/invocations", "/v2/repository/index"]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(throw, paths))
    for path, answer in zip(paths, answers, strict=True):
        limit = "65536 bytes, and" if path == "/v2/repository/index" else "16777216 bytes (setting max_body_bytes)"
        assert answer.status_code == 413
        assert answer.json()["error"].startswith(f"the body is larger than {limit}")
    assert most_memory(process) - before < 250 * MIB  # four bodies, and 16 MiB of what each holds
    assert counted(process.url, "errorbar_rejected_total", "too_large") == 4
    assert httpx.post(f"{process.url}/v1/models/m:predict", json=ROW).status_code == 200
    assert process.stop() == 0


def test_overload_is_told_at_once_and_passes(start, repository):
    rows = 20_000
    process = start(repository, "--max-rows", str(rows), "--max-queued-rows", str(rows), "--no-access-log")
    x, headers = np.zeros((rows, 2)).tobytes(), {"Inference-Header-Content-Length": "0"}

    def ask_on(_):
        with httpx.Client(timeout=30) as http:
            return [http.post(f"{process.url}/v2/models/m/infer", content=x, headers=headers) for _ in range(15)]

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for some in pool.map(ask_on, range(8)) for answer in some]
    refused = [answer for answer in answers if answer.status_code == 503]
    answered = [answer for answer in answers if answer.status_code == 200]
    assert len(refused) + len(answered) == len(answers)
    assert refused
    assert answered
    for answer in refused:
        assert answer.headers["retry-after"] == "1"
        assert "at most 20000 may (setting max_queued_rows); try again later" in answer.json()["error"]
    assert len({len(answer.content) for answer in answered}) == 1
    assert counted(process.url, "errorbar_rejected_total", "overloaded") == len(refused)
    assert counted(process.url, "errorbar_requests_total", "m", "ok", "1") == len(answered)
    assert counted(process.url, "errorbar_queued_rows", "m", "1") == 0
    assert httpx.post(f"{process.url}/v2/models/m/infer", content=x, headers=headers).status_code == 200
    assert process.stop() == 0


def test_bad_files_under_load_are_refused_with_their_reasons(start, tmp_path):
    repository = tmp_path / "repository"
    for number in (1, 2):
        write_formula_model(tmp_path / f"{number}.onnx", offset=float(number))
    publish(tmp_path / "1.onnx", repository, name="m")
    bad = bad_model_files(tmp_path / "1.onnx")
    process = start(repository, "--no-access-log")
    with asked_on(process.url) as told:
        until(lambda: told)
        for version, content in enumerate(bad.values(), start=2):
            (repository / "m" / str(version)).mkdir()
            (repository / "m" / str(version) / "model.onnx").write_bytes(content)
        until(lambda: [one["state"] for one in states(process.url).values()] == ["ready"] + ["failed"] * len(bad))
        shown = states(process.url)
        for version, sentence in enumerate(bad, start=2):
            assert sentence in shown[str(version)]["reason"]
            until(lambda v=version, s=sentence: any(f"version {v} is refused" in line and s in line for line in process.log))
            refused = httpx.post(f"{process.url}/v1/models/m/versions/{version}:predict", json=ROW)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert httpx.get(f"{process.url}/v2/health/ready").status_code == 200
        assert counted(process.url, "errorbar_reloads_total", "refused") == len(bad)
        assert counted(process.url, "errorbar_rejected_total", "not_ready") == len(bad)
        published = int(publish(tmp_path / "2.onnx", repository, name="m").parent.name)
        until(lambda: published in told)
    assert {version: set(means) for version, means in told.items()} == {1: {1.0}, published: {2.0}}
    assert process.stop() == 0


def test_a_volume_that_goes_and_comes_back_is_served_all_the_while(start, tmp_path):
    repository, away = tmp_path / "repository", tmp_path / "away"
    for number in (1, 2):
        write_formula_model(tmp_path / f"{number}.onnx", offset=float(number))
    publish(tmp_path / "1.onnx", repository, name="m")
    process = start(repository, "--no-access-log", "--rescan-seconds", "0.2")
    with asked_on(process.url) as told:
        until(lambda: told)
        repository.rename(away)
        until(lambda: any("is gone); what is loaded goes on serving" in line for line in process.log))
        seen = len(told[1])
        until(lambda: len(told[1]) > seen + 20)
        assert httpx.get(f"{process.url}/v2/health/ready").status_code == 200
        away.rename(repository)
        publish(tmp_path / "2.onnx", repository, name="m")
        until(lambda: 2 in told)
    assert {version: set(means) for version, means in told.items()} == {1: {1.0}, 2: {2.0}}
    until(lambda: any("the model repository can be read again" in line for line in process.log))
    assert process.stop() == 0


SLOW = """
import sys, time
from service.inference.session import Session
fast = Session.run
def slow(*arguments):
    time.sleep(0.4)
    return fast(*arguments)
Session.run = slow
from service.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("padding", [0, 70_000])  # answered without ASGI, and with it
def test_what_clients_that_left_have_asked_is_not_run(start, repository, padding):
    process = start(repository, program=("-c", SLOW))
    runs, in_flight = ("errorbar_run_duration_seconds_count", "m", "1"), "errorbar_in_flight_requests"
    with connected(process) as first:
        first.sendall(post(ROW_TEXT))
        until(lambda: counted(process.url, in_flight) == 1)
        before = counted(process.url, *runs)
        for number in range(10):
            with connected(process) as leaving:  # no two of them can share a run
                leaving.sendall(post(b'{"coverage": 0.%d, "instances": [[1, 2]]}' % (number + 11) + b" " * padding))
        until(lambda: counted(process.url, "errorbar_requests_total", "m", "client_gone", "1") == 10)
        assert [status for status, _, _ in answers(first, 1)] == [200]
        first.sendall(post(ROW_TEXT))
        assert [status for status, _, _ in answers(first, 1)] == [200]
    assert counted(process.url, *runs) - before <= 3  # not 12
    assert counted(process.url, in_flight) == counted(process.url, "errorbar_queued_rows", "m", "1") == 0
    assert process.stop() == 0
    assert "bug" not in "".join(process.log)


JUMPING = """
import random, sys, time
true_time, rng = time.time, random.Random(0)
time.time = lambda: true_time() + rng.choice((-7200, -1, 0, 1, 7200))
from service.cli import main
sys.exit(main())
"""


def test_a_clock_that_jumps_by_hours_changes_nothing(start, tmp_path):
    repository, keys = tmp_path / "repository", tmp_path / "keys.json"
    for number in (1, 2):
        write_formula_model(tmp_path / f"{number}.onnx", offset=float(number))
    publish(tmp_path / "1.onnx", repository, name="m")
    flags = ["--keys", str(keys), "--rescan-seconds", "0.2", "--deadline-seconds", "20", "--drain-seconds", "3"]
    http = httpx.Client(headers={"Authorization": f"Bearer {add_key(keys, name='one', scopes=frozenset(['predict']))}"})
    process = start(repository, *flags, program=("-c", JUMPING))
    with http:

        def version(**headers):
            x = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [0, 0]}
            request = {"inputs": [x], "parameters": {"timeout": 10_000_000}}
            answer = http.post(f"{process.url}/v2/models/m/infer", json=request, headers=headers)
            return answer.json()["model_version"] if answer.status_code == 200 else answer.status_code

        assert [version() for _ in range(200)] == ["1"] * 200  # none too late
        publish(tmp_path / "2.onnx", repository, name="m")
        until(lambda: version() == "2")
        added = {"Authorization": f"Bearer {add_key(keys, name='two', scopes=frozenset(['predict']))}"}
        until(lambda: version(**added) == "2")
        process.process.send_signal(signal.SIGTERM)
        until(lambda: http.get(f"{process.url}/v2/health/ready").status_code == 503)
        assert version() == "2"
    assert process.process.wait(timeout=20) == 0
