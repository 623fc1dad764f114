import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from models.artifact import Run, open_model
from models.manifest import Column, Manifest, Target
from models.transforms import TRANSFORMS
from tests.model_files import MIXED, NUMERIC, write_formula_model
from training import curves
from training.evaluate import Predictions, cross_predicted, evaluation, predicted
from training.figures import draw_pit
from training.fit import Epoch
from training.report import MOST_POINTS, report_page

HISTORY = [
    Epoch(number=n, epochs=20, nll=1 / n, rmse=0.5 + 1 / n, crps=2 / n, best_crps=2 / n, seconds=n, seconds_left=20.0 - n)
    for n in range(1, 21)
]
HOSTILE = "<script src=https://evil.example/x.js>alert('$x_1$')</script>"


class Page(HTMLParser):
    """What a browser would meet: elements with attributes, and the text outside of <style>."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text()
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""

    @property
    def pictures(self) -> list[str]:
        sources = [attributes["src"] for tag, attributes in self.elements if tag == "img"]
        return [base64.b64decode(source.removeprefix("data:image/svg+xml;base64,")).decode() for source in sources]

    @property
    def alts(self) -> list[str]:
        return [attributes["alt"] for tag, attributes in self.elements if tag == "img"]


def rows_of(manifest: Manifest, run: Run, *, rows: int = 200, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Rows within the training range, and targets drawn from what the model predicts, with `noise` times its std."""
    random = np.random.default_rng(3)
    x = np.empty((rows, len(manifest.columns)))
    for index, column in enumerate(manifest.columns):
        if column.kind == "categorical":
            x[:, index] = random.integers(len(column.categories), size=rows)
        elif column.kind == "boolean":
            x[:, index] = random.integers(2, size=rows)
        else:
            x[:, index] = random.uniform(column.minimum, column.maximum, rows)
        x[random.uniform(size=rows) < column.missing, index] = np.nan
    answers = run(x, np.array([0.5]))
    y = answers["location"] + noise * answers["scale"] * random.normal(size=answers["scale"].shape)
    return x, np.stack([TRANSFORMS[t.transform].inverse(y[:, i]) for i, t in enumerate(manifest.targets)], axis=1)


def report(
    folder: Path,
    *,
    rows: int = 200,
    evaluated: bool = True,
    source: str = "test",
    wider: float = 3.0,
    noise: float = 1.0,
    history=HISTORY,
    default_coverage: float = 0.9,
    **model,
) -> tuple[Page, Manifest, Predictions]:
    """The page of a formula model whose baseline is itself with a std `wider` times as large."""
    write_formula_model(folder / "model.onnx", **model)
    run, manifest = open_model(folder / "model.onnx", threads=1)
    manifest = manifest.model_copy(update={"default_coverage": default_coverage})
    x, y = rows_of(manifest, run, rows=rows, noise=noise)
    predictions = predicted(run, x, y, manifest)
    if source != "test":
        predictions = cross_predicted((predictions.location, predictions.scale), x, y, manifest)
    if evaluated:
        wide = Predictions(**{**vars(predictions), "scale": predictions.scale * wider})
        scores = evaluation(
            predictions,
            targets=manifest.targets,
            network=manifest.network,
            baselines={"homoscedastic": (wide, manifest.network)},
            source=source,
        )
        manifest = manifest.model_copy(update={"evaluation": scores})
    page = report_page(manifest, predictions=predictions, x=x, run=run, history=history)
    (folder / "model.html").write_bytes(page)
    return Page(folder / "model.html"), manifest, predictions


def untested(folder: Path, **model) -> Page:
    """The page of a formula model that was not evaluated."""
    write_formula_model(folder / "model.onnx", **model)
    run, manifest = open_model(folder / "model.onnx", threads=1)
    x = np.empty((0, len(manifest.columns)))
    (folder / "model.html").write_bytes(report_page(manifest, predictions=None, x=x, run=run, history=HISTORY))
    return Page(folder / "model.html")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Page, Manifest, Predictions]:
    """The report of the formula model with two numeric features, for the tests that only read it."""
    return report(tmp_path_factory.mktemp("plain"))


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(tmp_path):
    page, *_ = report(tmp_path)
    assert page.open == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base"}
    for _, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on") or name in ("href", "srcset", "action")}
        assert attributes.get("src", "data:").startswith("data:image/svg+xml;base64,") or "src" not in attributes
    assert "url(" not in page.source
    assert "@import" not in page.source
    for picture in page.pictures:
        assert "<script" not in picture
        assert not re.search(r'(href|src)="(?!#)', picture)
        assert not re.search(r"url\((?!#)", picture)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.html"}
    assert len(page.source) < 1_000_000


def test_every_picture_says_what_it_shows_and_adapts_to_dark_mode(plain):
    page, *_ = plain
    assert len(page.pictures) == 6  # five of the target, one of the training
    assert all(len(alt) > 40 for alt in page.alts)
    for picture in page.pictures:
        assert "prefers-color-scheme:dark" in picture
        assert "#0072b2" not in picture.split("</style>", 1)[1].lower()  # every colour comes from the style block


def test_the_page_holds_the_scores_of_model_and_baseline(plain):
    page, manifest, _ = plain
    scores = manifest.evaluation.targets["y"]
    for value in (scores.nll, scores.crps, scores.rmse, scores.mae, scores.r2):
        assert f"{value:#.4g}" in page.text
    baseline = manifest.evaluation.baselines["homoscedastic"]["y"]
    assert f"{baseline.nll:#.4g}" in page.text
    at_90 = scores.intervals[2]
    assert f"{at_90.observed_coverage:.3f} ± {np.sqrt(0.9 * 0.1 / 200):.3f}" in page.text
    assert f"{at_90.mean_width:#.4g}" in page.text
    assert f"{at_90.interval_score:#.4g}" in page.text


def test_a_baseline_that_wins_is_said_to_win(tmp_path):
    page, *_ = report(tmp_path, noise=3.0)
    assert "The homoscedastic baseline is better in NLL and CRPS, and this model is better in nothing." in page.text
    assert "do not read much into which rows are uncertain" in page.text


def test_a_baseline_that_loses_is_said_to_lose(plain):
    page, *_ = plain
    assert "This model is better than the homoscedastic baseline in NLL and CRPS." in page.text


@pytest.mark.parametrize("better_in", ["nll", "crps", "rmse"])
def test_a_baseline_that_wins_in_one_score_is_no_warning(tmp_path, better_in):
    write_formula_model(tmp_path / "model.onnx")
    run, manifest = open_model(tmp_path / "model.onnx", threads=1)
    x, y = rows_of(manifest, run)
    predictions, network = predicted(run, x, y, manifest), manifest.network
    scores = evaluation(predictions, targets=manifest.targets, network=network, baselines={}, source="test")
    winner = scores.targets["y"].model_copy(update={better_in: getattr(scores.targets["y"], better_in) - 1})
    scores = scores.model_copy(update={"baselines": {"homoscedastic": {"y": winner}}})
    page = report_page(manifest.model_copy(update={"evaluation": scores}), predictions=None, x=x[:0], run=run, history=[])
    assert f"The homoscedastic baseline is better in {better_in.upper()}, and this model is better in nothing." in page.decode()
    assert "do not read much into" not in page.decode()


@pytest.mark.parametrize(("factor", "warned"), [(1.0, False), (0.51, False), (0.3, True), (2.5, True)])
def test_a_scale_factor_far_from_1_is_a_warning(tmp_path, factor, warned):
    page = untested(tmp_path, scale_factor=factor)
    assert ("is far from 1" in page.text) == warned


def test_the_least_and_the_largest_scale_factor_of_a_group_are_told(tmp_path):
    page = untested(tmp_path, columns=MIXED, group_column="colour", group_factors=(0.9, 4.7, None))
    assert "times 1 (the scale factor; by colour 0.9 (blue) to 4.7 (green)), which" in page.text


def test_the_guarantee_comes_with_the_range_of_coverage_that_the_calibration_rows_leave(plain):
    page, *_ = plain
    low, high = stats.beta.ppf([0.05, 0.95], 90, 10)
    assert "for tests" in page.text
    assert f"{low:.3f} to {high:.3f}" in page.text


@pytest.mark.parametrize("dependence", ["group", "time"])
def test_rows_that_depend_on_each_other_leave_no_range_of_coverage(tmp_path, dependence):
    write_formula_model(tmp_path / "model.onnx")
    run, manifest = open_model(tmp_path / "model.onnx", threads=1)
    calibration = manifest.calibration.model_copy(update={"dependence": dependence})
    dependent = manifest.model_copy(update={"calibration": calibration})
    pages = [report_page(one, predictions=None, x=np.empty((0, 2)), run=run, history=[]) for one in (manifest, dependent)]
    low, high = stats.beta.ppf([0.05, 0.95], 90, 10)
    assert [f"{low:.3f} to {high:.3f}" in page.decode() for page in pages] == [True, False]


def test_groups_are_listed_with_what_their_rows_support(tmp_path):
    page, *_ = report(tmp_path, columns=MIXED, group_column="open", float64=True)
    assert "open = false" in page.text
    assert "open = true" in page.text
    low, high = stats.beta.ppf([0.05, 0.95], 18, 2)  # 19 rows of "false": rank ceil(20 * 0.9)
    assert f"{low:.3f} to {high:.3f}" in page.text
    low, high = stats.beta.ppf([0.05, 0.95], 90, 10)  # of all 99 rows, which make no known value's intervals
    assert f"{low:.3f} to {high:.3f}" not in page.text


def test_the_rows_that_a_coverage_is_observed_in_are_those_with_such_an_interval(tmp_path):
    options = {"columns": MIXED, "group_column": "colour", "interval": "equal_tailed"}
    page, manifest, _ = report(tmp_path, **options, default_coverage=0.95)
    at_95 = manifest.evaluation.targets["y"].intervals[-1]
    assert at_95.coverage == 0.95
    assert 0 < at_95.rows < 200, "with 19 and 29 calibration rows an interval of 0.95 is infinite"
    held = f"in {100 * at_95.observed_coverage:.4g} % of the {at_95.rows} whose calibration group has enough rows for it"
    assert held in page.text
    assert f"{at_95.observed_coverage:.3f} ± {np.sqrt(0.95 * 0.05 / at_95.rows):.3f}" in page.text
    page, *_ = report(tmp_path, **options)
    assert "whose calibration group" not in page.text


def test_names_of_the_table_are_escaped_and_shown_as_they_are(tmp_path):
    columns = (NUMERIC[0].model_copy(update={"name": HOSTILE, "unit": "<b>", "description": "a & b"}), NUMERIC[1])
    target = Target(name="<i>y</i>\x01\n", minimum=-50.0, maximum=50.0, unit='"m"', description="<u>")
    page, *_ = report(tmp_path, columns=columns, targets=(target,))
    assert {"script", "b", "i", "u"}.isdisjoint(tag for tag, _ in page.elements)
    assert HOSTILE in page.text
    assert "<i>y</i>" in page.text
    assert any("<i>y</i>" in alt for alt in page.alts)
    for picture in page.pictures:
        assert "<i>" not in picture
    assert any("&lt;i&gt;y&lt;/i&gt;" in picture for picture in page.pictures)


def test_letters_that_the_font_lacks_reach_the_page(tmp_path):
    page, *_ = report(tmp_path, columns=(NUMERIC[0].model_copy(update={"name": "温度"}),))
    assert "温度" in page.text
    assert any("温度" in picture for picture in page.pictures)


def test_several_targets_have_a_section_each(tmp_path):
    targets = (
        Target(name="first", minimum=-50.0, maximum=50.0),
        Target(name="second", minimum=0.1, maximum=9.0, transform="log"),
    )
    page, manifest, _ = report(tmp_path, targets=targets)
    assert len(page.pictures) == 11
    for name in ("first", "second"):
        assert f"<h2>{name}</h2>" in page.source
        assert f"{manifest.evaluation.targets[name].crps:#.4g}" in page.text


def test_categories_and_times_are_written_as_people_write_them(tmp_path):
    page, *_ = report(tmp_path, columns=MIXED, float64=True)
    assert "blue, green, red" in page.text
    assert "2020-09-13 12:26:40 to 2023-11-14 22:13:20" in page.text
    assert "10 %" in page.text
    assert "false, true" in page.text


@pytest.mark.parametrize("kind", ["numeric", "boolean", "categorical", "datetime"])
def test_an_only_feature_of_any_kind_is_drawn_with_the_rows(tmp_path, kind):
    column = next(column for column in MIXED if column.kind == kind)
    page, *_ = report(tmp_path, columns=(column.model_copy(update={"missing": 0.1}),), float64=True)
    alt = page.alts[4]
    assert alt.startswith("Mean and 90 % prediction interval of y along")
    assert "test rows" in page.pictures[4]
    assert "dotted lines" in page.text
    assert "while the others stand still" not in page.text


@pytest.mark.parametrize("ends", [("0001-01-01", "2024-01-01"), ("2024-01-01", "9999-12-31")])
def test_an_only_feature_of_dates_that_stand_for_never_is_drawn(tmp_path, ends):
    first, last = (float(np.datetime64(end, "s").astype(np.int64)) for end in ends)
    column = Column(name="until", kind="datetime", minimum=first, maximum=last)
    page, *_ = report(tmp_path, columns=(column,), float64=True)
    assert "along until" in page.alts[4]


def test_a_value_that_may_be_a_mistake_is_told(tmp_path):
    page, *_ = report(tmp_path, noise=100.0)
    assert "One value is far off: y is " in page.text
    page, *_ = report(tmp_path)
    assert "One value is far off" not in page.text


def test_with_several_features_the_cut_is_labelled_as_one(plain):
    page, *_ = plain
    assert "Of all features, b moves the predicted mean most while the others stand still" in page.text


@pytest.mark.parametrize("source", ["out_of_fold", "calibration"])
def test_calibration_rows_are_told_from_test_rows_in_every_text(tmp_path, source):
    page, *_ = report(tmp_path, source=source)
    everything = " ".join([page.text, *page.alts, *page.pictures])
    for text in (
        {
            "out_of_fold": "On 200 out-of-fold rows, each predicted by networks that had not seen it, the 90 % prediction",
            "calibration": "On 200 calibration rows, each with an interval made from the others, the 90 % prediction",
        }[source],
        "the coverage of these rows all together is no evidence",
        f"of 200 {source.replace('_', '-')} rows with 90 %",
    ):
        assert text in everything
    assert page.text.count("fitted to fewer rows than those that are served") == (source == "out_of_fold")
    assert "test row" not in everything
    assert "±" not in page.text
    assert "calibration error" not in page.text
    assert "PIT histogram" not in everything
    assert len(page.pictures) == 5  # predictions, coverage by std, errors, sweep, training


def test_the_intervals_drawn_are_those_of_the_predictions(tmp_path):
    page, _, predictions = report(tmp_path, source="out_of_fold")
    index = predictions.coverages.index(0.9)
    inside = (predictions.lower[:, 0, index] <= predictions.y[:, 0]) & (predictions.y[:, 0] <= predictions.upper[:, 0, index])
    assert f"{inside.sum()} of which hold the observed value" in page.alts[0]
    few, *_ = report(tmp_path, source="out_of_fold", rows=9)
    assert "of 9 out-of-fold rows with 80 % prediction intervals" in few.alts[0]


def test_a_default_coverage_of_its_own_is_measured_and_drawn(tmp_path):
    page, manifest, _ = report(tmp_path, default_coverage=0.7)
    at_70 = manifest.evaluation.targets["y"].intervals[1]
    assert f"{at_70.observed_coverage:.3f} ± {np.sqrt(0.7 * 0.3 / 200):.3f}" in page.text
    assert f"the 70 % prediction interval of y held the observed value in {100 * at_70.observed_coverage:.4g} %" in page.text
    assert "test rows with 70 % prediction intervals" in page.alts[0]


def test_without_test_rows_the_page_says_so_and_shows_the_model(tmp_path):
    page = untested(tmp_path)
    assert "Not measured" in page.text
    assert len(page.pictures) == 2  # the sweep and the training


def test_predictions_without_an_evaluation_still_give_their_pictures(tmp_path):
    page, *_ = report(tmp_path, evaluated=False, history=[])
    assert "Not measured" in page.text
    assert len(page.pictures) == 5


def test_too_few_calibration_rows_for_any_coverage_leave_a_page_without_intervals(tmp_path):
    page, *_ = report(
        tmp_path, evaluated=False, interval="equal_tailed", columns=MIXED, group_column="open", rows=40, float64=True
    )
    assert "too few rows" in page.text
    assert page.open == []


def test_a_large_test_set_is_drawn_as_a_sample_and_measured_whole(tmp_path):
    page, *_ = report(tmp_path, rows=3 * MOST_POINTS)
    assert f"Predicted against observed y of {MOST_POINTS} test rows" in page.alts[0]
    assert "1,500 test rows" in page.text
    assert len(page.source) < 1_000_000


@pytest.mark.parametrize(
    ("interval", "group_column", "largest"),
    [("symmetric", None, 0.99), ("symmetric", "open", 0.95), ("equal_tailed", None, 0.98), ("equal_tailed", "open", 0.9)],
)
def test_the_rows_covered_are_those_within_the_intervals_of_the_graph(tmp_path, interval, group_column, largest):
    write_formula_model(tmp_path / "m.onnx", columns=MIXED, interval=interval, group_column=group_column, float64=True)
    run, manifest = open_model(tmp_path / "m.onnx", threads=1)
    x, y = rows_of(manifest, run)
    nominal, inside = curves.covered(predicted(run, x, y, manifest), manifest, target=0)
    answers = run(x, nominal)
    np.testing.assert_array_equal(inside, (answers["lower"][:, 0] <= y) & (y <= answers["upper"][:, 0]))
    assert nominal[0] == 0.01
    assert nominal[-1] == largest


@pytest.mark.parametrize("interval", ["symmetric", "equal_tailed"])
@pytest.mark.parametrize("offset", [0.0, 2e9])
def test_a_row_at_the_end_of_its_interval_is_covered_and_one_beyond_is_not(tmp_path, offset, interval):
    write_formula_model(tmp_path / "m.onnx", interval=interval, offset=offset, float64=True)
    run, manifest = open_model(tmp_path / "m.onnx", threads=1)
    x, _ = rows_of(manifest, run)
    end = run(x, np.array([0.9]))["upper"][..., 0]
    little = max(1e-10, 2 * np.spacing(offset))
    for y, within in ((end - little, True), (end + little, False)):
        nominal, inside = curves.covered(predicted(run, x, y, manifest), manifest, target=0)
        assert (inside[:, nominal == 0.9] == within).all()


def test_the_sampling_band_holds_nine_in_ten_shares_of_calibrated_models():
    random = np.random.default_rng(0)
    for rows, calibration_rows, share in ((100, 99, 0.9), (1000, 199, 0.5), (500, 99_999, 0.05)):
        rank = round(share * (calibration_rows + 1))
        coverage = random.beta(rank, calibration_rows + 1 - rank, size=20_000)
        observed = random.binomial(rows, coverage) / rows
        low, high = curves.sampling_band(np.array([share]), rows=rows, calibration_rows=calibration_rows)
        # 20 000 repetitions: standard error 0.002; the rest is the approximation's, and that shares are whole numbers of rows
        assert np.mean((low <= observed) & (observed <= high)) == pytest.approx(0.9, abs=0.035)


def test_coverage_by_std_is_that_of_thirds_of_the_rows():
    inside = np.array([[True, True], [False, True], [False, False], [True, True], [False, False], [False, True]])
    std = np.array([1.0, 5.0, 3.0, 2.0, 4.0, 6.0])
    assert curves.coverage_by_std(inside, std).tolist() == [[1, 1], [0, 0], [0, 1]]
    assert np.isnan(curves.coverage_by_std(inside[:2], std[:2])).all()


def test_the_band_of_thirds_holds_nine_in_ten_of_a_model_whose_std_is_right(tmp_path):
    manifest = write_formula_model(tmp_path / "m.onnx")
    random = np.random.default_rng(0)
    shares = []
    for seed in range(200):
        std = random.uniform(1, 5, size=(300, 1))
        y = std * random.normal(size=(300, 1))
        predictions = cross_predicted((np.zeros_like(y), std), np.zeros((300, 2)), y, manifest, seed=seed)
        nominal, inside = curves.covered(predictions, manifest, target=0)
        shares.append(curves.coverage_by_std(inside, std[:, 0])[:, [49, 79]])
    low, high = curves.third_band(nominal[[49, 79]], rows=300)
    held = np.mean((low <= shares) & (shares <= high), axis=0)
    # 200 repetitions: standard error 0.02; the rest is the approximation's, and that shares are whole numbers of rows
    np.testing.assert_allclose(held, 0.9, atol=0.07)


def test_error_by_std_finds_the_error_of_each_level_of_std():
    random = np.random.default_rng(1)
    std = np.repeat([3.0, 1.0], 4000)
    predicted_std, errors = curves.error_by_std(random.normal(size=8000) * std, np.zeros(8000), std)
    np.testing.assert_allclose(predicted_std, [1.0] * 5 + [3.0] * 5)
    np.testing.assert_allclose(errors, predicted_std, rtol=0.1)  # 800 rows a bin: standard error 2.5 %


@pytest.mark.parametrize(("rows", "bins"), [(39, 1), (40, 2), (199, 9), (1000, 10)])
def test_a_bin_of_error_by_std_has_twenty_rows_or_more(rows, bins):
    predicted_std, _ = curves.error_by_std(np.zeros(rows), np.zeros(rows), np.arange(1.0, rows + 1))
    assert len(predicted_std) == bins


@pytest.mark.parametrize(("rows", "calibration_rows", "bins"), [(400, 400, 20), (399, 1000, 10), (1000, 399, 10)])
def test_a_pit_of_few_rows_has_few_bins(rows, calibration_rows, bins):
    pit = (np.arange(rows) + 0.5) / rows
    picture = draw_pit(pit, calibration_rows=calibration_rows, target=Target(name="y", minimum=0.0, maximum=1.0))
    assert f"0 of {bins} bins lie outside" in picture.alt


def test_error_by_std_makes_one_bin_of_few_rows():
    predicted_std, errors = curves.error_by_std(np.array([3.0, 4.0]), np.zeros(2), np.array([1.0, 1.0]))
    assert predicted_std.tolist() == [1.0]
    assert errors.tolist() == [pytest.approx(np.sqrt(12.5))]


def test_a_sweep_follows_the_formula_and_leaves_the_other_features_alone(tmp_path):
    targets = (Target(name="u", minimum=-50.0, maximum=50.0), Target(name="v", minimum=-50.0, maximum=50.0))
    write_formula_model(tmp_path / "m.onnx", targets=targets, float64=True)
    run, manifest = open_model(tmp_path / "m.onnx", threads=1)
    row = curves.typical_row(manifest.columns, np.empty((0, 2)))
    assert row.tolist() == [0.25, 5.0]
    grid = curves.sweep_grid(manifest.columns[0], points=5)
    assert grid.tolist() == [-3.0, -1.5, 0.0, 1.5, 3.0]
    swept = curves.sweep(run, row, feature=0, grid=grid, coverage=0.9)
    np.testing.assert_allclose(swept.mean, np.outer(grid + 2 * 5.0, [1, 2]), atol=1e-6)
    std = np.sqrt((0.5 + np.abs(grid) / 10) ** 2 + 0.25)[:, None]
    factor = np.sort(np.abs(manifest.residuals()), axis=1)[:, 89]  # rank 0.9 * 100 of 99
    np.testing.assert_allclose(swept.upper - swept.mean, std * factor, rtol=1e-6)
    np.testing.assert_allclose(swept.mean - swept.lower, std * factor, rtol=1e-6)


def test_a_sweep_beyond_what_the_calibration_supports_has_no_ends(tmp_path):
    write_formula_model(tmp_path / "m.onnx")
    run, _ = open_model(tmp_path / "m.onnx", threads=1)
    swept = curves.sweep(run, np.zeros(2), feature=0, grid=np.zeros(1), coverage=0.999)
    assert np.isnan(swept.lower).all()
    assert np.isnan(swept.upper).all()
    assert np.isfinite(swept.mean).all()


def test_the_most_influential_feature_is_the_one_that_moves_the_mean_most(tmp_path):
    write_formula_model(tmp_path / "m.onnx")
    run, _ = open_model(tmp_path / "m.onnx", threads=1)
    row = np.array([0.0, 5.0])
    assert curves.most_influential_features(run, NUMERIC, row).tolist() == [1]  # 2 x 10 against 1 x 6
    narrow = NUMERIC[1].model_copy(update={"maximum": 1.0})
    assert curves.most_influential_features(run, (NUMERIC[0], narrow), row).tolist() == [0]


@pytest.mark.parametrize(
    ("column", "beyond", "ends"),
    [
        (NUMERIC[1], None, (0.0, 10.0)),
        (NUMERIC[1], 0.25, (-2.5, 12.5)),
        (NUMERIC[1].model_copy(update={"quantiles": {"0.01": 1.0, "0.99": 8.0}}), None, (1.0, 8.0)),
        (NUMERIC[1].model_copy(update={"quantiles": {"0.01": 4.0, "0.99": 4.0}}), None, (0.0, 10.0)),
        (MIXED[2], 0.25, (0.0, 2.0)),
        (MIXED[3], 0.25, (0.0, 1.0)),
        (MIXED[4], 0.25, (1.575e9, 1.725e9)),
    ],
)
def test_a_sweep_goes_through_the_training_values(column: Column, beyond, ends):
    grid = curves.sweep_grid(column, beyond=beyond)
    assert (grid[0], grid[-1]) == ends
    assert np.all(np.diff(grid) > 0)


def test_a_typical_row_takes_the_most_frequent_category():
    x = np.array([[0.0, 0.0, 2.0, 1.0, np.nan], [0.0, 0.0, 2.0, 1.0, 1.65e9], [0.0, 0.0, np.nan, 0.0, 1.65e9]])
    typical = curves.typical_row(MIXED, x)
    assert typical[:4].tolist() == [0.25, 5.0, 2.0, 1.0]
    assert np.isnan(typical[4])  # MIXED has no quantiles of its times: a missing value


def test_the_drawn_coverage_is_the_default_one_where_every_group_supports_it(tmp_path):
    manifest = write_formula_model(tmp_path / "m.onnx")
    assert curves.drawn_coverage(manifest) == 0.9
    assert curves.drawn_coverage(manifest.model_copy(update={"default_coverage": 0.999})) == 0.99
