#!/usr/bin/env bash
# Train on a table and publish the model file as the next version of a model. Standard output is the published file's path.
#
#   train-and-publish.sh TABLE --target COLUMN [--target COLUMN2] [options]
#
#   TABLE                a CSV, CSV.gz or Parquet file
#   --name NAME          name of the model (default: the file's name)
#   --repository PATH    model repository to publish into (default: model-repository)
#   --once               do nothing where the repository holds a model already
#   any other option     goes to `python -m training fit` (see below, or its --help)
#
# `python` must have errorbar[training]: train-then-deploy.sh sees to that, and so does the training image.
set -euo pipefail

usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0"; }
fail() { echo "train-and-publish: $1" >&2; exit 2; }
# -P: a folder `training` in the working directory is not ours. Waited for: what runs in the foreground keeps a trap waiting.
training() { python -P -m training "$@" <&0 & child=$!; wait "$child"; }

table='' name='' repository=model-repository once='' options=()
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; training fit --help; exit 0 ;;
        --name=* | --repository=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;  # as two words, for the next round
        --name | --repository) [[ ${2:--} != -* ]] || fail "$1 needs a value"
            if [ "$1" = --name ]; then name=$2; else repository=$2; fi; shift 2 ;;
        --output | --output=* | -o*)
            fail "--output: the model goes into the repository; to write a file use \`python -m training fit\`" ;;
        --once) once=yes; shift ;;
        *) if [ -z "$table" ] && [ ${#options[@]} -eq 0 ] && [ "${1#-}" = "$1" ]; then table=$1; else options+=("$1"); fi; shift ;;
    esac
done
[ -n "$table" ] || fail "name the table first, then its options: TABLE --target COLUMN (--help tells more)"

if [ -n "$once" ] && compgen -G "$repository/*/[1-9]*/model.onnx" >/dev/null; then
    echo "$repository holds a model already: nothing to train" >&2
    exit 0
fi
if [ -z "$name" ]; then
    name=$(basename "$table")
    name=$(printf %s "${name%%.*}" | tr -c 'A-Za-z0-9._-' '-')
fi
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$ ]] ||  # said now, and not after the training
    fail "model name '$name': use up to 100 letters, digits, '.', '_' and '-', beginning with a letter or a digit (--name)"

work=$(mktemp -d)
child=''
finish() {
    trap '' INT TERM
    [ -z "$child" ] || { kill "$child" && wait "$child"; } 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

training fit "$table" --output "$work/model.onnx" "${options[@]}" >&2  # in this order, an option at the end lacks its value
training publish "$work/model.onnx" "$repository" --name "$name" >"$work/published"
echo "the report: $(dirname "$(cat "$work/published")")/report.html" >&2
cat "$work/published"
