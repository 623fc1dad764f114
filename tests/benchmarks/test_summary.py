import math
from dataclasses import astuple, replace

import numpy as np
import pytest

from benchmarks.quality import summary as module
from benchmarks.quality.scores import Score
from benchmarks.quality.sets import Set
from benchmarks.quality.summary import Figure, Published, comparable, paired, read_published, read_results, summary, unpaired

NONE = Figure(math.nan, math.nan)


def score(method, split, *, ll=0.0, rmse=1.0, dataset="made"):
    return Score(dataset, method, split, ll, rmse, 0.5, 0.9, 3.0, 2.0)


def by_split(values, metric):
    return {split: replace(score("m", split), **{metric: value}) for split, value in enumerate(values)}


def table(name="made", protocols=("seitzer", "hl")):
    return Set(name, name.removesuffix(":hl"), protocols, ["a", "b"], ["target"], np.zeros((40, 2)), np.zeros((40, 1)), [])


def row_of(page, start):
    return next(line for line in page.splitlines() if line.startswith(f"| {start} |")).strip("| ").split(" | ")


def test_results_come_back_as_they_were_written(tmp_path):
    written = [score("errorbar", 0, ll=-1 / 3), Score("naval:hl", "gb_mapie", 7, math.nan, 1e-4, math.nan, 0.9, 0.1, 3.5)]
    lines = [
        "dataset,method,split,ll,rmse,crps,coverage90,width90,seconds",
        *(",".join(map(str, astuple(one))) for one in written),
    ]
    (tmp_path / "results.csv").write_text("\n".join(lines) + "\n")
    first, second = read_results(tmp_path / "results.csv")
    assert first == written[0]
    assert (second.dataset, second.split, second.rmse) == ("naval:hl", 7, 1e-4)
    assert math.isnan(second.ll)
    assert math.isnan(second.crps)


@pytest.mark.parametrize("line", ["made,errorbar,3,-2.5,0.", "made,errorbar,x,1,1,1,1,1,1", "made,errorbar,3,1,1,1,1,1,1,1"])
def test_a_line_that_is_not_whole_is_named(tmp_path, line):
    path = tmp_path / "results.csv"
    path.write_text(f"dataset,method,split,ll,rmse,crps,coverage90,width90,seconds\n{line}\n")
    with pytest.raises(ValueError, match=r"results\.csv, line 2: .* remove the line"):
        read_results(path)


def test_what_is_published_may_have_gaps(tmp_path):
    assert read_published(tmp_path) == []
    (tmp_path / "reference_results.csv").write_text(
        'dataset,method,ll_mean,ll_sd,rmse_mean,rmse_sd,protocol,source\nmade,MSE,,,4.96,0.64,seitzer,"A, Table 1"\n'
    )
    (row,) = read_published(tmp_path)
    assert (row.method, row.protocol, row.rmse) == ("MSE", "seitzer", (4.96, 0.64))
    assert math.isnan(row.ll.mean)


def test_only_figures_of_the_same_splits_and_targets_are_comparable():
    rows = [
        Published("made", "A", "seitzer", Figure(1.0, 0.1), NONE),
        Published("made", "A", "hl", Figure(1.0, 0.1), NONE),
        Published("made", "B", "hl", Figure(1.0, 0.1), NONE),
        Published("made", "C", "single-split-best-on-test", Figure(9.0, 0.1), NONE),
        Published("other", "D", "hl", Figure(1.0, 0.1), NONE),
    ]
    assert comparable(rows, table()) == [rows[0], rows[2]]
    assert comparable(rows, table("made:hl", ("hl",))) == rows[1:3]


def test_a_difference_is_taken_split_by_split_over_common_splits():
    ours, theirs = by_split([1.0, 3.0, 8.0, 100.0], "ll"), by_split([0.0, 1.0, 5.0], "ll")
    one = paired(ours, theirs, "ll")
    assert one.gain == pytest.approx(2.0)
    assert one.error == pytest.approx(1 / math.sqrt(3))
    assert one.verdict == "win"


def test_a_smaller_rmse_is_a_gain():
    ours, theirs = by_split([1.0, 1.0], "rmse"), by_split([2.0, 2.1], "rmse")
    assert paired(ours, theirs, "rmse").gain == pytest.approx(1.05)
    assert paired(theirs, ours, "rmse").verdict == "loss"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([3.0, -1.0], "tie"), ([0.0, 0.0], "tie"), ([-3.0, -2.0], "loss"), ([5.0], ""), ([math.nan, 1.0], "")],
)
def test_a_win_within_one_standard_error_is_a_tie(values, verdict):
    assert paired(by_split(values, "ll"), by_split([0.0] * len(values), "ll"), "ll").verdict == verdict


def test_methods_without_a_common_split_are_not_compared():
    assert paired(by_split([1.0], "ll"), {5: score("m", 5)}, "ll").verdict == ""


def test_a_published_error_of_zero_is_a_rounding():
    assert math.isnan(unpaired(Figure(1e-4, 0.0), Figure(0.0, 0.0), "rmse").gain)
    assert unpaired(Figure(0.5, 0.0), Figure(0.75, 0.1), "rmse").gain == 0.25
    assert unpaired(Figure(-1.0, 0.0), Figure(-0.75, 0.1), "ll").gain == -0.25


def results():
    return [
        *(score("errorbar", s, ll=-1.0 + 0.1 * s, rmse=0.5) for s in range(3)),
        *(score("errorbar_large", s, ll=5.0, rmse=0.01) for s in range(3)),
        *(score("ngboost", s, ll=-2.0 + 0.11 * s, rmse=0.45 + 0.06 * s) for s in range(2)),
        *(replace(score("gb_mapie", s, ll=math.nan, rmse=0.75), crps=math.nan, width90=4.0) for s in range(3)),
    ]


def published():
    return [
        Published("made", "VBEM*", "hl", Figure(-0.5, 0.2), Figure(0.62, 0.1)),
        Published("made", "Best on test", "random-20-earlystop-on-test", Figure(9.0, 0.2), Figure(0.1, 0.1)),
        Published("made", "Rounded", "hl", Figure(-3.0, math.nan), Figure(0.0, 0.0)),
    ]


def test_the_overview_names_the_best_rival_and_who_is_ahead():
    page = summary(results(), published(), {"made": table()}, facts=["Machine: none"])
    _name, *cells = row_of(page, "made")
    assert cells[:3] == ["-0.900", "-1.945 ngboost (win)", "-0.500 *VBEM&ast;* (behind)"]
    assert cells[3:6] == ["0.5", "0.48 ngboost (tie)", "0.62 *VBEM&ast;* (ahead)"]
    assert cells[6:] == ["0.900", "3", "4"]


def test_the_page_has_what_was_run_and_what_was_published():
    page = summary(results(), published(), {"made": table()}, facts=["Machine: none"])
    assert "- Machine: none" in page
    assert "40 rows, 2 inputs; target." in page
    assert row_of(page, "errorbar")[1:4] == ["3", "-0.900 ± 0.100", "0.5 ± 0"]
    assert row_of(page, "gb_mapie")[2:] == ["-", "0.75 ± 0", "-", "0.900 ± 0.000", "4 ± 0", "2.0 ± 0.0"]
    assert row_of(page, "*VBEM&ast;*") == ["*VBEM&ast;*", "published, hl", "-0.5 ± 0.2", "0.62 ± 0.1", "-", "-", "-", "-"]
    assert row_of(page, "*Rounded*")[2:4] == ["-3", "0 ± 0"]
    assert "Best on test" not in page


def test_a_page_without_errorbar_compares_nothing():
    page = summary([score("ngboost", 0)], published(), {"made": table()}, facts=[])
    assert "Overview" not in page
    assert "errorbar against" not in page
    assert row_of(page, "ngboost")[1:3] == ["1", "0.000"]


def test_sizes_of_errorbar_are_not_its_rivals():
    page = summary(results()[:6], [], {"made": table()}, facts=[])
    assert row_of(page, "made")[2] == "-"
    assert row_of(page.partition("## made")[2].partition("errorbar against")[2], "errorbar_large")[3] == "loss"


def test_every_set_has_its_own_rivals():
    rows = [score("errorbar", 0, dataset="made"), score("errorbar", 0, dataset="made:hl")]
    sets = {"made": table("made", ("seitzer",)), "made:hl": table("made:hl", ("hl",))}
    page = summary(rows, published(), sets, facts=[])
    assert "VBEM" not in page.partition("## made\n")[2].partition("## made:hl\n")[0]
    assert "VBEM" in page.partition("## made:hl\n")[2]


def test_the_product_is_a_method_of_that_name():
    from benchmarks.quality import peers, product

    assert module.PRODUCT in product.SIZES
    assert module.CONFORMAL_PEER in peers.PEERS
