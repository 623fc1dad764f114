"""Load from wrk, and what came of it."""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('\\n{{"requests": %d, "microseconds": %d, "p50": %.3f, "p99": %.3f, "refused": %d, "broken": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True)
class Load:
    """A load that was put on a server. Latencies in microseconds."""

    requests: int
    requests_per_second: float
    p50: float
    p99: float
    refused: int
    broken: int


def loaded(url: str, body: bytes, headers: Mapping[str, str], *, connections: int, seconds: int, core: int | None) -> Load:
    """Post `body` to `url` again and again from so many connections. Raises RuntimeError where wrk fails."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "body").write_bytes(body)
        lines = "\n".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items())
        script = Path(folder) / "post.lua"
        script.write_text(_SCRIPT.format(body=Path(folder) / "body", headers=lines), encoding="utf-8")
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        command = [*pinned, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
        ended = subprocess.run(  # noqa: S603 - a command of our own
            command, capture_output=True, text=True, check=False, timeout=seconds + 60
        )
    if ended.returncode:
        raise RuntimeError(f"wrk failed: {ended.stderr or ended.stdout}")
    counted = json.loads(ended.stdout.strip().splitlines()[-1])
    return Load(
        requests=counted["requests"],
        requests_per_second=counted["requests"] / counted["microseconds"] * 1e6,
        p50=counted["p50"],
        p99=counted["p99"],
        refused=counted["refused"],
        broken=counted["broken"],
    )
