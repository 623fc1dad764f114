"""Ask a running errorbar service for one prediction, and show the request and the answer.

    python examples/first_request.py http://127.0.0.1:8000 diabetes [VERSION [PID]]

Waits until the service has the model (in that version or a later one); with the service's process id it gives up when the
process ends.
"""

import json
import os
import sys
import time

from service.client import Client, ErrorbarError

WAIT_SECONDS = 60


def ready_metadata(client: Client, name: str, *, version: int, process: int | None) -> dict:
    """The model's metadata, once it is served in at least this version."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            metadata = client.metadata(name)
            if int(metadata["version"]) >= version:
                return metadata
            reason = f"version {metadata['version']} of {name} is served, not yet {version}"
        except ErrorbarError as error:
            reason = str(error)
            if error.status in (401, 403):  # waiting gives no key
                sys.exit(reason)
        if process is not None:
            os.kill(process, 0)  # raises ProcessLookupError once the service has ended
        if time.monotonic() > deadline:
            sys.exit(f"no answer within {WAIT_SECONDS} s: {reason}")
        time.sleep(0.1)


def main() -> None:
    """Wait, ask, print."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    url, name, *rest = sys.argv[1:]
    version = int(rest[0]) if rest else 1
    process = int(rest[1]) if len(rest) > 1 else None
    with Client(url) as client:
        try:
            row = ready_metadata(client, name, version=version, process=process)["example"]["instances"][0]
        except ProcessLookupError:
            sys.exit("the service has ended; its last lines above say why")
        answer = client.predict(name, [row], coverage=[0.5, 0.9])
    print(f"POST {url}/v1/models/{name}:predict")
    print(json.dumps({"instances": [row], "coverage": [0.5, 0.9]}))
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
