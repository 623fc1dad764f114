"""From a fitted network to the network part of the model graph."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import torch

from models.manifest import Target
from models.networks import RawUnitsNetwork
from training.fit import Fitted
from training.graph import MEMBER_OUTPUTS, OPSET, named_network

FLOAT64_RATIO = 1e3
"""Outputs become float64 where a target's centre is larger than so many of its standard deviations: float32 keeps 7 digits,
and a target of 1e9 +- 1 would lose all of its own."""


def exported_network(fitted: Fitted, *, columns: int) -> onnx.ModelProto:
    """The network part: raw x [n, columns] float64 -> member_location, member_scale [members, n, targets] float64."""
    module = RawUnitsNetwork(fitted.network, centre=fitted.centre, scale=fitted.scale).eval()
    rows = torch.zeros(3, columns, dtype=torch.float64)
    with _quiet():
        program = torch.onnx.export(
            module,
            (rows,),
            input_names=["x"],
            output_names=list(MEMBER_OUTPUTS),
            dynamic_shapes={"x": {0: torch.export.Dim("n")}},
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - with dynamo=True there is always a program
    return named_network(program.model_proto)


def needs_float64(fitted: Fitted, targets: list[Target]) -> bool:
    """Whether the outputs need float64: a large offset, an exponential, or a unit that float32 has no room for."""
    centre, scale = np.abs(fitted.centre), np.array(fitted.scale)
    outside = (centre > FLOAT64_RATIO * scale) | (centre + FLOAT64_RATIO * scale > 1e30) | (scale < 1e-30)
    return bool(outside.any()) or any(target.transform == "log" for target in targets)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its notes about itself off the terminal; errors are raised all the same."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
