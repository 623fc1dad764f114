#!/usr/bin/env bash
# Proves the images and docker-compose.yml with a real engine: builds, brings up, predicts, retrains under load, scales, stops.
# Needs docker with compose, bash and python3. Takes everything down again; only the engine's build cache stays.
set -euo pipefail
CDPATH= cd -- "$(dirname "$0")/.."

work=$(mktemp -d)
mkdir "$work/data"
chmod 755 "$work" "$work/data"  # the trainer reads it as another user
export COMPOSE_PROJECT_NAME=errorbar-test-$$ COMPOSE_FILE=docker-compose.yml COMPOSE_ANSI=never
export SERVE_HOST=127.0.0.1 SERVE_PORT=0 TABLES=$work/data  # port 0: a free one for each replica

asking=''
fail() { echo "test-containers: $1" >&2; exit 1; }
told() { echo "== $1" >&2; }
finish() {
    local status=$?
    trap '' INT TERM
    [ -z "$asking" ] || kill "$asking" 2>/dev/null || true
    if [ $status -ne 0 ]; then docker compose logs --no-color --tail 40 >&2 || true; fi
    docker compose down --volumes --remove-orphans --rmi local --timeout 5 >"$work/down.log" 2>&1 || cat "$work/down.log" >&2
    rm -rf "$work"
    [ $status -eq 0 ] || echo "test-containers: failed" >&2
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

docker compose version >/dev/null 2>&1 || fail "docker with compose (v2) is not here"
docker info >/dev/null 2>&1 || fail "no engine answers to docker; is it running, and does DOCKER_HOST name it?"

timed() {  # WHAT COMMAND...: runs it and says how long it took; shows its output only where it fails
    local what=$1 start=$EPOCHREALTIME
    shift
    "$@" >"$work/command.log" 2>&1 || { cat "$work/command.log" >&2; fail "$what failed"; }
    told "$what: $(python3 -c "print(f'{$EPOCHREALTIME - $start:.1f} s')")"
}
service() { docker compose exec -T "$@"; }
address() { echo "http://$(docker compose port --index "$1" service 8000)"; }

# ask URL MODEL VERSION SECONDS: ask again and again until VERSION answers; every single answer must be good.
cat >"$work/ask.py" <<'PYTHON'
import json, math, sys, time, urllib.request

url, model, wanted, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])

def answer(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data=data), timeout=10) as response:
        return json.load(response)

def ask():
    rows = answer(f"/v1/models/{model}/metadata")["example"]["instances"]
    deadline, asked = time.time() + seconds, 0
    while True:
        document = answer(f"/v1/models/{model}:predict", {"instances": rows, "coverage": [0.5, 0.9]})
        asked += 1
        assert len(document["predictions"]) == len(rows), document
        for prediction in document["predictions"]:
            assert math.isfinite(prediction["mean"]) and prediction["std"] > 0, prediction
            half, most = prediction["intervals"]
            assert most["lower"] < half["lower"] < half["upper"] < most["upper"], prediction
        if document["model"]["version"] == wanted:
            return f"{time.time()} {asked}"
        assert time.time() < deadline, f"{model} still answers with version {document['model']['version']} after {seconds:g} s"
        time.sleep(0.02)

try:
    print(ask())
except Exception as error:
    sys.exit(f"{url}: {error!r}")
PYTHON
ask() { python3 "$work/ask.py" "$@"; }

told "$(docker version --format 'engine {{.Server.Version}}'), compose $(docker compose version --short)"
timed "build" docker compose build
for image in service trainer; do
    told "image of $image: $(docker image inspect --format '{{.Size}}' "$COMPOSE_PROJECT_NAME-$image" | python3 -c 'print(f"{int(input()) / 1e6:.0f} MB")')"
done

timed "up: trained, published, healthy" docker compose up --detach --wait --wait-timeout 900 service
ask "$(address 1)" diabetes 1 0 >/dev/null || fail "the service does not predict"

container=$(docker compose ps --quiet service)
health=$(docker inspect --format '{{.State.Health.Status}}' "$container")
[ "$health" = healthy ] || fail "the service's health is '$health'"
[ "$(service service id -u)" = 10001 ] || fail "the service runs as user $(service service id -u), not as 10001"
[ "$(docker compose run --rm -T --entrypoint id trainer -u)" = 10001 ] || fail "the trainer does not run as user 10001"
service service python -c '
import importlib.util, shutil, sys
modules = [name for name in ("torch", "onnx", "polars", "training", "pip") if importlib.util.find_spec(name)]
programs = [name for name in ("cc", "gcc", "g++", "clang", "make") if shutil.which(name)]
sys.exit(f"the service image holds {modules + programs}" if modules + programs else 0)' || fail "the service image holds too much"
service --user 0 service test ! -e /root/.cache || fail "the service image holds what pip or an import has left in /root/.cache"
service service test ! -e /tmp/.cache || fail "a library keeps something in /tmp/.cache: is ONNX Runtime's telemetry on?"
for path in /app/x /models/x; do
    ! service service touch "$path" 2>/dev/null || fail "the service can write $path"
done
told "not root, nothing but the service in its image, nothing writable"

# A user's table, mounted; its model goes on under the same name while somebody asks all the time.
docker compose run --rm -T --entrypoint cat trainer /app/diabetes.csv >"$TABLES/patients.csv"
chmod 644 "$TABLES/patients.csv"
python3 "$work/ask.py" "$(address 1)" diabetes 2 600 >"$work/asked" & asking=$!
timed "retrain" docker compose run --rm -T trainer patients.csv --target progression --name diabetes --members 4 --epochs 40 --seed 1
wait "$asking" || fail "a request failed while version 2 came"
asking=''
published=$(service service python -c 'import os; print(os.stat("/models/diabetes/2").st_ctime)')
told "$(python3 -c "
answered, asked = open('$work/asked').read().split()
print(f'version 2 answered {float(answered) - $published:.2f} s after it was published; {asked} requests meanwhile, none failed')")"

timed "scale to 2" docker compose up --detach --wait --wait-timeout 120 --no-recreate --scale service=2 service
for replica in 1 2; do
    ask "$(address $replica)" diabetes 2 0 >/dev/null || fail "replica $replica does not predict"
done
[ "$(address 1)" != "$(address 2)" ] || fail "both replicas have the same address"
versions=$(service service python -c 'import os; print(*sorted(os.listdir("/models/diabetes")))')
[ "$versions" = "1 2" ] || fail "the repository holds versions $versions, not 1 2: the trainer has run again"
told "both replicas predict"

containers=$(docker compose ps --quiet service)
timed "stop" docker compose stop service
for container in $containers; do
    status=$(docker inspect --format '{{.State.ExitCode}}' "$container")
    [ "$status" = 0 ] || fail "the service ended with status $status after SIGTERM"
done
timed "start again, healthy" docker compose up --detach --wait --wait-timeout 120 --no-recreate --scale service=2 service
ask "$(address 1)" diabetes 2 0 >/dev/null || fail "the service does not predict after a restart"
told "all good"
