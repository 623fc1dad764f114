"""`python -m service`, `python -m service serve` (in clouds), `python -m service health`, `python -m service new-key`."""

import argparse
import ipaddress
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
from pydantic import ValidationError
from pydantic_settings import SettingsError

from service.settings import ENVIRONMENT_PREFIX, Settings, unknown_variables

logger = logging.getLogger("service")

_PROGRAM = "python -m service"
_SAGEMAKER_MODELS = Path("/opt/ml/model")
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - these are looked up, not listened on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["health"]:
        return _health(given[1:])
    if given[:1] == ["new-key"]:
        return _new_key(given[1:])
    return _serve(with_cloud_defaults(given))


def with_cloud_defaults(given: list[str]) -> list[str]:
    """Flags of the service, with those that the contracts of SageMaker and Vertex AI ask for where `given` has none.

    SageMaker starts a container with the word `serve`: port 8080, the models under /opt/ml/model. Vertex AI names the port in
    AIP_HTTP_PORT. Both reach the container from outside.
    """
    sagemaker = given[:1] == ["serve"]
    arguments = given[1:] if sagemaker else given
    wanted: dict[str, str] = {}
    if sagemaker:
        wanted = {"--port": "8080", "--host": "0.0.0.0"}  # noqa: S104
        if _SAGEMAKER_MODELS.is_dir():
            wanted["--repository"] = str(_SAGEMAKER_MODELS)
    if "AIP_HTTP_PORT" in os.environ:
        wanted |= {"--port": os.environ["AIP_HTTP_PORT"], "--host": "0.0.0.0"}  # noqa: S104
    missing = {flag: value for flag, value in wanted.items() if not any(a.partition("=")[0] == flag for a in arguments)}
    return [part for item in missing.items() for part in item] + arguments


def _serve(arguments: list[str]) -> int:
    settings = _settings(arguments)
    if settings is None:
        return 2
    from service.inference.session import DeviceError
    from service.security import KeysError
    from service.server import serve
    from service.telemetry import configure_logging
    from service.workers import supervise

    configure_logging(log_format=settings.log_format, level=settings.log_level)
    if settings.keys is None and not _is_loopback(settings.host):
        logger.warning("everybody who reaches %s:%d may ask: there are no keys (setting keys)", settings.host, settings.port)
    try:
        return serve(settings) if settings.workers == 1 else supervise(settings)
    except (DeviceError, KeysError) as error:
        return _fail(f"the service does not start: {error}", status=1)
    except OSError as error:
        return _fail(f"the service does not start on {settings.host}, port {settings.port}: {error}", status=1)
    except KeyboardInterrupt:  # before uvicorn took the signal over
        return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _settings(arguments: list[str]) -> Settings | None:
    """The settings, or None once it is said what is wrong with them."""
    unknown = unknown_variables()
    if unknown:
        _fail("\n".join(unknown), status=2)
        return None
    try:
        options = {"_cli_parse_args": arguments, "_cli_prog_name": _PROGRAM, "_cli_show_env_vars": True}
        return Settings(**options)  # type: ignore[arg-type]
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"])
            place = f"--{name.replace('_', '-')} / {ENVIRONMENT_PREFIX}{name.upper()}: " if name else ""
            sentence = problem["msg"].removeprefix("Value error, ")
            _fail(f"{place}{sentence} (given: {problem['input']!r})" if name else sentence, status=2)
    except SettingsError as error:
        _fail(str(error), status=2)
    return None


def _health(arguments: list[str]) -> int:
    """Ask a running service whether it is ready: 0 ready, 1 not ready, 2 the question cannot be asked."""
    parser = argparse.ArgumentParser(prog=f"{_PROGRAM} health", description="Exit with status 0 when the service is ready.")
    parser.add_argument("--url", help="address of the service (default: the host and port of its settings)")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait for an answer (default: 3)")
    options = parser.parse_args(arguments)
    url = options.url
    if url is None:
        settings = _settings(with_cloud_defaults([]))
        if settings is None:
            return 2
        host = _ANY_ADDRESS.get(settings.host, settings.host)
        url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    try:
        # Not by way of a proxy, which Docker names in every container's environment where its client has one
        response = httpx.get(f"{url.rstrip('/')}/v2/health/ready", timeout=options.timeout, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return _fail(f"{url} does not answer: {error}", status=1)
    if response.is_success:
        sys.stdout.write(f"{url} is ready\n")
        return 0
    return _fail(f"{url} answers {response.status_code}: {response.text[:1000]}", status=1)


def _new_key(arguments: list[str]) -> int:
    """Print a new key once, and add its hash to a file of keys."""
    from service.security import KeysError, add_key

    parser = argparse.ArgumentParser(
        prog=f"{_PROGRAM} new-key",
        description="Print a new key, and add its hash to a file for the setting `keys`. The key itself is not stored.",
    )
    parser.add_argument("file", type=Path, help="file of keys; made if it is not there")
    parser.add_argument("--name", required=True, help="whose key it is; stands in the file and in refusals")
    parser.add_argument("--scope", choices=["predict", "admin"], default="predict", help="default: predict")
    options = parser.parse_args(arguments)
    try:
        key = add_key(options.file, name=options.name, scopes=frozenset([options.scope]))
    except (KeysError, OSError) as error:
        return _fail(str(error), status=1)
    sys.stdout.write(f"{key}\n")
    return 0


def _fail(sentence: str, *, status: int) -> int:
    sys.stderr.write(f"{_PROGRAM}: {sentence}\n")
    return status
