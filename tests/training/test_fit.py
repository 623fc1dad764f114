import math
import weakref

import numpy as np
import pytest
import torch
from scipy import stats

from models.distributions import Gaussian
from models.manifest import Column
from training import fit as fit_module
from training.config import NetworkOptions
from training.datasets import dataset
from training.errors import FitError
from training.fit import automatic_batch_rows, automatic_epochs, fit, resolved_device
from training.preprocess import feature_statistics

SMALL = NetworkOptions(width=16, depth=1, frequencies=4, embedding_outputs=2, epochs=6, batch_rows=32, dropout=0.0)
COLUMNS = [Column(name="a", kind="numeric"), Column(name="b", kind="numeric")]


@pytest.fixture(autouse=True)
def one_thread():
    """The networks here are small: on a busy machine, threads would wait for each other more than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def table(rows=240, *, targets=1, seed=0):
    """Two features and targets that depend on them, with noise of std 0.5: x [rows, 2], y [rows, targets]."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    y = np.column_stack([50 * t + (t + 1) * (x[:, 0] - x[:, 1] ** 2) for t in range(targets)])
    return x, y + 0.5 * rng.normal(size=y.shape)


def lists(*sizes, rows=200, seed=1):
    """A random choice of rows for each member, of these sizes."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(rows, size, replace=False)) for size in sizes]


def split(rows=240, *, members=3, seed=1):
    """Fit and stop rows of members that each stop on other rows: every row is a fit row of some member."""
    parts = np.array_split(np.random.default_rng(seed).permutation(rows), 6)
    return [np.sort(np.concatenate([*parts[:m], *parts[m + 1 :]])) for m in range(members)], [parts[m] for m in range(members)]


def fitted(x, y, fit_rows, stop_rows, *, weights=None, on_epoch=None, **options):
    seen = np.unique(np.concatenate(fit_rows))
    return fit(
        x,
        y,
        statistics=feature_statistics(x[seen], COLUMNS[: x.shape[1]]),
        fit_rows=fit_rows,
        stop_rows=stop_rows,
        options=SMALL.model_copy(update=options),
        weights=weights,
        on_epoch=on_epoch,
    )


def predictions(result, x):
    """Mean and std in units of the standardised target, [members, n, targets] float64."""
    with torch.no_grad():
        prediction = result.network(result.network.features(torch.from_numpy(x)).unsqueeze(0))
    return prediction.mean.double().numpy(), prediction.std.double().numpy()


def standardised(result, y):
    return (y - result.centre) / result.scale


def weights_of(result):
    return dict(result.network.state_dict())


def assert_same(one, other):
    assert one.history[-1].nll == other.history[-1].nll
    for name, value in weights_of(one).items():
        assert torch.equal(value, weights_of(other)[name]), name


def test_a_seed_gives_the_same_weights_again_and_another_seed_gives_others():
    x, y = table()
    once, again, other = (fitted(x, y, *split(), dropout=0.1, seed=seed) for seed in (3, 3, 4))
    assert_same(once, again)
    assert not torch.equal(once.network.head.mean_weight, other.network.head.mean_weight)


@pytest.mark.parametrize("loss", ["beta_nll", "mse", "student_t"])
def test_rows_that_nobody_names_do_not_matter(loss):
    x, y = table(rows=300)
    weights = np.random.default_rng(0).uniform(0.5, 2, 300)
    clean = fitted(x, y, *split(), weights=weights, loss=loss)
    for strange in (math.nan, 1e9):
        x[240:], y[240:], weights[240:] = strange, strange, strange
        assert_same(clean, fitted(x, y, *split(), weights=weights, loss=loss))


def test_centre_and_scale_are_those_of_the_fit_rows():
    x, y = table(targets=2)
    fit_rows, stop_rows = lists(80, 90), [np.arange(200, 240)] * 2
    y[200:] += 1000
    seen = np.unique(np.concatenate(fit_rows))
    result = fitted(x, y, fit_rows, stop_rows)
    assert result.centre == pytest.approx(y[seen].mean(axis=0))
    assert result.scale == pytest.approx(y[seen].std(axis=0))
    weights = np.random.default_rng(0).uniform(size=240)
    result = fitted(x, y, fit_rows, stop_rows, weights=weights)
    assert result.centre == pytest.approx(np.average(y[seen], axis=0, weights=weights[seen]))


def test_every_member_is_kept_at_its_own_best_epoch():
    x, y = table()
    fit_rows, stop_rows = (
        [np.arange(40), np.arange(20, 60), np.arange(50)],
        [np.arange(100, 130), np.arange(90, 131), np.arange(200, 237)],
    )
    epochs = []
    result = fitted(x, y, fit_rows, stop_rows, epochs=60, patience=60, learning_rate=0.02, on_epoch=epochs.append)
    mean, std = predictions(result, x)
    own = [
        Gaussian(mean[member][rows], std[member][rows]).crps(standardised(result, y)[rows]).mean()
        for member, rows in enumerate(stop_rows)
    ]
    last = result.history[-1]
    assert np.mean(own) == pytest.approx(last.best_crps, abs=1e-5)
    assert last.crps > last.best_crps  # the last epoch is not the best
    assert min(epoch.crps for epoch in result.history) > last.best_crps  # nor is any one epoch best for all
    assert epochs == result.history


def test_progress_counts_epochs_and_shows_held_out_nll_rmse_and_crps():
    x, y = table(targets=2)
    stop_rows = [np.arange(200, 240), np.arange(210, 240)]
    # With one epoch, the network that is returned is the one that the epoch reported.
    result = fitted(x, y, lists(100, 100), stop_rows, epochs=1)
    (epoch,) = result.history
    mean, std = predictions(result, x)
    z = standardised(result, y)
    nll = [-stats.norm.logpdf(z[rows], mean[m][rows], std[m][rows]).sum(axis=1).mean() for m, rows in enumerate(stop_rows)]
    rmse = [np.sqrt(np.mean((z[rows] - mean[m][rows]) ** 2)) for m, rows in enumerate(stop_rows)]
    assert (epoch.number, epoch.epochs, epoch.seconds_left) == (1, 1, 0.0)
    crps = [Gaussian(mean[m][rows], std[m][rows]).crps(z[rows]).mean() for m, rows in enumerate(stop_rows)]
    assert epoch.nll == pytest.approx(np.mean(nll), abs=1e-5)
    assert epoch.crps == epoch.best_crps == pytest.approx(np.mean(crps), abs=1e-5)
    assert epoch.rmse == pytest.approx(np.mean(rmse), abs=1e-5)


def test_the_fit_stops_after_so_many_epochs_without_gain():
    x, y = table()
    result = fitted(x, y, lists(30, 30), [np.arange(200, 240)] * 2, epochs=300, patience=4, learning_rate=0.03)
    best = [epoch.best_crps for epoch in result.history]
    assert len(best) < 300
    assert best[-1] > 0.999 * best[-5]
    assert all(best[i + 4] < best[i] for i in range(len(best) - 5))


def test_a_part_answers_as_its_members_do_and_leaves_the_whole_alone():
    x, y = table()
    whole = fitted(x, y, lists(50, 60, 70), [np.arange(200, 240)] * 3)
    part = whole.part(slice(1, 3))
    for one, other in zip(predictions(part, x), predictions(whole, x), strict=True):
        np.testing.assert_allclose(one, other[1:], rtol=1e-5, atol=1e-6)
    assert part.parameters * 3 == whole.parameters * 2
    assert len(predictions(whole, x)[0]) == 3


@pytest.mark.parametrize("loss", ["beta_nll", "mse"])
def test_rows_without_weight_do_not_matter(loss):
    x, y = table()
    weights = np.ones(240)
    weights[::3] = 0
    clean = fitted(x, y, *split(), weights=weights, loss=loss)
    y[::3] = 1000
    assert_same(clean, fitted(x, y, *split(), weights=weights, loss=loss))


@pytest.mark.parametrize("loss", ["nll", "mse"])
def test_a_weight_counts_as_so_many_repetitions_of_the_row(loss):
    x, y = table(rows=120)
    weights = np.where(np.arange(120) % 2, 3, 1)
    place = np.repeat(np.arange(120), weights)
    options = {
        "batch_rows": 10_000,
        "epochs": 40,
        "patience": 40,
        "learning_rate": 0.01,
        "loss": loss,
    }  # one batch holds all rows
    statistics = feature_statistics(x, COLUMNS)

    def run(x, y, use, weights):
        rows = {"fit_rows": [np.flatnonzero(use < 80)] * 2, "stop_rows": [np.flatnonzero(use >= 80)] * 2}
        return fit(x, y, statistics=statistics, **rows, options=SMALL.model_copy(update=options), weights=weights)

    weighted, repeated = run(x, y, np.arange(120), weights.astype(float)), run(x[place], y[place], place, None)
    plain = run(x, y, np.arange(120), None)
    assert weighted.centre == pytest.approx(repeated.centre)
    assert weighted.history[-1].best_crps == pytest.approx(repeated.history[-1].best_crps, abs=1e-4)
    for one, other in zip(predictions(weighted, x), predictions(repeated, x), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)
    assert np.abs(predictions(plain, x)[0] - predictions(repeated, x)[0]).max() > 0.02


def test_weights_have_no_unit():
    x, y = table()
    weights = np.random.default_rng(0).uniform(0.1, 3, 240)
    one, other = (fitted(x, y, *split(), weights=weights * unit) for unit in (1, 1024))
    np.testing.assert_allclose(predictions(one, x)[0], predictions(other, x)[0], atol=1e-5)


def test_a_member_does_not_depend_on_the_rows_of_the_others():
    x, y = table()
    fit_rows, stop_rows = split()
    before = fitted(x, y, fit_rows, stop_rows, patience=6)
    # Other rows for member 1 only; the others still hold every row, so centre and scale stay.
    fit_rows[1], stop_rows[1] = fit_rows[1][::-1][: len(fit_rows[1])] // 2, stop_rows[1] // 3
    after = fitted(x, y, fit_rows, stop_rows, patience=6)
    assert (before.centre, before.scale) == (after.centre, after.scale)
    for one, other in zip(predictions(before, x), predictions(after, x), strict=True):
        assert np.array_equal(one[[0, 2]], other[[0, 2]])
        assert not np.array_equal(one[1], other[1])


def test_members_of_one_list_of_rows_differ_by_their_weights_and_batches():
    x, y = table()
    mean, _ = predictions(fitted(x, y, [np.arange(200)] * 3, [np.arange(200, 240)] * 3), x)
    assert np.std(mean, axis=0).min() > 0


@pytest.fixture(scope="module")
def sine():
    frame = dataset("sine", rows=2500, seed=1)
    return np.array(frame["x"])[:, None], np.array(frame["y"])[:, None]


@pytest.mark.parametrize("loss", ["beta_nll", "nll", "moment_matching"])
def test_noise_that_grows_with_x_is_learned(sine, loss):
    x, y = sine
    rows = np.arange(2000)
    options = {"loss": loss, "width": 32, "depth": 2, "batch_rows": 128, "epochs": 40, "learning_rate": 0.01}
    result = fitted(x, y, [rows, rows], [np.arange(2000, 2200)] * 2, **options)
    mean, std = (value.mean(axis=0)[2200:, 0] * result.scale[0] for value in predictions(result, x))
    noise = 0.15 + 0.25 * np.abs(x[2200:, 0])
    scale = math.sqrt(2 / math.pi) if loss == "moment_matching" else 1.0  # it learns E|e|, not the std
    assert np.corrcoef(std, noise)[0, 1] > 0.97
    assert np.mean(np.abs(std / (scale * noise) - 1)) < 0.12
    signal = np.sin(1.3 * x[2200:, 0])
    assert np.sqrt(np.mean((mean + result.centre[0] - signal) ** 2)) < 0.2 * np.sqrt(np.mean(noise**2))


def test_the_std_of_mse_is_the_likeliest_one_of_each_members_own_fit_rows():
    x, y = table(targets=2)
    fit_rows = lists(60, 110, 150)  # of unequal length, so that the shorter ones begin again inside
    result = fitted(x, y, fit_rows, [np.arange(200, 240)] * 3, loss="mse")
    mean, std = predictions(result, x)
    for member, rows in enumerate(fit_rows):
        likeliest = np.sqrt(np.mean((standardised(result, y)[rows] - mean[member][rows]) ** 2, axis=0))
        np.testing.assert_allclose(std[member], np.tile(likeliest, (240, 1)), rtol=1e-4)


def test_the_weights_of_rows_count_in_the_std_of_mse():
    x, y = table()
    weights = np.random.default_rng(0).uniform(0, 5, 240)
    result = fitted(x, y, [np.arange(200)], [np.arange(200, 240)], weights=weights, loss="mse")
    mean, std = predictions(result, x)
    squared = (standardised(result, y) - mean[0])[:200] ** 2
    assert std[0, 0, 0] == pytest.approx(math.sqrt(np.average(squared[:, 0], weights=weights[:200])), rel=1e-4)


def test_homoscedastic_learns_one_std_a_member():
    x, y = table(rows=800)
    result = fitted(x, y, *split(rows=800), loss="homoscedastic", epochs=30, learning_rate=0.02)
    mean, std = predictions(result, x)
    assert np.ptp(std, axis=1).max() == 0
    residual = np.sqrt(np.mean((standardised(result, y) - mean) ** 2, axis=1))
    np.testing.assert_allclose(std[:, 0], residual, rtol=0.15)


def test_student_t_tells_heavy_tails_from_normal_ones():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 2))
    y = np.column_stack([x[:, 0] + rng.standard_t(2.5, 1200), x[:, 0] + rng.normal(size=1200)])
    options = {
        "loss": "student_t",
        "epochs": 16,
        "learning_rate": 4e-3,
    }  # the default rate: df has a way of several units to go
    heavy, normal = fitted(x, y, [np.arange(1000)] * 2, [np.arange(1000, 1200)] * 2, **options).degrees_of_freedom
    assert 2.1 < heavy < 4
    assert normal > 6


@pytest.mark.parametrize("loss", ["beta_nll", "mse", "laplace"])
def test_other_losses_have_no_degrees_of_freedom(loss):
    x, y = table()
    assert fitted(x, y, *split(), loss=loss, epochs=1).degrees_of_freedom is None


def test_a_huge_offset_of_a_target_costs_no_digits():
    x, y = table()
    near, far = fitted(x, y, *split()), fitted(x, y + 2e9, *split())
    np.testing.assert_allclose(predictions(near, x)[0], predictions(far, x)[0], atol=1e-3)


def test_parameters_are_those_of_all_members():
    x, y = table()
    one, three = (fitted(x, y, *split(members=members), epochs=1).parameters for members in (1, 3))
    assert three == 3 * one


@pytest.mark.parametrize("loss", ["nll", "mse"])
def test_a_loss_that_is_not_finite_stops_the_fit_with_advice(loss):
    x, y = table()
    with pytest.raises(FitError, match=r"in epoch \d: nothing was saved. Try a lower --learning-rate \(now 1e\+30\)"):
        fitted(x, y, *split(), learning_rate=1e30, loss=loss)


def test_a_target_with_one_value_in_all_fit_rows_is_refused():
    x, y = table(targets=2)
    y[:200, 1] = 0.1  # the mean of 200 of them is not 0.1 to the last bit
    with pytest.raises(FitError, match=r"target 2 of 2 is 0.1 in all 200 fit rows, so there is nothing to learn"):
        fitted(x, y, [np.arange(200)], [np.arange(200, 240)])


def test_a_target_whose_variance_has_no_float64_is_refused():
    x, y = table()
    with pytest.raises(FitError, match=r"a target varies by .*e-169, whose square has no float64: give it in a smaller unit"):
        fitted(x, y * [1.0, 1e-170], *split())


@pytest.mark.parametrize(("rows", "use"), [(slice(50), "fit"), (slice(200, 240), "early-stopping")])
def test_a_member_whose_rows_have_no_weight_is_refused(rows, use):
    x, y = table()
    weights = np.ones(240)
    weights[rows] = 0
    with pytest.raises(FitError, match=f"all {use} rows of member 1 have weight 0"):
        fitted(x, y, [np.arange(200), np.arange(50)], [np.arange(190, 200), np.arange(200, 240)], weights=weights)


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    x, y = table()
    with pytest.raises(FitError, match="device cuda was asked for, but PyTorch finds no CUDA GPU here: use --device cpu"):
        fitted(x, y, *split(), device="cuda")
    assert resolved_device("auto") == torch.device("cpu")


def test_auto_takes_a_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolved_device(name).type for name in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]


@pytest.mark.parametrize("loss", ["beta_nll", "mse"])
def test_evaluation_in_parts_gives_the_same_fit(monkeypatch, loss):
    x, y = table()
    rows = lists(60, 110, 150), lists(40, 27, 33)
    # An epoch of mse sets its std from the first part alone, which early stopping then sees; one epoch has nothing to choose.
    epochs = 1 if loss == "mse" else 6
    whole = fitted(x, y, *rows, loss=loss, epochs=epochs)
    monkeypatch.setattr(fit_module, "_EVALUATION_ROWS", 7)
    parts = fitted(x, y, *rows, loss=loss, epochs=epochs)
    for one, other in zip(predictions(whole, x), predictions(parts, x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_evaluation_holds_one_part_of_the_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(fit_module, "_EVALUATION_ROWS", 7)
    forward, alive, most = fit_module.StackedNetwork.forward, [], 0

    def counted(self, features, **options):
        nonlocal most
        if not self.training:
            alive.append(weakref.ref(features))
            most = max(most, sum(reference() is not None for reference in alive))
        return forward(self, features, **options)

    monkeypatch.setattr(fit_module.StackedNetwork, "forward", counted)
    x, y = table()
    fitted(x, y, *split(), epochs=2)
    assert len(alive) >= 12
    assert most <= 2  # the part at work, and the one before it while the new one is cut


def test_batches_grow_with_the_table_and_epochs_shrink():
    assert [automatic_batch_rows(rows) for rows in (10, 499, 500, 5000, 30_000, 100_000, 10**6)] == [
        *(32, 32, 64, 128, 256, 512, 1024),
    ]
    assert [automatic_epochs(batches) for batches in (1, 10, 30, 1000)] == [400, 300, 100, 12]
    assert "about 3 000 updates, 12 to 400 epochs" in str(NetworkOptions.model_fields["epochs"].description)
