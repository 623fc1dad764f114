"""The model file as every peer holds it: a session of ONNX Runtime on one thread."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

OUTPUTS = ("mean", "std", "lower", "upper")
COVERAGE = 0.9
"""Where a request names none."""


class Model:
    """`answers` of the model file at `path`, of `features` columns."""

    def __init__(self, path: Path | str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.features: int = self._session.get_inputs()[0].shape[1]

    def answers(self, x: NDArray[Any], coverage: float = COVERAGE) -> dict[str, NDArray[Any]]:
        """Mean, std, lower and upper bound, [n] each, of the rows x [n, features]."""
        inputs = {"x": np.asarray(x, dtype=np.float64), "coverage": np.array([coverage])}
        outputs: list[NDArray[Any]] = self._session.run(list(OUTPUTS), inputs)
        return {name: output.reshape(len(x)) for name, output in zip(OUTPUTS, outputs, strict=True)}
