"""`pip install .` alone gives a service, without torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.client import Client
from tests.model_files import write_formula_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of a new environment that holds errorbar and nothing else, installed from a copy of the sources."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    for name in ("models", "service", "training"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", source], check=True)
    return python


def test_the_service_alone_has_no_torch_and_answers(installed, tmp_path):
    write_formula_model(tmp_path / "models" / "formula" / "1" / "model.onnx")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    listed = subprocess.run([installed, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout.lower()
    assert "onnxruntime" in listed
    for name in ("torch", "onnx ", "polars", "scikit-learn", "matplotlib", "typer", "pyarrow"):
        assert f"\n{name}" not in listed
    arguments = [installed, "-m", "service", "--repository", tmp_path / "models", "--port", "0"]
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as service:
        try:
            line = next(line for line in service.stderr if "running on" in line)
            with Client(line.split("running on ")[1].split()[0]) as client:
                client.wait_until_ready(30)
                answer = client.predict("formula", [{"a": 1, "b": 2}], coverage=0.9)
            assert answer["predictions"][0]["mean"] == 5
        finally:
            service.terminate()
        service.stderr.read()
        assert service.wait() == 0
