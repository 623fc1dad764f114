#!/usr/bin/env bash
# Everything that proves the project: lint, format, types, import contracts, tests. Arguments go to pytest.
set -euo pipefail
CDPATH= cd -- "$(dirname "$0")/.."
. scripts/environment.sh
ensure_environment training,dev

ruff check .
ruff format --check .
mypy
lint-imports
pytest "$@"
