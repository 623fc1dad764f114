"""Real processes on real ports, asked by the real client."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from service.client import Client, ErrorbarError
from tests.model_files import write_formula_model
from tests.service.live import connected, until
from training.publish import publish


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_with_status_0_and_no_trace(start, repository, number):
    process = start(repository)
    with Client(process.url) as client:
        client.wait_until_ready()
        assert client.predict("m", [[1, 2]])["predictions"][0]["mean"] == 5.0
    assert process.stop(number) == 0
    assert "Traceback" not in "".join(process.log)


def test_health_tells_readiness_by_its_status(start, repository, tmp_path):
    for folder, status in ((repository, 0), (tmp_path / "none", 1)):
        url = start(folder).url
        proxied = {
            **os.environ,
            "HTTP_PROXY": "http://127.0.0.1:9",
            "http_proxy": "http://127.0.0.1:9",
            "ALL_PROXY": "socks5://no",
        }
        command = [sys.executable, "-m", "service", "health", "--url", url]
        health = subprocess.run(command, capture_output=True, text=True, env=proxied)
        assert health.returncode == status
    assert "does not exist yet" in health.stderr


def test_sigterm_turns_readiness_to_503_while_requests_are_still_served(start, repository):
    process = start(repository, "--drain-seconds", "3")
    with Client(process.url) as client:
        client.wait_until_ready()
        with httpx.Client() as kept:
            assert "connection" not in kept.get(f"{process.url}/v2").headers
            process.process.send_signal(signal.SIGTERM)
            until(lambda: not client.ready())
            for url in ("/v2", "/v1/models/m"):
                assert kept.get(f"{process.url}{url}").headers["connection"] == "close"
            predicted = kept.post(f"{process.url}/v1/models/m:predict", json={"instances": [[1, 2]]})
            assert (predicted.status_code, predicted.headers["connection"]) == (200, "close")
        assert client.predict("m", [[1, 2]])["predictions"]
        with httpx.Client() as fresh:  # a new connection is still taken
            assert fresh.get(f"{process.url}/v2/health/ready").json()["error"] == "not ready: shutting down"
    assert process.process.wait(timeout=20) == 0


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_log_that_nobody_reads_holds_up_nobody(repository, log_format):
    command = [
        sys.executable,
        "-m",
        "service",
        "--repository",
        os.fspath(repository),
        "--port",
        "0",
        "--log-format",
        log_format,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        told = ""
        while "on http" not in told:
            told = process.stderr.readline()
        url = re.search(r"http://[0-9.:]+", told)[0]
        with httpx.Client(timeout=10) as client:  # 65 KB stay in the pipe
            statuses = {client.get(f"{url}/v1/models", headers={"x-forwarded-for": "x" * 200}).status_code for _ in range(2000)}
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
    assert statuses == {200}
    assert time.monotonic() - began < 10


def test_lines_of_a_log_that_was_not_read_are_counted():
    program = (
        "import logging, sys; from service import telemetry; telemetry._WAITING_LINES = 10\n"
        "telemetry.configure_logging(log_format='text', level='info')\n"
        "for number in range(5000): logging.warning('line %d %s', number, 'x' * 100)\n"
        "sys.stdout.close()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.read()  # until all lines are told
        lines = process.stderr.read().splitlines()
    lost = [int(re.search(r"(\d+) lines of the log were lost", line)[1]) for line in lines if "were lost" in line]
    assert sum(lost) == 5000 - (len(lines) - len(lost))


def test_a_line_that_is_told_while_another_is_told_holds_up_nobody():
    program = (
        "import gc, logging; from service.telemetry import configure_logging\n"
        "configure_logging(log_format='text', level='info')\n"
        "class Told:\n"
        "    def __del__(self): logging.warning('collected')\n"
        "for number in range(30_000):\n"
        "    gc.set_threshold(1 + number % 41)\n"
        "    told = Told(); told.itself = told; del told; logging.warning('told')\n"
        "    [[] for _ in range(number % 7)]\n"
        "gc.collect()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    lost = sum(map(int, re.findall(r"(\d+) lines of the log were lost", ended.stderr)))
    assert ended.stderr.count("told") + ended.stderr.count("collected") + lost == 60_000


def test_without_standard_error_the_service_ends_with_status_0(repository):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = f'exec "{sys.executable}" -m service --repository "{repository}" --port {port} 2>&-'
    with subprocess.Popen(["bash", "-c", command]) as process:

        def ready():
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").is_success

        until(ready)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_without_standard_error_a_wrong_setting_has_its_status():
    command = f'exec "{sys.executable}" -m service --port x 2>&-'
    assert subprocess.run(["bash", "-c", command], timeout=60).returncode == 2


def test_a_thread_that_the_end_of_the_process_stops_while_it_logs_holds_up_nobody():
    program = (
        "import asyncio, logging; from service import telemetry; telemetry._WAITING_LINES = 10\n"
        "telemetry.configure_logging(log_format='text', level='info')\n"
        "loop = asyncio.new_event_loop(); task = loop.create_task(asyncio.sleep(1))\n"  # which logs when it is collected
        "for number in range(30_000): logging.warning('line %d', number)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0


def test_a_hangup_ends_the_service_as_sigterm_does(start, repository):
    process = start(repository)
    assert process.stop(signal.SIGHUP) == 0


def test_a_request_that_does_not_end_holds_the_service_up_for_shutdown_seconds(start, repository):
    process = start(repository, "--shutdown-seconds", "1")
    with connected(process) as client:
        client.sendall(b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
        until(lambda: "errorbar_in_flight_requests 1" in httpx.get(f"{process.url}/metrics").text)
        began = time.monotonic()
        assert process.stop() == 0
    assert time.monotonic() - began < 10


def test_a_port_in_use_is_status_1(start, repository):
    port = start(repository).url.rpartition(":")[2]
    command = [sys.executable, "-m", "service", "--repository", os.fspath(repository), "--port", port]
    second = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert second.returncode != 0
    assert "address already in use" in second.stderr
    assert "Traceback" not in second.stderr


def test_publishing_under_load_fails_no_request(start, repository, tmp_path):
    write_formula_model(tmp_path / "new.onnx")
    url = start(repository, "--no-access-log").url
    versions, failures, swapped = set(), [], threading.Event()

    def hammer():
        with Client(url) as client:
            after = 0
            while after < 20 and not failures:
                try:
                    version = client.predict("m", [[1, 2]])["model"]["version"]
                except ErrorbarError as error:
                    failures.append(error)
                    return
                versions.add(version)
                if version == "2":
                    swapped.set()
                    after += 1

    with Client(url) as client:
        client.wait_until_ready()
        client.predict("m", [[1, 2]])
        threads = [threading.Thread(target=hammer) for _ in range(4)]
        for thread in threads:
            thread.start()
        publish(tmp_path / "new.onnx", repository, name="m")
        assert swapped.wait(timeout=30)
        for thread in threads:
            thread.join(timeout=30)
        assert failures == []
        assert "2" in versions

        bad = repository / "m" / "3"
        bad.mkdir()
        (bad / "model.onnx").write_bytes(b"nonsense")
        until(lambda: len(client.models()[0]["versions"]) == 3)
        assert client.models()[0]["versions"][2]["reason"].endswith("is not an ONNX file")
        assert client.predict("m", [[1, 2]])["model"]["version"] == "2"
        assert client.ready()


def test_a_service_without_models_takes_in_the_first_that_is_published(start, tmp_path):
    write_formula_model(tmp_path / "new.onnx")
    with Client(start(tmp_path / "repository").url) as client:
        assert not client.ready()
        with pytest.raises(ErrorbarError, match="there is no model 'm'; there is no model yet"):
            client.predict("m", [[1, 2]])
        publish(tmp_path / "new.onnx", tmp_path / "repository", name="m")
        client.wait_until_ready(timeout=30)
        assert client.predict("m", [[1, 2]])["predictions"]


def test_the_service_imports_nothing_of_training():
    code = (
        "import sys, service.server, service.client, service.cli\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'onnx', 'polars', 'sklearn', 'training'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


_BEFORE = "from service.cli import main; raise SystemExit(main())"


def test_more_connections_than_files_may_be_open_are_refused_in_a_sentence(start, repository):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150)); "
    process = start(repository, program=("-c", limit + _BEFORE))
    told = "at most 50 connections, not 10000 (setting max_connections): this process may open 150 files (ulimit -n)"
    assert any(told in line for line in process.log)
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(connected(process))
        one_more = stack.enter_context(connected(process))
        assert b"overloaded: 50 connections are open" in one_more.recv(65536)


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be(start, repository):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (150, 400)); "
    process = start(repository, "--max-connections", "200", program=("-c", limit + _BEFORE))
    with contextlib.ExitStack() as stack:
        for _ in range(199):
            stack.enter_context(connected(process))
        assert httpx.get(f"{process.url}/v2").status_code == 200
    assert not any("at most" in line for line in process.log)


def test_a_volume_that_does_not_answer_at_start_does_not_keep_the_service_from_ending(repository):
    slow = "import pathlib, time; pathlib.Path.read_bytes = lambda path: time.sleep(60); "
    flags = ["--repository", os.fspath(repository), "--port", "0", "--default-model", "m"]
    command = [sys.executable, "-c", slow + _BEFORE, *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "Waiting for application startup" in line:
                break
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
        assert process.stderr.read() == ""


def test_a_volume_that_does_not_answer_does_not_keep_the_service_from_ending(start, tmp_path):
    write_formula_model(tmp_path / "model.onnx")
    repository = tmp_path / "repository"
    slow = "import pathlib, time; pathlib.Path.read_bytes = lambda path: time.sleep(60); "
    process = start(repository, "--shutdown-seconds", "1", program=("-c", slow + _BEFORE))
    publish(tmp_path / "model.onnx", repository, name="m")
    began = time.monotonic()
    time.sleep(1.5)  # until the service reads it
    assert process.stop() == 0
    assert time.monotonic() - began < 15
