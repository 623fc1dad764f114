"""Every setting of the service: from flags, then `ERRORBAR_*` environment variables, then the defaults here."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DevicePolicy = Literal["cpu", "cuda", "prefer-cuda"]

ENVIRONMENT_PREFIX = "ERRORBAR_"

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Serve the models of a model repository over HTTP. Other commands, each with a --help of its own: health, new-key."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    repository: Path = Path("model-repository")
    """Folder of models, <name>/<version>/model.onnx; it may still be empty or missing at start."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on every network interface."""
    port: Port = 8000
    """Port to listen on; 0 takes any free one, which the log names."""

    workers: Count = 1
    """Processes that serve the port, each with its own models in memory; one that dies is replaced."""

    default_model: Annotated[str, Field(min_length=1)] | None = None
    """Model of the routes that name none (/invocations, Vertex AI's); default: the only one of the repository."""

    keys: Path | None = None
    """File of hashed keys (`python -m service new-key` makes it); with it every request but a health probe needs a key. It is
    read again when it changes. Without it, predictions are open and loading and unloading of models is closed."""

    device: DevicePolicy = "cpu"
    """cpu; cuda (the service does not start unless CUDA really runs); prefer-cuda (falls back to the CPU and says so)."""
    threads: Annotated[int, Field(ge=0)] = 1
    """CPU threads that one model run may use; 0 takes every core this process may use. More than one pays for large
    requests only."""
    loaded_versions: Count = 10
    """Versions of a model kept loaded: the newest this many; those that a label names are always kept."""
    rescan_seconds: Annotated[float, Field(gt=0, le=86_400)] = 10.0
    """Changes of the repository are noticed at once where the file system tells of them; it is also read this often."""

    max_body_bytes: Count = 16 * 1024 * 1024
    """Largest request body, counted after decompression."""
    max_rows: Count = 100_000
    """Most rows of one request."""
    max_answer_values: Count = 2_000_000
    """Most numbers of one answer: rows x targets x (3 + 2 per coverage + quantiles + thresholds + samples)."""
    max_levels: Count = 1000
    """Most coverages and quantiles of one request, each of which is ranked among the calibration rows."""
    max_queued_rows: Count = 200_000
    """Rows that may wait for a model; a request beyond is refused at once with 503."""
    inline_milliseconds: Annotated[float, Field(ge=0)] | None = None
    """A run that is expected to take no longer, by what a row took before, happens on the event loop itself, which is quicker
    than handing it to a thread; meanwhile other requests wait. Default: 2 where each worker has one core, 1 where it has more,
    on which a thread runs beside the event loop."""
    run_rows: Count = 1024
    """Most rows of one run of a model; larger requests are run in pieces, whose memory stays in a core's cache."""
    max_connections: Count = 10_000
    """Connections open at a time, each process for itself; one beyond is refused with 503."""
    request_seconds: SomeSeconds = 30.0
    """A request must arrive within this time of its first byte, and a client must read its answer without a longer pause."""
    keep_alive_seconds: Count = 75
    """An idle connection is kept open this long: longer than the load balancers in front, or they meet closed ones."""
    deadline_seconds: SomeSeconds = 30.0
    """A request that waits longer than this for its run is refused with 504."""

    drain_seconds: Seconds = 0.0
    """After SIGTERM, readiness is 503 for this long while requests are still served, so that load balancers look away first."""
    shutdown_seconds: Count = 20
    """Requests in flight may take this long to finish once the service has stopped listening."""

    log_format: Literal["text", "json"] = "text"
    """Log lines for people, or one JSON object a line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are logged."""
    access_log: bool = True
    """Log one line a request (never its payload)."""

    @property
    def vertex_predict_route(self) -> str | None:
        """The path that Vertex AI asks a container to predict at."""
        return os.environ.get("AIP_PREDICT_ROUTE")

    @property
    def vertex_health_route(self) -> str | None:
        """The path that Vertex AI asks a container for its health at."""
        return os.environ.get("AIP_HEALTH_ROUTE")

    @field_validator("repository", "keys", mode="before")
    @classmethod
    def _no_empty_path(cls, value: object) -> object:
        if value == "":
            raise ValueError("is empty, which would be the folder that this is started in; give a path, or leave it out")
        return value

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> Self:
        if self.max_queued_rows < self.max_rows:
            raise ValueError(
                f"max_queued_rows {self.max_queued_rows} is below max_rows {self.max_rows}: the largest requests can never run"
            )
        return self


def unknown_variables() -> list[str]:
    """A sentence about each `ERRORBAR_*` environment variable that no setting reads."""
    known = [ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields]
    sentences = []
    for variable in sorted(os.environ):
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and variable.upper() not in known:
            near = difflib.get_close_matches(variable.upper(), known, n=1)
            sentences.append(f"{variable} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
    return sentences
