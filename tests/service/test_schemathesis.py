"""The whole OpenAPI document against a live service, by schemathesis: what it makes up from the schemas and their opposites.

Its checks: no 5xx but those that are documented, every status, header, media type and body as documented, nothing accepted that
the schemas forbid, nothing open that needs a key, no method that is not documented.
"""

import os
import subprocess
import sys
from pathlib import Path

import httpx

from service.security import add_key
from tests.model_files import MIXED, write_formula_model
from tests.service.live import Process, read

ROOT = Path(__file__).parents[2]
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
OPTIONS = ("--generation-deterministic", "--max-examples", "5", "--phases", "examples,coverage,fuzzing", "--no-color")


def test_the_service_does_what_its_document_says(tmp_path):
    repository, keys = tmp_path / "repository", tmp_path / "keys.json"
    for version in (1, 2):
        write_formula_model(repository / "m" / str(version) / "model.onnx", columns=MIXED)
    (repository / "m" / "labels.json").write_text('{"stable": 1}')
    for name, content in (("broken", b"no model"), ("spare", b"")):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.onnx").write_bytes(content)
    key = f"Authorization: Bearer {add_key(keys, name='tests', scopes=frozenset(['admin']))}"
    service = Process(repository, "--keys", str(keys), "--default-model", "m", "--no-access-log")
    try:
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", CONFIGURATION, "run", *OPTIONS, "--header", key]
        ran = subprocess.run(
            [*command, f"{service.url}/openapi.json"],
            cwd=tmp_path,  # where it leaves a folder of its own
            env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},  # of its hooks
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "Missing test data" not in ran.stdout
        counted = read(httpx.get(f"{service.url}/metrics", headers=[key.split(": ")]).text)
    finally:
        assert service.stop() == 0
    assert counted["errorbar_requests_total", "m", "ok", "2"] > 50
    for reason in ("invalid", "not_found", "not_ready", "unauthorized", "method"):
        assert counted["errorbar_rejected_total", reason] > 0
    assert "Traceback" not in "".join(service.log)
