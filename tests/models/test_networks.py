import math

import numpy as np
import pytest
import torch

from models.heads import FAMILIES
from models.networks import (
    ACTIVATIONS,
    SMOOTH_CLIP,
    Dropout,
    Features,
    FeatureStatistics,
    RawUnitsNetwork,
    StackedNetwork,
    _Waves,
)

DAY = 86400.0
# Columns: 0 numeric with missing values, 1 boolean, 2 categorical of three codes, 3 datetime with a daily cycle.
STATISTICS = FeatureStatistics(
    scaled=[0, 1, 3],
    centre=[10.0, 0.5, 1.7e9],
    scale=[2.0, 0.5, 1000.0],
    embedded=[0, 2],
    indicated=[0],
    one_hot=[2, 2, 2],
    one_hot_code=[0.0, 1.0, 2.0],
    cyclic=[3],
    cycle_seconds=[DAY],
)
ROW = [12.0, 1.0, 1.0, 1.7e9]


def features(*rows):
    return Features(STATISTICS)(torch.tensor(rows, dtype=torch.float64).reshape(-1, 4))


def rows(number):
    """Ordinary rows with some missing values: [number, 4]."""
    rng = np.random.default_rng(0)
    x = np.column_stack(
        [
            rng.normal(10, 2, number),
            rng.integers(2, size=number),
            rng.integers(3, size=number),
            1.7e9 + rng.uniform(-9e4, 9e4, number),
        ]
    )
    x[rng.random(x.shape) < 0.1] = np.nan
    return torch.from_numpy(x)


def network(*, members=3, seed=0, heteroscedastic=True, family="gaussian", **options):
    torch.manual_seed(seed)
    settings = {"width": 8, "depth": 2, "frequencies": 4, "embedding_outputs": 3} | options
    return StackedNetwork(
        statistics=STATISTICS, members=members, targets=2, family=FAMILIES[family], heteroscedastic=heteroscedastic, **settings
    ).eval()


def test_a_row_becomes_scaled_values_indicators_one_hot_and_cycles_in_this_order():
    angle = 2 * math.pi * (1.7e9 % DAY) / DAY
    squeezed = 1 / math.sqrt(1 + 1 / 9)
    expected = [squeezed, squeezed, 0.0, 0.0, 0.0, 1.0, 0.0, math.sin(angle), math.cos(angle)]
    assert features(ROW).dtype == torch.float32
    assert features(ROW)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert STATISTICS.width == len(expected)


def test_a_missing_row_is_finite_its_indicator_set_and_all_else_at_rest():
    assert features([math.nan] * 4)[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("code", [math.nan, 3.0, -1.0, 0.5, math.inf])
def test_a_missing_or_unknown_category_is_all_zeros(code):
    assert features([12.0, 1.0, code, 1.7e9])[0, 4:7].tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [1e300, math.inf, 1.7976931348623157e308])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_outlier_keeps_its_side_and_stays_finite(value, sign):
    answer = features([sign * value, 1.0, 1.0, sign * value])
    assert answer.isfinite().all()
    assert answer[0, [0, 2]].tolist() == pytest.approx([sign * SMOOTH_CLIP] * 2)
    for moment in network()(answer.unsqueeze(0))[:2]:
        assert moment.isfinite().all()


def test_the_smooth_clip_rises_and_stays_within_its_bound():
    values = torch.linspace(-1e4, 1e4, 2001, dtype=torch.float64)
    x = torch.tensor(ROW, dtype=torch.float64).repeat(2001, 1)
    x[:, 0] = values
    squeezed = Features(STATISTICS)(x)[:, 0]
    assert squeezed.diff().min() > -1e-6  # float32 rounding near the bound
    assert squeezed.abs().max() <= SMOOTH_CLIP + 1e-6


def test_timestamps_one_second_apart_stay_apart():
    # In float32 the numbers around 2e9 are 128 apart.
    late = [features([12.0, 1.0, 1.0, 2e9 + second])[0, 2].item() for second in range(3)]
    assert len({np.float32(2e9 + second) for second in range(3)}) == 1
    near = [features([12.0, 1.0, 1.0, 1.7e9 + second])[0, 2].item() for second in range(3)]
    assert near[0] < near[1] < near[2]
    assert late == pytest.approx([SMOOTH_CLIP] * 3)
    far = FeatureStatistics(
        scaled=[0],
        centre=[2e9],
        scale=[3600.0],
        embedded=[],
        indicated=[],
        one_hot=[],
        one_hot_code=[],
        cyclic=[],
        cycle_seconds=[],
    )
    answers = Features(far)(2e9 + torch.arange(5, dtype=torch.float64)[:, None]).flatten()
    torch.testing.assert_close(answers.diff(), torch.full((4,), 1 / 3600), rtol=1e-3, atol=0)


def test_a_cycle_repeats_after_its_period_and_lies_on_the_circle():
    hours = [features([12.0, 1.0, 1.0, 1.7e9 + hour * 3600])[0, 7:] for hour in range(0, 49, 6)]
    torch.testing.assert_close(hours[0], hours[4])
    torch.testing.assert_close(hours[4], hours[8])
    torch.testing.assert_close(hours[0], -hours[2])
    assert all(wave.square().sum().item() == pytest.approx(1, abs=1e-6) for wave in hours)


def test_a_cycle_works_before_1970():
    torch.testing.assert_close(features([12.0, 1.0, 1.0, -1.25 * DAY])[0, 7:], torch.tensor([-1.0, 0.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"frequencies": 0}, {"heteroscedastic": False}, {"family": "student_t"}])
def test_the_stacked_network_is_each_member_run_alone(options):
    stacked = network(**options)
    inputs = stacked.features(rows(20)).unsqueeze(0)
    together = stacked(inputs)
    weights = dict(stacked.named_parameters())
    for member in range(3):
        alone = network(members=1, seed=9, **options)
        with torch.no_grad():
            for name, parameter in alone.named_parameters():
                parameter.copy_(weights[name][member : member + 1])
        for moment, single in zip(together, alone(inputs), strict=True):
            assert (moment is None) == (single is None)
            if moment is not None:
                torch.testing.assert_close(moment[member : member + 1], single)


def test_rows_of_their_own_for_each_member_meet_only_that_member():
    stacked = network()
    own = stacked.features(rows(60)).reshape(3, 20, -1)
    together = stacked(own)
    for member in range(3):
        shared = stacked(own[member : member + 1])
        torch.testing.assert_close(together.mean[member], shared.mean[member])
        torch.testing.assert_close(together.std[member], shared.std[member])


def test_the_loss_of_one_member_moves_no_weight_of_another():
    stacked = network()
    prediction = stacked(stacked.features(rows(20)).unsqueeze(0))
    (prediction.mean[1].square() + prediction.std[1]).sum().backward()
    for name, parameter in stacked.named_parameters():
        assert parameter.grad[1].abs().max() > 0, name
        assert parameter.grad[[0, 2]].abs().max() == 0, name


def test_members_begin_with_weights_of_their_own():
    stacked = network()
    prediction = stacked(stacked.features(rows(20)).unsqueeze(0))
    assert prediction.mean.std(dim=0).min() > 0


def test_rows_do_not_see_each_other():
    stacked = network()
    inputs = stacked.features(rows(20)).unsqueeze(0)
    for moment, first in zip(stacked(inputs)[:2], stacked(inputs[:, :1])[:2], strict=True):
        torch.testing.assert_close(moment[:, :1], first)


@pytest.mark.parametrize("frequencies", [0, 4])
def test_no_rows_give_no_predictions(frequencies):
    stacked = network(frequencies=frequencies)
    prediction = stacked(stacked.features(torch.empty(0, 4, dtype=torch.float64)).unsqueeze(0))
    assert prediction.mean.shape == prediction.std.shape == (3, 0, 2)


def test_a_seed_makes_one_network():
    first, again, other = (network(seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.mean_weight"], other["head.mean_weight"])


def test_without_embedded_columns_or_frequencies_there_is_no_embedding():
    assert network(frequencies=0).embedding is None
    assert network().embedding is not None
    assert network().layers[0].weight.shape == (3, STATISTICS.width + 2 * 3, 8)


def test_an_embedding_depends_on_each_of_its_features_alone():
    embedding = network().embedding
    z = torch.zeros(1, 2, 1)
    moved = torch.tensor([[[0.0], [0.7]]])
    before, after = embedding(z), embedding(moved)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3:], after[:, 3:])


def test_the_waves_have_the_gradient_of_sine_and_cosine():
    angle = torch.linspace(-7, 7, 30, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(_Waves.apply, angle)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_gives_finite_predictions_of_its_own(activation):
    stacked, silu = network(activation=activation), network()
    inputs = stacked.features(rows(20)).unsqueeze(0)
    mean = stacked(inputs).mean
    assert mean.isfinite().all()
    assert torch.equal(mean, silu(inputs).mean) == (activation == "silu")


def test_dropout_acts_in_training_and_never_in_evaluation():
    stacked = network(dropout=0.5)
    inputs = stacked.features(rows(20)).unsqueeze(0)
    assert torch.equal(stacked(inputs).mean, stacked(inputs).mean)
    stacked.train()
    assert not torch.equal(stacked(inputs).mean, stacked(inputs).mean)


def test_floor_and_cap_reach_the_head():
    stacked = network(minimum_std=0.9, maximum_std=0.95)
    std = stacked(stacked.features(rows(200)).unsqueeze(0)).std
    assert std.min() >= 0.9 - 1e-6
    assert std.max() <= 0.95 + 1e-6


def test_raw_units_are_centre_and_scale_of_the_standardised_moments_in_float64():
    stacked, x = network(), rows(20)
    raw = RawUnitsNetwork(stacked, centre=[2e9, -1.0], scale=[3.0, 0.5])
    location, scale = raw(x)
    standardised = stacked(stacked.features(x).unsqueeze(0))
    assert location.dtype == scale.dtype == torch.float64
    ratio = torch.tensor([3.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(location - torch.tensor([2e9, -1.0]), standardised.mean.double() * ratio, rtol=0, atol=1e-6)
    torch.testing.assert_close(scale, standardised.std.double() * ratio)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(share):
    torch.manual_seed(0)
    dropout = Dropout(share)
    values = torch.full((7, 1001, 13), 2.0, requires_grad=True)
    dropped = dropout(values)
    assert (dropped == 0).double().mean().item() == pytest.approx(share, abs=0.004)
    assert dropped.mean().item() == pytest.approx(2, rel=0.02)
    assert len(dropped.unique()) == 2
    dropped.sum().backward()
    assert torch.equal(values.grad == 0, dropped == 0)
    assert torch.equal(dropout.eval()(values), values)


def test_the_largest_dropout_keeps_a_value_in_256():
    values = Dropout(0.999)(torch.ones(100_000))
    assert values.unique().tolist() == [0, 256]
