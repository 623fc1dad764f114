import csv
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from benchmarks import uci
from benchmarks.quality import paper, peers
from benchmarks.quality.scores import Independent, Score
from models.distributions import Gaussian


@pytest.fixture
def folder(tmp_path):
    """Two sets of 40 rows with three splits each; the second has splits of its own besides the standard ones."""
    data = tmp_path / "data"
    (data / "splits").mkdir(parents=True)
    random = np.random.default_rng(0)
    splits = np.stack([np.sort(random.permutation(40)[:14]) for _ in range(3)]).astype(np.uint16)
    for name in ("one", "two"):
        x = random.standard_normal((40, 2))
        rows = np.column_stack([x, x[:, 0] + 0.1 * random.standard_normal(40)])
        (data / f"{name}.csv").write_text(
            "\n".join(["a,b,target", *(",".join(map(repr, row)) for row in rows.tolist())]) + "\n"
        )
        keys = {"hl_test": splits[:, :8], "hl_val20": splits[:, 8:]}
        own = {"seitzer_test": splits[:, ::2], "seitzer_val20": splits[:, 1::2]} if name == "two" else {}
        np.savez(data / "splits" / f"{name}.npz", **keys, **own)
    (data / "reference_results.csv").write_text(
        "dataset,method,ll_mean,ll_sd,rmse_mean,rmse_sd,protocol,source\none,PBP,-3.16,0.02,5.67,0.09,hl,Somebody\n"
    )
    return data


@pytest.fixture
def average(monkeypatch):
    """A peer under the name of ngboost that is done at once; the seeds (split numbers) of its fits."""
    seeds = []

    def fit(x, y, seed):
        seeds.append(seed)
        return lambda rows: Independent(Gaussian(np.full((len(rows), 1), y.mean()), np.ones((len(rows), 1))))

    monkeypatch.setitem(peers.PEERS, "ngboost", fit)
    return seeds


def run(folder, out, *rest):
    return uci.main(["--data", str(folder), "--out", str(out), *rest])


def lines(out):
    with (out / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_row_a_split_and_a_summary(folder, tmp_path, average, capsys):
    assert run(folder, tmp_path / "out", "--methods", "ngboost") == 0
    found = lines(tmp_path / "out")
    assert list(found[0]) == ["dataset", "method", "split", "ll", "rmse", "crps", "coverage90", "width90", "seconds"]
    assert [(row["dataset"], row["split"]) for row in found] == [(name, s) for name in ("one", "two", "two:hl") for s in "012"]
    page = (tmp_path / "out" / "summary.md").read_text()
    assert "| *PBP* | published, hl | -3.16 ± 0.02 |" in page
    assert f"numpy {np.__version__}" in page
    shown = capsys.readouterr()
    assert page in shown.out
    assert "two:hl ngboost split 2: LL" in shown.err


def test_what_is_done_is_not_run_again(folder, tmp_path, average):
    run(folder, tmp_path / "out", "--methods", "ngboost", "--sets", "one", "--splits", "2")
    before = (tmp_path / "out" / "results.csv").read_text()
    assert run(folder, tmp_path / "out", "--methods", "ngboost", "--sets", "one") == 0
    assert average == [0, 1, 2]
    assert (tmp_path / "out" / "results.csv").read_text().startswith(before)
    run(folder, tmp_path / "out", "--methods", "ngboost", "--sets", "one")
    assert average == [0, 1, 2]
    assert len((tmp_path / "out" / "runs.jsonl").read_text().splitlines()) == 2


def test_an_interruption_keeps_what_was_done(folder, tmp_path, average, monkeypatch, capsys):
    fit = peers.PEERS["ngboost"]

    def interrupted(x, y, seed):
        if seed == 1:
            raise KeyboardInterrupt
        return fit(x, y, seed)

    monkeypatch.setitem(peers.PEERS, "ngboost", interrupted)
    assert run(folder, tmp_path / "out", "--methods", "ngboost", "--sets", "one") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert [row["split"] for row in lines(tmp_path / "out")] == ["0"]
    assert json.loads((tmp_path / "out" / "runs.jsonl").read_text())["seconds"] >= 0


def test_a_method_that_fails_is_told_and_does_not_stop_the_others(folder, tmp_path, average, monkeypatch, capsys):
    def failing(x, y, seed):
        raise ArithmeticError("no luck")

    monkeypatch.setitem(peers.PEERS, "catboost", failing)
    assert run(folder, tmp_path / "out", "--methods", "catboost,ngboost", "--sets", "one") == 1
    assert "failed: one, catboost, split 0: ArithmeticError('no luck')" in capsys.readouterr().err
    assert {row["method"] for row in lines(tmp_path / "out")} == {"ngboost"}


def test_a_summary_is_built_from_the_results_alone(folder, tmp_path, average, capsys):
    run(folder, tmp_path / "out", "--methods", "ngboost", "--sets", "one")
    page = (tmp_path / "out" / "summary.md").read_text()
    (tmp_path / "out" / "summary.md").unlink()
    assert run(folder, tmp_path / "out", "--summarise") == 0
    assert (tmp_path / "out" / "summary.md").read_text() == page
    assert average == [0, 1, 2]
    (tmp_path / "out" / "runs.jsonl").unlink()
    run(folder, tmp_path / "out", "--summarise")
    assert "Machine, versions and date: not known" in capsys.readouterr().out


def test_two_protocols_do_not_share_a_file(folder, tmp_path, monkeypatch, capsys):
    def fake(data, methods, *, full_grid):
        for split in data.splits:
            for method in methods:
                yield Score(data.name, method, split.number, float(full_grid), 1.0, 1.0, 0.9, 1.0, 1.0)

    monkeypatch.setattr(paper, "run", fake)
    assert run(folder, tmp_path / "out", "--methods", "nll,mse", "--protocol", "paper", "--sets", "one") == 0
    assert {row["ll"] for row in lines(tmp_path / "out")} == {"1.0"}
    assert "Protocol of the paper's methods: paper" in (tmp_path / "out" / "summary.md").read_text()
    with pytest.raises(SystemExit, match="2"):
        run(folder, tmp_path / "out", "--methods", "nll,mse", "--sets", "one")
    assert "with --protocol paper, not first-split; give --out another folder" in capsys.readouterr().err


def test_what_trains_as_one_stack_is_one_job_with_all_its_splits(folder):
    methods = ["nll", "beta_nll_0", "beta_nll_0.5", "mse", "errorbar"]
    done = {("one", "mse", s) for s in range(3)} | {("one", "nll", 1), ("one", "errorbar", 0)}
    found = list(uci.jobs(folder, ["one"], methods, splits=None, full_grid=True, done=done))
    assert [(job.methods, job.splits) for job in found] == [
        (("errorbar",), (1,)),
        (("errorbar",), (2,)),
        (("nll", "beta_nll_0", "beta_nll_0.5"), (0, 1, 2)),
    ]


def test_rows_that_a_stack_repeats_are_not_written_twice(folder, tmp_path, monkeypatch):
    runs = []

    def fake(data, methods, *, full_grid):
        runs.append(len(data.splits))
        for split in data.splits:
            yield Score(data.name, methods[0], split.number, 0.0, 1.0, 1.0, 0.9, 1.0, 1.0)

    monkeypatch.setattr(paper, "run", fake)
    for splits in "13":
        run(folder, tmp_path / "out", "--methods", "vbem", "--sets", "one", "--splits", splits)
    assert runs == [1, 3]
    assert [row["split"] for row in lines(tmp_path / "out")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "ngboots"], "there is no method 'ngboots'; there are errorbar, "),
        (["--sets", "three"], "there is no set 'three'; there are one, two, two:hl"),
        (["--splits", "0"], "'0' is no whole number above 0"),
        (["--summarise"], "results.csv"),
    ],
)
def test_a_wrong_argument_is_one_sentence(folder, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        run(folder, tmp_path / "out", *arguments)
    assert message in capsys.readouterr().err


def test_workers_give_what_one_process_gives(folder, tmp_path):
    chosen = ["--methods", "deep_ensemble", "--sets", "one", "--splits", "2"]
    command = [sys.executable, "-m", "benchmarks.uci", "--data", folder, "--out", tmp_path / "several", "--jobs", "2", *chosen]
    root = Path(uci.__file__).parents[1]
    subprocess.run(command, cwd=root, capture_output=True, check=True)
    assert run(folder, tmp_path / "one", *chosen) == 0
    names = [field.name for field in fields(Score)][:-1]
    several, one = (
        {tuple(row[name] for name in names[:3]): row for row in lines(tmp_path / out)} for out in ("several", "one")
    )
    assert several.keys() == one.keys()
    for key, row in one.items():
        assert [float(several[key][name]) for name in names[3:]] == pytest.approx(
            [float(row[name]) for name in names[3:]], rel=1e-3
        )
