import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "audit.py"
PINS = "# what we use\nGood_Package==1.0\nbad.package==2.0\n"
BATCH = {"results": [{}, {"vulns": [{"id": "GHSA-1", "modified": "2026-01-01T00:00:00Z"}]}]}
ENTRY = {"id": "GHSA-1", "summary": "it runs what it reads", "aliases": ["CVE-1"]}


class Database(ThreadingHTTPServer):
    """Answers as OSV does, by path; what is asked of it is kept."""

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.do_GET()

    def do_GET(self):
        content = self.server.answers[self.path]
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def audit(tmp_path):
    """Runs the script against a database with these answers; its status, what it said, what it asked."""

    def audit(answers, *arguments):
        (tmp_path / "pins.txt").write_text(PINS)
        with Database(answers) as database:
            threading.Thread(target=database.serve_forever, daemon=True).start()
            try:
                command = [sys.executable, SCRIPT, tmp_path / "pins.txt", "--database", database.url, *arguments]
                environment = {**os.environ, "no_proxy": "127.0.0.1"}
                ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
            finally:
                database.shutdown()
        return ended.returncode, ended.stdout + ended.stderr, database.asked

    return audit


def test_no_known_vulnerability(audit):
    status, said, asked = audit({"/v1/querybatch": {"results": [{}, {}]}})
    assert (status, said) == (0, "2 versions, 0 known vulnerabilities\n")
    (question,) = asked
    assert question["queries"][0] == {"package": {"ecosystem": "PyPI", "name": "good-package"}, "version": "1.0"}


def test_a_known_vulnerability_fails(audit):
    status, said, _ = audit({"/v1/querybatch": BATCH, "/v1/vulns/GHSA-1": ENTRY})
    assert status == 1
    assert said.splitlines()[0] == "bad.package 2.0: GHSA-1 = CVE-1: it runs what it reads"


def test_one_that_is_withdrawn_or_ignored_does_not(audit):
    assert audit({"/v1/querybatch": BATCH, "/v1/vulns/GHSA-1": ENTRY | {"withdrawn": "2026-02-01T00:00:00Z"}})[0] == 0
    for name in ("GHSA-1", "CVE-1"):
        assert audit({"/v1/querybatch": BATCH, "/v1/vulns/GHSA-1": ENTRY}, "--ignore", name)[0] == 0
    assert audit({"/v1/querybatch": BATCH, "/v1/vulns/GHSA-1": ENTRY}, "--ignore", "GHSA-2")[0] == 1


@pytest.mark.parametrize("answer", [b"<html>", b"[]", {"results": []}])
def test_a_database_that_gives_another_answer_fails_nothing_and_is_told_of(audit, answer):
    status, said, _ = audit({"/v1/querybatch": answer})
    assert status == 0
    assert said.startswith("NOT AUDITED: http://127.0.0.1:")


def test_a_database_that_is_not_there_fails_nothing_and_is_told_of(audit):
    status, said, _ = audit({}, "--database", "http://127.0.0.1:9")
    assert status == 0
    assert said.startswith("NOT AUDITED: http://127.0.0.1:9 does not answer")
