import os
import re
from pathlib import Path

import pytest

from service.app import _run_limits
from service.cli import main
from service.inference.session import Device
from service.settings import Settings, unknown_variables


def test_every_setting_says_what_it_is_for():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_a_flag_goes_before_the_environment_and_that_before_the_default(monkeypatch):
    monkeypatch.setenv("ERRORBAR_PORT", "9000")
    monkeypatch.setenv("ERRORBAR_MAX_ROWS", "7")
    settings = Settings(_cli_parse_args=["--port", "9001", "--no-access-log"])
    assert (settings.port, settings.max_rows, settings.access_log) == (9001, 7, False)
    assert settings.repository == Path("model-repository")


@pytest.mark.parametrize(
    ("cores", "workers", "given", "milliseconds"),
    [(1, 1, None, 2), (2, 2, None, 2), (1, 2, None, 2), (2, 1, None, 1), (4, 2, None, 1), (2, 1, 5.0, 5), (1, 1, 0.0, 0)],
)
def test_runs_on_the_event_loop_are_shorter_where_a_thread_has_a_core_of_its_own(
    cores, workers, given, milliseconds, monkeypatch
):
    monkeypatch.setattr("service.app.available_cores", lambda: cores)
    limits = _run_limits(Settings(workers=workers, inline_milliseconds=given), Device("cpu", threads=1))
    assert limits.inline_seconds == milliseconds / 1e3


def test_every_setting_is_read_somewhere():
    """An option that does nothing is a lie: each must be used as an attribute outside settings.py."""
    service = Path(__file__).parents[2] / "service"
    source = "\n".join(path.read_text() for path in service.rglob("*.py") if path.name != "settings.py")
    used = set(re.findall(r"settings\.(\w+)", source))
    assert set(Settings.model_fields) <= used


def test_a_misspelt_environment_variable_stops_the_start_with_the_nearest_name(monkeypatch, capsys):
    monkeypatch.setenv("ERRORBAR_PROT", "1")
    assert unknown_variables() == ["ERRORBAR_PROT is no setting; did you mean ERRORBAR_PORT?"]
    assert main(["serve"]) == 2
    assert "ERRORBAR_PROT is no setting" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--port", "x"], "--port / ERRORBAR_PORT: Input should be a valid integer"),
        (["--port", "70000"], "--port / ERRORBAR_PORT: Input should be less than or equal to 65535"),
        (["--device", "tpu"], "--device / ERRORBAR_DEVICE: Input should be 'cpu', 'cuda' or 'prefer-cuda' (given: 'tpu')"),
        (["--deadline-seconds", "nan"], "--deadline-seconds / ERRORBAR_DEADLINE_SECONDS"),
        (
            ["--rescan-seconds", "1e30"],
            "--rescan-seconds / ERRORBAR_RESCAN_SECONDS: Input should be less than or",
        ),
        (["--repository", ""], "--repository / ERRORBAR_REPOSITORY: is empty, which would be the folder that"),
        (["--default-model", ""], "--default-model / ERRORBAR_DEFAULT_MODEL: String should have at least 1 character"),
        (["--max-rows", "10", "--max-queued-rows", "9"], "max_queued_rows 9 is below max_rows 10"),
    ],
)
def test_a_wrong_value_is_told_by_flag_and_variable(flags, sentence, capsys):
    assert main(flags) == 2
    assert sentence in capsys.readouterr().err


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--nonsense"])
    assert caught.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


def test_a_device_that_does_not_run_is_one_sentence_and_status_1(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert main(["serve", "--device", "cuda", "--repository", os.fspath(tmp_path)]) == 1
    assert "the service does not start: this onnxruntime has no CUDA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"AIP_HTTP_PORT": "9"}, "http://127.0.0.1:9"),
        ({"ERRORBAR_HOST": "::", "ERRORBAR_PORT": "9"}, "http://[::1]:9"),
        ({"ERRORBAR_HOST": "::1", "ERRORBAR_PORT": "9"}, "http://[::1]:9"),
    ],
)
def test_health_asks_where_the_service_listens(monkeypatch, capsys, environment, url):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["health"]) == 1
    assert f"{url} does not answer" in capsys.readouterr().err


def test_health_of_a_service_that_is_not_there_is_status_1(capsys):
    assert main(["health", "--url", "http://127.0.0.1:9", "--timeout", "2"]) == 1
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err
