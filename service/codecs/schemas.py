"""JSON Schemas of what the fixed routes take and answer, whichever models there are."""

from typing import Any

from service.codecs.infer import OUTPUTS
from service.codecs.tensors import NUMBERS, TEXT

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_YES_OR_NO: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object with these members and no other."""
    return {"type": "object", "required": [*required], "properties": required | optional, "additionalProperties": False}


NUMBERS_ARRAY = _array({"type": "number"})
_PROBABILITIES = _array({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1})

OPTIONS: dict[str, Schema] = {
    "coverage": _PROBABILITIES | {"description": "of the prediction intervals"},
    "quantiles": _PROBABILITIES | {"description": "probabilities whose quantiles are wanted"},
    "thresholds": NUMBERS_ARRAY | {"description": "values t for which P(y <= t) is wanted, of every target"},
    "samples": _COUNT | {"description": "draws from the predictive distribution"},
    "seed": _COUNT | {"description": "makes the samples repeatable"},
    "strict": _YES_OR_NO | {"description": "refuse unknown categories instead of warning"},
}
"""What a V1 request may ask beside its rows."""
BODY_OPTIONS: dict[str, Schema] = {
    name: {"anyOf": [schema["items"], schema], "description": schema["description"]} if "items" in schema else schema
    for name, schema in OPTIONS.items()
}
"""As they stand in a JSON body: a number may stand for an array of one."""

ERROR = _object(
    {"error": _TEXT},
    details=_array(_object({"problem": _TEXT}, row=_COUNT, feature=_TEXT)),
)
"""Every failure."""

LIVE = _object({"live": _YES_OR_NO})
READY = _object({"ready": _YES_OR_NO, "live": _YES_OR_NO})
NOT_READY = _object({"ready": _YES_OR_NO, "live": _YES_OR_NO, "error": _TEXT})
MODEL_READY = _object({"name": _TEXT, "ready": _YES_OR_NO})
MODEL_NOT_READY = _object({"name": _TEXT, "ready": _YES_OR_NO, "error": _TEXT})

_MODEL: dict[str, Schema] = {
    "name": _TEXT,
    "default_version": {"type": ["string", "null"], "description": "answers where no version is named"},
    "versions": _array(
        _object(
            {"version": _TEXT, "state": {"enum": ["ready", "failed", "not loaded"]}},
            reason=_TEXT | {"description": "why its newest file is not served"},
        )
    ),
    "labels": {"type": "object", "additionalProperties": _TEXT},
}
_LABELS_PROBLEM = {"labels_problem": _TEXT | {"description": "why labels.json is not followed"}}
MODELS = _object(
    {"models": _array(_object(_MODEL, **_LABELS_PROBLEM))},
    waiting_for=_TEXT | {"description": "what keeps the service from being ready"},
)
MODEL = _object(_MODEL | {"ready": _YES_OR_NO}, **_LABELS_PROBLEM)
METADATA = _object(
    {
        "name": _TEXT,
        "version": _TEXT,
        "sha256": _TEXT,
        "loaded": {"type": "string", "format": "date-time"},
        "device": _object({"name": {"enum": ["cpu", "cuda"]}, "threads": _COUNT}, fallback_reason=_TEXT),
        "manifest": {"type": "object"},
        "instance_schema": {"type": "object", "description": "a JSON Schema of one instance"},
        "example": {"type": "object", "description": "a request that the model answers"},
    }
)

SERVER = _object({"name": _TEXT, "version": _TEXT, "extensions": _array(_TEXT)})
_TENSOR = _object({"name": _TEXT, "datatype": {"enum": [*NUMBERS, TEXT]}, "shape": _array({"type": "integer", "minimum": -1})})
TENSOR_METADATA = _object(
    {
        "name": _TEXT,
        "versions": _array(_TEXT),
        "platform": _TEXT,
        "inputs": _array(_TENSOR),
        "outputs": {"type": "array", "items": _TENSOR, "minItems": len(OUTPUTS)},
        "properties": {"type": "object", "additionalProperties": _TEXT},
    }
)
_DURATION = _object({"count": _COUNT, "ns": _COUNT})
_PHASES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
STATISTICS = _object(
    {
        "model_stats": _array(
            _object(
                {
                    "name": _TEXT,
                    "version": _TEXT,
                    "last_inference": _COUNT | {"description": "milliseconds since 1970; 0 before the first"},
                    "inference_count": _COUNT,
                    "execution_count": _COUNT,
                    "inference_stats": _object(dict.fromkeys(_PHASES, _DURATION)),
                    "batch_stats": _array(_object({"batch_size": _COUNT, "compute_infer": _DURATION})),
                }
            )
        )
    }
)

INDEX_REQUEST: Schema = {"type": "object", "properties": {"ready": _YES_OR_NO}}
INDEX = _array(
    _object({"name": _TEXT, "version": _TEXT, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": _TEXT}),
)
LOAD_REQUEST: Schema = {
    "type": "object",
    "properties": {
        "parameters": {
            "type": ["object", "null"],
            "properties": {"unload_dependents": {"description": "taken and of no effect"}},
            "additionalProperties": False,
        }
    },
}

_ROWS: Schema = {"type": "array"}
_FORMS: dict[str, Schema] = {
    "instances": _ROWS,
    "dataframe_split": {
        "type": "object",
        "required": ["data"],
        "properties": {"columns": {"type": ["array", "null"], "items": _TEXT}, "data": _ROWS},
    },
    "dataframe_records": _ROWS,
    "inputs": {"anyOf": [_ROWS, {"type": "object", "additionalProperties": _ROWS}]},
}
_OPTIONS_WITHIN: Schema = {"type": ["object", "null"], "properties": BODY_OPTIONS}
INVOCATIONS_REQUEST: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **_FORMS,
        "parameters": _OPTIONS_WITHIN | {"description": "options, where Vertex AI puts them"},
        "params": _OPTIONS_WITHIN | {"description": "options, where MLflow's clients put them"},
        **BODY_OPTIONS,
    },
    "oneOf": [{"required": [form]} for form in _FORMS],
}
"""Rows in one of the forms of cloud containers and MLflow's clients."""

INFER_REQUEST: Schema = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": _TEXT,
        "parameters": {
            "type": "object",
            "properties": {
                "coverage": {"type": ["number", "string"], "description": "of the intervals; several with commas between"},
                "timeout": _COUNT | {"description": "microseconds that the request may wait for its run"},
                "binary_data_output": _YES_OR_NO | {"description": "outputs as raw bytes"},
                "strict": OPTIONS["strict"],
            },
        },
        "inputs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype"],
                "properties": {
                    "name": _TEXT | {"description": "x, the name of a feature, or coverage"},
                    "shape": _array(_COUNT),
                    "datatype": {"type": "string", "enum": [*NUMBERS, TEXT]},
                    "parameters": {"type": "object"},
                    "data": {"type": "array", "description": "flat, or nested as the shape"},
                },
            },
        },
        "outputs": _array(
            {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string", "enum": list(OUTPUTS)}, "parameters": {"type": "object"}},
            }
        ),
    },
}
INFER_ANSWER: Schema = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "id": _TEXT,
        "parameters": {"type": "object"},
        "outputs": _array(
            {
                "type": "object",
                "required": ["name", "datatype", "shape"],
                "properties": {
                    "name": _TEXT,
                    "datatype": {"enum": ["FP32", "FP64"]},
                    "shape": _array({"type": "integer"}),
                    "parameters": {"type": "object"},
                    "data": NUMBERS_ARRAY,
                },
            }
        ),
    },
}
