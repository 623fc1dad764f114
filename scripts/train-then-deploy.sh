#!/usr/bin/env bash
# Train on a table, publish the model, serve it, ask it once, and keep serving.
#
#   scripts/train-then-deploy.sh                                  scikit-learn's diabetes table
#   scripts/train-then-deploy.sh TABLE --target COLUMN [--target COLUMN2] [options]
#
#   TABLE                 a CSV, CSV.gz or Parquet file
#   --name NAME           name of the model (default: the file's name)
#   --port PORT           port of the service (default: 8000); a service that runs there already takes the new version in
#   --stop-after-check    end with status 0 after the first good answer
#   any other option      goes to `python -m training fit` (see its --help)
set -euo pipefail
CDPATH= cd -- "$(dirname "$0")/.."
invoked_from=$OLDPWD
. scripts/environment.sh

usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' scripts/train-then-deploy.sh; }
fail() { echo "train-then-deploy: $1" >&2; exit 2; }

table='' name='' port=8000 stop_after_check='' options=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --name=* | --port=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;  # as two words, for the next round
        --name | --port) [[ ${2:--} != -* ]] || fail "$1 needs a value"
            if [ "$1" = --name ]; then name=$2; else port=$2; fi; shift 2 ;;
        --repository | --repository=*)
            fail "--repository: this publishes into model-repository and serves it; for another use scripts/train-and-publish.sh" ;;
        --once) fail "--once: this trains each time; use scripts/train-and-publish.sh --once" ;;
        --stop-after-check) stop_after_check=yes; shift ;;
        *) if [ -z "$table" ] && [ ${#options[@]} -eq 0 ] && [ "${1#-}" = "$1" ]; then table=$1; else options+=("$1"); fi; shift ;;
    esac
done
[[ $port =~ ^[1-9][0-9]{0,4}$ && $port -le 65535 ]] || fail "--port $port: a port is a number from 1 to 65535"
if [ -z "$table" ]; then
    for option in "${options[@]}"; do
        case $option in --target | --target=*) fail "name the table first, then its options: TABLE --target COLUMN" ;; esac
    done
fi

ensure_environment training

child=''
partial=''
finish() {
    trap '' INT TERM
    rm -f "$partial"
    [ -z "$child" ] || { kill "$child" && wait "$child"; } 2>/dev/null || true
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

root=$PWD
if [ -z "$table" ]; then
    mkdir -p data
    table=$root/data/diabetes.csv
    partial=$(mktemp "$table.XXXXXX")  # another of these scripts may be at it
    python -m training dataset diabetes >"$partial"
    chmod 644 "$partial"
    mv "$partial" "$table"
    options=(--target progression "${options[@]}")
fi
exec {output}< <(cd "$invoked_from" && exec "$root/scripts/train-and-publish.sh" "$table" \
    --repository "$root/model-repository" ${name:+--name "$name"} "${options[@]}")
child=$!
wait "$child"  # and not $(...), which keeps a trap waiting
child=''
read -r published <&"$output"
exec {output}<&-
version=$(basename "$(dirname "$published")")
name=$(basename "$(dirname "$(dirname "$published")")")

url=http://127.0.0.1:$port
if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then  # nobody listens there yet
    python -m service --repository model-repository --port "$port" &
    child=$!
fi
NO_PROXY=127.0.0.1 no_proxy=127.0.0.1 python examples/first_request.py "$url" "$name" "$version" ${child:+"$child"}
echo
echo "Ask it yourself: $url/docs    The report: model-repository/$name/$version/report.html"
[ -n "$child" ] && [ -z "$stop_after_check" ] || exit 0
echo "Serving until Ctrl-C."
wait "$child"
