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
