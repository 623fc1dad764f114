import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from models.transforms import TRANSFORMS

INSIDE = {"identity": [-3e9, -1.5, 0.0, 7.0], "log": [1e-12, 0.3, 1.0, 4e8], "logit": [1e-9, 0.2, 0.5, 0.999]}


def test_the_transforms_are_those_a_manifest_may_name():
    assert {name: transform.name for name, transform in TRANSFORMS.items()} == {t: t for t in INSIDE}


@pytest.mark.parametrize("name", INSIDE)
def test_inverse_undoes_forward(name):
    y, transform = np.array(INSIDE[name]), TRANSFORMS[name]
    np.testing.assert_allclose(transform.inverse(transform.forward(y)), y, rtol=1e-12)


@pytest.mark.parametrize("name", INSIDE)
@given(z=st.lists(st.floats(-30, 30), min_size=2, max_size=20))
def test_inverse_keeps_order_and_stays_inside(name, z):
    transform = TRANSFORMS[name]
    y = transform.inverse(np.sort(z))
    assert (np.diff(y) >= 0).all()
    assert transform.minimum < y[0]
    assert y[-1] < transform.maximum


@pytest.mark.parametrize("name", INSIDE)
def test_infinite_factors_become_the_ends_of_the_domain(name):
    transform = TRANSFORMS[name]
    assert transform.inverse(np.array([-math.inf, math.inf])).tolist() == [transform.minimum, transform.maximum]


def test_an_overflow_of_the_log_transform_is_infinity_without_a_warning():
    assert TRANSFORMS["log"].inverse(np.array([1000.0])).tolist() == [math.inf]


@pytest.mark.parametrize("name", INSIDE)
def test_log_derivative_is_that_of_a_central_difference(name):
    transform, y = TRANSFORMS[name], np.array([0.1, 0.5, 0.8])
    slope = (transform.forward(y + 1e-6) - transform.forward(y - 1e-6)) / 2e-6
    np.testing.assert_allclose(transform.log_derivative(y), np.log(slope), atol=1e-8)


@pytest.mark.parametrize("name", INSIDE)
def test_a_density_in_raw_units_integrates_to_one(name):
    transform = TRANSFORMS[name]

    def density(y):
        y = np.array([y])
        return math.exp((stats.norm(0.3, 0.7).logpdf(transform.forward(y)) + transform.log_derivative(y))[0])

    total, _ = integrate.quad(density, max(transform.minimum, -20) + 1e-12, min(transform.maximum, 60) - 1e-12, limit=200)
    assert total == pytest.approx(1, abs=1e-7)
