# Sourced by the other scripts: makes .venv with errorbar and the given extras in it, and puts it on the PATH.
#   ensure_environment training        or        ensure_environment training,dev
# The variable PYTHON names the Python to make it with (3.11 or newer), VENV another place for it.

ensure_environment() {
    local extras=$1 venv=${VENV:-.venv} python=${PYTHON:-python3} wanted stamp
    command -v "$python" >/dev/null || {
        echo "errorbar needs Python 3.11 or newer; there is no $python. Set PYTHON to where it is." >&2
        return 1
    }
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "errorbar needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON to another." >&2
        return 1
    }
    wanted=$({ cat pyproject.toml constraints.txt; pwd; } | cksum)  # what is installed is the code of this folder
    stamp=$venv/.errorbar-$extras
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        echo "installing errorbar[$extras] into $venv" >&2
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$venv"  # one that was interrupted has no pip
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extras]"
        echo "$wanted" >"$stamp"
    fi
    PATH=$(CDPATH= cd -- "$venv/bin" && pwd):$PATH
    export PATH
}
