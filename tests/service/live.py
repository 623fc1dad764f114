"""A service as a process of its own on a real port, what speaks HTTP to it byte by byte, and what reads its metrics."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

from prometheus_client.parser import text_string_to_metric_families

ADDRESS = re.compile(r"(?:running on|workers serve) (http://127\.0\.0\.1:\d+)")

ROW = b'{"instances": [[1, 2]]}'
HEAD = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"


class Process:
    """`python -m service`, or another program, on a free port."""

    def __init__(self, repository, *flags, program=("-m", "service")):
        command = [sys.executable, *program, "--repository", os.fspath(repository), "--port", "0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log = []
        self.url = self.wait_for(ADDRESS).group(1)
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()

    def wait_for(self, pattern):
        for line in self.process.stderr:
            self.log.append(line)
            if match := pattern.search(line):
                return match
        raise AssertionError("the service ended: " + "".join(self.log))

    def _read_on(self):
        with self.process.stderr as lines:
            self.log += lines

    def kill(self):
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=20)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        status = self.process.wait(timeout=20)
        self._reader.join(timeout=20)
        return status


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end


def read(text):
    """Samples by name and labels."""
    families = text_string_to_metric_families(text if isinstance(text, str) else text.decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@contextlib.contextmanager
def connected(service, *, source="127.0.0.1"):
    """A socket; source: the address that the service sees."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10, source_address=(source, 0)) as client:
        yield client


def answers(client, count):
    """So many answers of the service: status, headers and body of each."""
    received, found = b"", []
    while len(found) < count:
        while b"\r\n\r\n" not in received:
            part = client.recv(65536)
            assert part, "the connection was closed"
            received += part
        head, _, received = received.partition(b"\r\n\r\n")
        status, *lines = head.split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines)
        length = int(headers[b"content-length"])
        while len(received) < length:
            received += client.recv(65536)
        body, received = received[:length], received[length:]
        found.append((int(status.split()[1]), headers, body))
    assert not received
    return found


def post(body, *headers, version=b"1.1"):
    lines = [b"POST /v1/models/m:predict HTTP/" + version, b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])
