import math

import pytest
import torch

from models.heads import FAMILIES, SMALLEST_DEGREES_OF_FREEDOM, Head, degrees_of_freedom

MEMBERS, ROWS, WIDTH, TARGETS = 3, 5, 4, 2
MINIMUM, MAXIMUM = 0.01, 10.0


def head(*, family="gaussian", heteroscedastic=True, minimum_std=MINIMUM, maximum_std=MAXIMUM):
    torch.manual_seed(0)
    return Head(
        members=MEMBERS,
        width=WIDTH,
        targets=TARGETS,
        family=FAMILIES[family],
        heteroscedastic=heteroscedastic,
        minimum_std=minimum_std,
        maximum_std=maximum_std,
    )


def trunk():
    return torch.randn(MEMBERS, ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("heteroscedastic", [True, False])
@pytest.mark.parametrize(("raw", "std"), [(-1e30, MINIMUM), (-math.inf, MINIMUM), (1e30, MAXIMUM), (math.inf, MAXIMUM)])
def test_std_stays_between_floor_and_cap_for_any_raw_output(heteroscedastic, raw, std):
    one = head(heteroscedastic=heteroscedastic)
    torch.nn.init.constant_(one.scale_bias, raw)
    assert one(trunk()).std.flatten().tolist() == pytest.approx([std] * MEMBERS * ROWS * TARGETS, rel=1e-6)


def test_a_raw_output_of_zero_means_variance_one():
    one = head()
    torch.nn.init.zeros_(one.scale_weight)
    variance = one(trunk()).std.square()
    torch.testing.assert_close(variance, torch.full_like(variance, 1 + MINIMUM**2))


def test_the_std_of_a_fresh_head_is_near_one_on_unit_features():
    std = head()(trunk()).std
    assert 0.5 < std.mean().item() < 2


def test_a_heteroscedastic_std_follows_the_row_and_a_homoscedastic_one_does_not():
    assert head()(trunk()).std.std(dim=1).min() > 0
    constant = head(heteroscedastic=False)(trunk()).std
    assert constant.shape == (MEMBERS, ROWS, TARGETS)
    assert torch.equal(constant, constant[:, :1].expand_as(constant))


def test_a_homoscedastic_head_has_one_learned_std_for_each_member_and_target():
    one = head(heteroscedastic=False)
    with torch.no_grad():
        one.scale_bias.copy_(torch.arange(6.0).reshape(MEMBERS, 1, TARGETS))
    assert len(set(one(trunk()).std[:, 0].flatten().tolist())) == MEMBERS * TARGETS


@pytest.mark.parametrize("std", [0.02, 0.3, 1.0, 5.0, 9.9])
def test_a_constant_std_is_answered_as_it_was_set(std):
    one = head(heteroscedastic=False)
    one.set_constant_std(torch.full((MEMBERS, TARGETS), std))
    torch.testing.assert_close(one(trunk()).std, torch.full((MEMBERS, ROWS, TARGETS), std), rtol=1e-5, atol=0)


def test_a_large_constant_std_does_not_overflow_into_the_cap():
    one = head(heteroscedastic=False, maximum_std=1000.0)  # exp(50^2) is beyond float32, and float64
    one.set_constant_std(torch.full((MEMBERS, TARGETS), 50.0))
    torch.testing.assert_close(one(trunk()).std, torch.full((MEMBERS, ROWS, TARGETS), 50.0))


@pytest.mark.parametrize(("asked", "answered"), [(0.0, MINIMUM * math.sqrt(2)), (1e6, MAXIMUM)])
def test_a_constant_std_beyond_floor_or_cap_is_bounded(asked, answered):
    one = head(heteroscedastic=False)
    one.set_constant_std(torch.full((MEMBERS, TARGETS), asked))
    assert one(trunk()).std.max().item() == pytest.approx(answered, rel=1e-4)


def test_a_heteroscedastic_head_has_no_constant_std():
    with pytest.raises(ValueError, match="only a homoscedastic head"):
        head().set_constant_std(torch.ones(MEMBERS, TARGETS))


def test_detach_scale_cuts_the_gradient_of_std_at_the_trunk_and_changes_no_value():
    one, features = head(), trunk().requires_grad_()
    detached = one(features, detach_scale=True)
    assert all(torch.equal(a, b) for a, b in zip(detached[:2], one(features)[:2], strict=True))
    detached.std.sum().backward()
    assert features.grad is None
    assert one.scale_weight.grad.abs().min() > 0
    one(features).std.sum().backward()
    assert features.grad.abs().max() > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_only_student_t_learns_a_constant_one_for_each_member_and_target(name):
    constant = head(family=name)(trunk()).constant
    assert (constant is not None) == (name == "student_t")
    assert constant is None or constant.shape == (MEMBERS, 1, TARGETS)


@pytest.mark.parametrize("constant", [-1e30, 0.0, 8.0, 1e6])
def test_degrees_of_freedom_stay_above_two(constant):
    assert degrees_of_freedom(torch.tensor(constant)) >= SMALLEST_DEGREES_OF_FREEDOM > 2


def test_a_student_t_density_without_its_constant_is_refused():
    with pytest.raises(ValueError, match="build the head with family student_t"):
        FAMILIES["student_t"].log_density(torch.zeros(1), head()(trunk()))


def test_families_are_known_by_their_own_names():
    assert {name: family.name for name, family in FAMILIES.items()} == {n: n for n in ("gaussian", "laplace", "student_t")}
