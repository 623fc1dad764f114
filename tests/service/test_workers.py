"""Several real processes on one real port."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import httpx
import orjson
import pytest

from service import workers
from service.app import create_app
from service.counts import SharedCounts
from service.settings import Settings
from service.workers import own_socket
from tests.service.live import Process, read, until

ROW = {"instances": [[1, 2]]}


class Workers(Process):
    """A service of two workers, both ready."""

    def __init__(self, repository, *flags):
        super().__init__(repository, "--workers", "2", *flags)
        until(lambda: self.counted().get(("errorbar_up",)) == 2)

    def counted(self):
        with httpx.Client() as http:  # a new connection, so it may be either worker
            try:
                return read(http.get(f"{self.url}/metrics").text)
            except httpx.HTTPError:
                return {}

    def children(self):
        """The processes that the supervisor has started and not seen end."""
        told = "".join(self.log)
        started, ended = (set(map(int, re.findall(rf"worker (\d+) {what}", told))) for what in ("started", "ended"))
        return sorted(started - ended)

    def ask(self, times):
        for _ in range(times):
            assert httpx.post(f"{self.url}/v1/models/m:predict", json=ROW).status_code == 200


@pytest.fixture
def start_two(start):
    return partial(start, kind=Workers)


def requests(counted):
    return counted.get(("errorbar_requests_total", "m", "ok", "1"), 0)


def test_both_serve_and_either_tells_the_counts_of_both(repository, start_two):
    service = start_two(repository)
    assert len(service.children()) == 2
    service.ask(40)
    until(lambda: {requests(service.counted()) for _ in range(12)} == {40})
    pages = [service.counted() for _ in range(12)]
    assert {page["errorbar_up",] for page in pages} == {2}
    assert {page["errorbar_reloads_total", "ok"] for page in pages} == {2}
    assert service.stop() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(service.url)


def test_what_one_process_has_told_the_others_know(repository, tmp_path):
    state = create_app(Settings(repository=repository), counts=SharedCounts(tmp_path, "one")).state.service
    state.metrics.rejected["invalid"] += 7
    told = state.snapshots()
    assert SharedCounts(tmp_path, "two").others() == orjson.loads(orjson.dumps(told))


@pytest.mark.parametrize("started", [0, 1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_workers_are_started_ends_them(repository, started, number):
    command = [sys.executable, "-m", "service", "--repository", str(repository), "--port", "0", "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as service:
        told = ""
        while told.count(" started") < started or "workers serve" not in told:
            told += service.stderr.readline()
        if number == signal.SIGINT:
            os.killpg(service.pid, number)  # Ctrl-C reaches all
        else:
            service.send_signal(number)
        try:
            _, more = service.communicate(timeout=30)
        finally:
            service.kill()
    assert service.returncode == 0
    assert "Traceback" not in more


def test_a_worker_that_is_killed_is_replaced_and_its_counts_stay(repository, start_two):
    service = start_two(repository)
    service.ask(20)
    until(lambda: requests(service.counted()) == 20)
    victim, other = service.children()
    os.kill(victim, signal.SIGKILL)
    failed = 0
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:
            service.ask(1)
        except httpx.HTTPError:  # a connection that had reached the killed one, at most
            failed += 1
    assert failed <= 1
    until(lambda: service.counted().get(("errorbar_up",)) == 2)
    assert other in service.children()
    assert victim not in service.children()
    assert requests(service.counted()) > 20
    assert any(f"worker {victim} ended with status -9; another takes its place" in line for line in service.log)
    assert service.stop() == 0


def test_a_worker_that_does_not_end_is_killed(repository, start_two):
    service = start_two(repository, "--shutdown-seconds", "1")
    stopped = service.children()[0]
    os.kill(stopped, signal.SIGSTOP)
    assert service.stop() == signal.SIGKILL
    assert any("1 workers have not ended in time, and are killed" in line for line in service.log)


def test_workers_end_with_their_parent(repository, start_two, tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", os.fspath(shared))
    service = start_two(repository)
    assert any(shared.glob("errorbar-*"))
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    with socket.socket() as asking:
        assert asking.connect_ex(address) == 0
    service.stop(signal.SIGKILL)

    def silent():
        with socket.socket() as asking:
            return asking.connect_ex(address) != 0

    until(silent)
    until(lambda: not any(shared.glob("errorbar-*")))


def end(*flags):
    command = [sys.executable, "-m", "service", "--workers", "2", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_port_in_use_is_said_at_start(repository):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = end("--repository", str(repository), "--port", str(taken.getsockname()[1]))
    assert ended.returncode == 1
    assert "the service does not start on 127.0.0.1, port " in ended.stderr
    assert "in use" in ended.stderr


def test_what_no_worker_can_start_with_ends_the_service(repository, tmp_path):
    ended = end("--repository", str(repository), "--port", "0", "--keys", str(tmp_path / "nothing.json"))
    assert ended.returncode == 1
    assert "the service does not start: the file of keys" in ended.stderr


def test_a_port_is_kept_from_another_service_before_a_worker_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(port=port)
    with workers._reserved_port(settings) as kept, own_socket(settings), own_socket(settings):
        assert kept == port
        with pytest.raises(OSError, match="in use"), workers._reserved_port(settings):
            pass


class Worker:
    """A process that has ended, or serves until it is told to end."""

    def __init__(self, exitcode=None):
        self.exitcode, self.pid, self.sentinel, self.name = exitcode, 1, 0, str(id(self))

    def is_alive(self):
        return self.exitcode is None


def end_all(supervisor):
    supervisor._stopping.set()
    for process in supervisor._processes:
        process.exitcode = 0


@pytest.fixture
def supervisor(tmp_path, monkeypatch):
    """Of two workers; it takes no signals."""
    monkeypatch.setattr(workers.signal, "signal", lambda number, handler: None)
    return workers._Supervisor(Settings(workers=2), tmp_path)


@pytest.mark.parametrize(("ended", "status"), [([None, -9], 0), ([-9, -9], 1)])
def test_a_worker_that_cannot_be_started_is_tried_again_while_another_serves(supervisor, monkeypatch, caplog, ended, status):
    tries = []

    def start(place):
        if len(supervisor._processes) < 2:
            supervisor._processes.append(Worker(ended[place]))
            return
        tries.append(place)
        if len(tries) < 3:
            raise OSError(11, "Resource temporarily unavailable")
        supervisor._processes[place] = Worker()

    def wait(sentinels, timeout):
        if len(tries) == 3:
            end_all(supervisor)

    monkeypatch.setattr(workers.connection, "wait", wait)
    monkeypatch.setattr(supervisor, "_start", start)
    assert supervisor.run() == status
    if status == 0:
        assert tries == [1, 1, 1]
        assert caplog.text.count("it cannot be started; again in a second") == 2


def test_the_status_of_a_worker_that_ends_unseen_counts(supervisor, monkeypatch):
    """It ends when the supervisor has looked at it and not yet asked who is left."""
    one, other = Worker(), Worker()
    monkeypatch.setattr(supervisor, "_start", lambda place: supervisor._processes.append((other, one)[place]))

    def wait(sentinels, timeout):
        supervisor._stopping.set()
        one.exitcode = 0

    def forgotten(folder, name):
        other.exitcode = -9

    monkeypatch.setattr(workers.connection, "wait", wait)
    monkeypatch.setattr(workers, "forget", forgotten)
    assert supervisor.run() == signal.SIGKILL


def test_workers_that_end_all_at_once_are_replaced(supervisor, monkeypatch):
    started = []

    def start(place):
        started.append(place)
        supervisor._processes[place : place + 1] = [Worker(-9 if len(started) <= 2 else None)]

    monkeypatch.setattr(workers.connection, "wait", lambda sentinels, timeout: end_all(supervisor))
    monkeypatch.setattr(supervisor, "_start", start)
    assert (supervisor.run(), started) == (0, [0, 1, 0, 1])


def test_sockets_share_a_port():
    with own_socket(Settings(port=0)) as one, own_socket(Settings(port=one.getsockname()[1])) as other:
        assert one.getsockname() == other.getsockname()
