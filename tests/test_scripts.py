"""What the scripts refuse, and what they hand on to Python."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
NOT_IN_THE_BACKGROUND = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    reason="a job in the background ignores Ctrl-C, and so do its own",
)


@pytest.fixture
def run(tmp_path):
    """Runs a script with a `python` that only writes down its arguments, and no Python to make an environment with."""
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nshift 3\necho "python: $*" >&2\n')
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "false", "VENV": str(tmp_path / "venv")}

    def run(script, *arguments):
        command = ["bash", SCRIPTS / script, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["t.csv", "--target", "y", "--repository", "elsewhere"], "--repository: this publishes into model-repository"),
        (["t.csv", "--target", "y", "--repository=elsewhere"], "--repository: this publishes into model-repository"),
        (["t.csv", "--target", "y", "--once"], "--once: this trains each time"),
        (["t.csv", "--target", "y", "--port"], "--port needs a value"),
        (["t.csv", "--name", "--port", "8001"], "--name needs a value"),
        (["t.csv", "--name="], "--name needs a value"),
        (["--port=http"], "--port http: a port is a number from 1 to 65535"),
        (["--port", "65536"], "--port 65536: a port is a number from 1 to 65535"),
        (["--target", "price"], "name the table first, then its options: TABLE --target COLUMN"),
    ],
)
def test_train_then_deploy_refuses_in_a_sentence_before_it_does_anything(run, arguments, sentence):
    done = run("train-then-deploy.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"train-then-deploy: {sentence}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name the table first"),
        (["t.csv", "--target", "y", "--repository"], "--repository needs a value"),
        (["t.csv", "--target", "y", "--repository="], "--repository needs a value"),
        (["t.csv", "--name", "--once"], "--name needs a value"),
        (["t.csv", "--target", "y", "--output", "m.onnx"], "--output: the model goes into the repository"),
        (["t.csv", "--target", "y", "--name=a b"], "model name 'a b'"),
    ],
)
def test_train_and_publish_refuses_in_a_sentence_before_it_does_anything(run, arguments, sentence):
    done = run("train-and-publish.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"train-and-publish: {sentence}")
    assert len(done.stderr.splitlines()) == 1


def test_train_and_publish_hands_on_the_options_last_so_that_one_without_a_value_takes_no_other_for_it(run):
    done = run("train-and-publish.sh", "--repository=models", "t.csv", "--name=n", "--epochs", "3", "--target")
    assert done.returncode == 0
    fit, publish, _ = done.stderr.splitlines()
    assert fit.startswith("python: fit t.csv --output ")
    assert fit.endswith("/model.onnx --epochs 3 --target")
    assert publish.endswith("/model.onnx models --name n")


@pytest.mark.parametrize("script", ["train-and-publish.sh", "train-then-deploy.sh"])
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=NOT_IN_THE_BACKGROUND)])
def test_a_signal_ends_the_training_and_leaves_nothing_and_nothing_is_published(tmp_path, script, number):
    python = tmp_path / "venv" / "bin" / "python"  # where train-then-deploy.sh looks for it; its fit does not end
    work = tmp_path / "work"
    python.parent.mkdir(parents=True)
    work.mkdir()
    python.write_text('#!/bin/sh\n[ "$4" != fit ] || { echo "fit $$" >&2; exec sleep 600; }\necho "python: $*" >&2\n')
    python.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "VENV": str(tmp_path / "venv"),
        "TMPDIR": str(work),
    }
    command = ["bash", SCRIPTS / script, "t.csv", "--target", "y"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as started:
        fit = next(int(line.split()[1]) for line in started.stderr if line.startswith("fit "))
        assert len(list(work.iterdir())) == 1
        started.send_signal(number)
        try:
            assert started.wait(timeout=20) == 128 + number
            with pytest.raises(ProcessLookupError):
                os.kill(fit, 0)
            assert started.stderr.read() == ""
        finally:
            with suppress(ProcessLookupError):
                os.kill(fit, signal.SIGKILL)
    assert list(work.iterdir()) == []


def test_the_environment_is_the_one_of_this_folder_whatever_cdpath_says(tmp_path):
    other = tmp_path / "other"
    for folder in (tmp_path, other):
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text("#!/bin/sh\n")
        python.chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
    script = f". {SCRIPTS}/environment.sh; ensure_environment training; command -v python"
    environment = {**os.environ, "CDPATH": f"{other}:.", "PYTHON": sys.executable}
    environment.pop("VENV", None)
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/.venv/bin/python\n"


def test_a_python_that_is_not_there_is_named(tmp_path):
    script = f". {SCRIPTS}/environment.sh; ensure_environment training"
    environment = {**os.environ, "PYTHON": "no-python"}
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "errorbar needs Python 3.11 or newer; there is no no-python. Set PYTHON to where it is.\n"
