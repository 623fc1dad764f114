"""What a served model tells about itself, in V1 and in the Open Inference Protocol."""

from collections.abc import Sequence
from typing import Any

from models.conformal import largest_coverage
from models.manifest import Calibration, Manifest
from service.codecs.documents import example_request, instance_schema
from service.codecs.infer import DATATYPE_OF_RAW, INTERVALS, WHOLE
from service.codecs.infer import OUTPUTS as TENSOR_OUTPUTS
from service.model import ServedModel


def metadata(model: ServedModel) -> dict[str, Any]:
    """All that is known of a served model, without the manifest's long arrays."""
    device: dict[str, Any] = {"name": model.device.name, "threads": model.device.threads}
    if model.device.fallback_reason is not None:
        device["fallback_reason"] = model.device.fallback_reason
    return {
        "name": model.name,
        "version": str(model.version),
        "sha256": model.sha256,
        "loaded": model.loaded,
        "device": device,
        "manifest": _short_manifest(model.manifest),
        "instance_schema": instance_schema(model.manifest.columns),
        "example": example_request(model.manifest),
    }


def tensor_metadata(model: ServedModel, versions: Sequence[int]) -> dict[str, Any]:
    """Model metadata of the Open Inference Protocol. `properties`, a map of texts, holds what its form has no place for."""
    targets = len(model.targets.names)
    device = model.device.name
    described = {
        "targets": ", ".join(model.targets.names),
        "features": ", ".join(model.features.names),
        "default_coverage": f"{model.manifest.default_coverage:g}",
        "calibration": model.manifest.calibration.method,
        "created": model.manifest.origin.created,
        "sha256": model.sha256,
        "loaded": model.loaded,
        "device": device if model.device.fallback_reason is None else f"{device} ({model.device.fallback_reason})",
    }
    return {
        "name": model.name,
        "versions": [str(version) for version in sorted(versions)],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": WHOLE, "datatype": DATATYPE_OF_RAW, "shape": [-1, len(model.features.names)]}],
        "outputs": [
            {"name": name, "datatype": model.datatypes[name], "shape": [-1, targets, *([-1] if name in INTERVALS else [])]}
            for name in TENSOR_OUTPUTS
        ],
        "properties": described,
    }


def _short_manifest(manifest: Manifest) -> dict[str, Any]:
    every_target = {"targets": {"__all__": {"pit_histogram"}}, "baselines": {"__all__": {"__all__": {"pit_histogram"}}}}
    excluded: Any = {"golden": True, "calibration": {"groups"}, "evaluation": every_target}
    if manifest.evaluation is None:
        del excluded["evaluation"]
    short = manifest.model_dump(mode="json", exclude=excluded)
    short["calibration"]["groups"] = _groups(manifest.calibration)
    return short


def _groups(calibration: Calibration) -> list[dict[str, Any]]:
    return [
        {
            "value": group.value,
            "code": group.code,
            "rows": group.rows,
            "largest_coverage": largest_coverage(group.rows, interval=calibration.interval),
            "scale_factor": factor,
        }
        for group, factor in zip(calibration.groups, calibration.scale_factors, strict=True)
    ]
