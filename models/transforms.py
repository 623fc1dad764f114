"""Target transforms: the network works on `transform(target)`, answers are in the target's own unit.

Every transform rises, so an interval's end, a quantile or a threshold maps through `inverse` or `forward` as it is
and keeps its probability. A density needs the derivative:
log p(y) = log p_transformed(forward(y)) + log_derivative(y).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Values = NDArray[np.float64]


@dataclass(frozen=True)
class TargetTransform:
    """A rising one-to-one map from the open interval (minimum, maximum) onto the real line, elementwise."""

    name: str
    minimum: float
    maximum: float
    forward: Callable[[Values], Values]
    inverse: Callable[[Values], Values]
    """Takes infinities to the ends of the domain; far out it rounds to them."""
    log_derivative: Callable[[Values], Values]
    """log |d forward / dy| at y."""


def _exp(z: Values) -> Values:
    # Beyond the largest double the answer is infinity, which needs no warning.
    with np.errstate(over="ignore"):
        return np.exp(z)


TRANSFORMS: dict[str, TargetTransform] = {
    transform.name: transform
    for transform in (
        TargetTransform("identity", -math.inf, math.inf, lambda y: y, lambda z: z, lambda y: np.zeros_like(y)),
        TargetTransform("log", 0.0, math.inf, lambda y: np.log(y), _exp, lambda y: -np.log(y)),
        TargetTransform("logit", 0.0, 1.0, special.logit, special.expit, lambda y: -np.log(y) - np.log1p(-y)),
    )
}
