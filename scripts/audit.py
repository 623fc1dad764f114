#!/usr/bin/env python3
"""Look the pinned versions up in OSV, the public database of vulnerabilities: one question for all of them.

    scripts/audit.py [--ignore ID] [constraints.txt]

Ends with 1 where a version is known to be vulnerable, and with 0 where none is or where the database does not answer, which it
says. Needs Python alone.
"""

import argparse
import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

_PINS = Path(__file__).parents[1] / "constraints.txt"
_DATABASE = "https://api.osv.dev"
_SECONDS = 10.0


def main() -> int:
    """Run the audit; returns the exit status."""
    parser = argparse.ArgumentParser(description="Look the pinned versions up in a database of vulnerabilities.")
    parser.add_argument("file", nargs="?", type=Path, default=_PINS, help="lines of name==version (default: constraints.txt)")
    parser.add_argument("--ignore", action="append", default=[], metavar="ID", help="a vulnerability that does not concern us")
    parser.add_argument("--database", default=_DATABASE, help=f"default: {_DATABASE}")
    options = parser.parse_args()
    pins = [line.split("==") for line in options.file.read_text().splitlines() if "==" in line and not line.startswith("#")]
    try:
        found = vulnerabilities(pins, options.database)
    except (OSError, ValueError) as error:  # no network, another answer than JSON
        sys.stderr.write(f"NOT AUDITED: {options.database} does not answer ({error})\n")
        return 0
    counting = [line for names, line in found if not names & set(options.ignore)]
    sys.stdout.write("".join(f"{line}\n" for line in counting))
    sys.stdout.write(f"{len(pins)} versions, {len(counting)} known vulnerabilities\n")
    return 1 if counting else 0


def vulnerabilities(pins: list[list[str]], database: str) -> list[tuple[set[str], str]]:
    """Of each vulnerability of the pinned versions: its names, and a line that tells of it. Raises OSError, ValueError."""
    queries = [
        {"package": {"ecosystem": "PyPI", "name": re.sub("[-_.]+", "-", name).lower()}, "version": version}
        for name, version in pins
    ]
    results = _ask(f"{database}/v1/querybatch", {"queries": queries}).get("results", [])
    if len(results) != len(pins):
        raise ValueError(f"{len(results)} results for {len(pins)} versions")
    found = []
    for (name, version), result in zip(pins, results, strict=True):
        for one in result.get("vulns", []):
            entry = _ask(f"{database}/v1/vulns/{one['id']}")
            if "withdrawn" not in entry:
                names = [one["id"], *entry.get("aliases", [])]
                found.append((set(names), f"{name} {version}: {' = '.join(names)}: {entry.get('summary', '')}"))
    return found


def _ask(url: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
    body = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
        content = json.load(answer)
    if not isinstance(content, dict):
        raise ValueError(f"{url} answered no object")  # noqa: TRY004 - not our mistake
    return content


if __name__ == "__main__":
    sys.exit(main())
