"""What a manifest tells about requests: a JSON Schema of instances, of requests and answers, and example requests."""

import csv
import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from models.conformal import largest_coverage
from models.manifest import Column, Manifest
from service.codecs.cells import NOT_EXACT
from service.codecs.features import features_of, read_instances
from service.codecs.infer import COVERAGE, WHOLE
from service.codecs.rows import SIGNATURE
from service.codecs.schemas import BODY_OPTIONS, NUMBERS_ARRAY
from service.codecs.tensors import TEXT


def instance_schema(columns: Sequence[Column]) -> dict[str, Any]:
    """The JSON Schema of one instance: an object by feature name, or an array in the model's order."""
    features = {column.name: _feature_schema(column) for column in columns}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "anyOf": [
            {"type": "object", "properties": features, "additionalProperties": False},
            {
                "type": "array",
                "prefixItems": list(features.values()),
                "items": False,
                "minItems": len(columns),
                "maxItems": len(columns),
            },
        ],
    }


def example_instance(columns: Sequence[Column]) -> dict[str, Any]:
    """A typical row of the training table: medians and first categories."""
    return {column.name: _typical(column) for column in columns}


def example_request(manifest: Manifest) -> dict[str, Any]:
    """A request that the model answers."""
    instance, calibration = example_instance(manifest.columns), manifest.calibration
    group = calibration.groups[0]
    if calibration.groups[1:]:  # the largest is the one most likely to support the default coverage
        group = max(calibration.groups[1:], key=lambda one: one.rows)
        column = next(column for column in manifest.columns if column.name == calibration.group_column)
        instance[column.name] = group.code == 1 if column.kind == "boolean" else group.value
    largest = largest_coverage(group.rows, interval=calibration.interval)
    return {"instances": [instance], "coverage": [min(manifest.default_coverage, largest)] if largest else []}


def example_tables(manifest: Manifest) -> dict[str, str]:
    """The rows of `example_request` as tables, by media type."""
    rows = example_request(manifest)["instances"]
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([rows[0], *(row.values() for row in rows)])
    lines = "".join(f"{orjson.dumps(row).decode()}\n" for row in rows)
    return {"text/csv": stream.getvalue(), "application/x-ndjson": lines, "application/jsonl": lines}


def request_schema(columns: Sequence[Column] | None) -> dict[str, Any]:
    """The JSON Schema of a V1 request, for the model with these columns or for any."""
    instance = {key: value for key, value in instance_schema(columns).items() if key != "$schema"} if columns else {}
    return {
        "type": "object",
        "required": ["instances"],
        "additionalProperties": False,
        "properties": {
            "instances": {"type": "array", "items": instance},
            **BODY_OPTIONS,
            SIGNATURE[0]: {"const": SIGNATURE[1], "description": "as TensorFlow Serving's clients send it"},
        },
    }


def answer_schema(targets: Sequence[str] | None) -> dict[str, Any]:
    """The JSON Schema of a V1 answer, for the model with these targets or for any."""
    number = {"type": "number"}
    bounds = {"coverage": number, "lower": number, "upper": number}
    interval = {"type": "object", "required": list(bounds), "properties": bounds}
    moments = {"mean": number, "std": number, "epistemic_std": number}
    warnings = {"warnings": {"type": "array", "items": {"type": "string"}}}
    lists = dict.fromkeys(("quantiles", "cdf", "samples"), NUMBERS_ARRAY)
    one = {
        "type": "object",
        "required": [*moments, "intervals"],
        "properties": {**moments, "intervals": {"type": "array", "items": interval}, **lists},
    }
    if targets is None:
        prediction: dict[str, Any] = {"type": "object"}
    elif len(targets) == 1:
        prediction = one | {"properties": {**one["properties"], **warnings}}  # type: ignore[dict-item]
    else:
        prediction = {"type": "object", "required": list(targets), "properties": dict.fromkeys(targets, one) | warnings}
    text = {"type": "string"}
    model = {"type": "object", "required": ["name", "version"], "properties": {"name": text, "version": text}}
    return {
        "type": "object",
        "required": ["model", "predictions"],
        "properties": {"model": model, "predictions": {"type": "array", "items": prediction}},
    }


def example_infer_request(manifest: Manifest) -> dict[str, Any]:
    """A V2 request that the model answers: the row of `example_request`, a tensor a feature where their names allow it."""
    example = example_request(manifest)
    (row,) = example["instances"]
    coverage = {"parameters": {"coverage": example["coverage"][0]}} if example["coverage"] else {"outputs": [{"name": "mean"}]}
    if {WHOLE, COVERAGE} & row.keys():
        x, _, _ = read_instances([row], features_of(manifest.columns))
        return coverage | {"inputs": [{"name": WHOLE, "shape": x.shape, "datatype": "FP64", "data": x.ravel().tolist()}]}
    return coverage | {
        "inputs": [
            {"name": name, "shape": [1], "datatype": _example_datatype(value), "data": [value]} for name, value in row.items()
        ]
    }


def _example_datatype(value: object) -> str:
    return TEXT if isinstance(value, str) else "BOOL" if isinstance(value, bool) else "FP64"


def _feature_schema(column: Column) -> dict[str, Any]:
    match column.kind:
        case "categorical":
            categories: list[Any] = list(column.categories or [])
            listed = f"one of {', '.join(categories[:50])}{', ...' if len(categories) > 50 else ''}; others count as missing"
            schema: dict[str, Any] = {"type": ["string", "integer", "null"] if column.integer else ["string", "null"]}
            expected = listed
        case "boolean":
            schema, expected = {"enum": [True, False, 1, 0, "true", "false", "yes", "no", None]}, "texts in upper or lower case"
        case "datetime":
            schema, expected = (
                {"type": ["string", "number", "null"]},
                "ISO 8601 (UTC without a zone), or seconds since 1970",
            )
        case _:
            schema, expected = {"type": ["number", "null"]}, ""
            if column.minimum is not None and column.maximum is not None:
                expected = f"training range {column.minimum:.12g} to {column.maximum:.12g}"
    unit = f"in {column.unit}" if column.unit else ""
    described = "; ".join(part for part in (column.description, unit, expected) if part)
    return schema | ({"description": described} if described else {}) | {"examples": [_typical(column)]}


def _typical(column: Column) -> Any:
    match column.kind:
        case "categorical":
            return column.categories[0] if column.categories else None
        case "boolean":
            return True
    typical = column.quantiles.get("0.5")
    if typical is None:
        typical = 0.0 if column.minimum is None or column.maximum is None else (column.minimum + column.maximum) / 2
    if column.kind == "datetime":
        try:
            return datetime.fromtimestamp(math.floor(typical), UTC).isoformat().replace("+00:00", "Z")
        except (ValueError, OverflowError, OSError):  # beyond the year 9999
            return typical
    short = float(f"{typical:.6g}")
    inside = column.minimum is None or column.maximum is None or column.minimum <= short <= column.maximum
    number = short if inside else typical
    return round(number) if column.integer and float(round(number)) == number and abs(number) < NOT_EXACT else number
