import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import page, training
from benchmarks.training_speed import bare, comparison, scale, sections, usual
from benchmarks.training_speed.work import default_options, features_of, few_rows, made_up_table, rounds, stacked, work
from models.networks import ACTIVATIONS, Features
from training.config import NetworkOptions

SMALL = NetworkOptions(members=2, width=8, depth=2, frequencies=3, embedding_outputs=2, dropout=0.1)


def job(options=SMALL, rows=48, **given):
    return work(options, **{"rows": rows, "columns": 3, "members": 2, "epochs": 2, "held_out": 8} | given)


@pytest.fixture
def small_default(monkeypatch):
    """The parts measure a small network instead of the default one."""
    for module in (bare, comparison, sections):
        monkeypatch.setattr(module, "default_options", lambda: SMALL)


def test_the_table_is_made_from_its_seed_and_its_noise_grows_with_the_first_column():
    x, y = made_up_table(4000, 3)
    assert np.array_equal(made_up_table(4000, 3)[1], y)
    noise = y - np.sin(2 * x[:, :1]) - x @ np.linspace(1, 0.1, 3)[:, None] / np.sqrt(3)
    assert noise[x[:, 0] > 1].std() > 2 * noise[x[:, 0] < -1].std()


def test_work_counts_full_batches_only():
    counted = job(SMALL.model_copy(update={"batch_rows": 20}))
    assert (counted.updates, counted.processed) == (4, 4 * 20 * 2)


@pytest.mark.parametrize("components", [True, False])
@pytest.mark.parametrize("options", [default_options(), comparison.PAPER, SMALL])
def test_the_usual_loop_has_the_weights_of_the_stack(options, components):
    one = replace(job(options, members=1, epochs=1), components=components)
    (theirs,) = usual.one_after_another(one)
    ours = stacked(one).network
    assert ours.features.statistics.width == (6 if components else 3)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())


def test_the_usual_loop_knows_every_activation_of_the_product():
    values = torch.linspace(-2, 2, 9)
    for name, activation in ACTIVATIONS.items():
        torch.testing.assert_close(usual.ACTIVATIONS[name]()(values), activation(values))


def test_both_ways_learn():
    torch.manual_seed(0)
    learning = job(SMALL.model_copy(update={"learning_rate": 1e-2}), rows=400, epochs=30, held_out=400)
    x, y = made_up_table(800, 3)
    (network,) = usual.one_after_another(learning.of(1))
    with torch.no_grad():
        features = Features(features_of(x[:400], components=True))(torch.from_numpy(x[400:]))
        errors = y[400:] - network(features)[:, :1].numpy()
    assert np.sqrt(np.mean(errors**2)) < 0.8 * y[400:].std()
    history = stacked(learning).history
    assert len(history) == 30
    assert min(epoch.rmse for epoch in history) < 0.8


def test_the_ways_take_turns():
    turns = []
    seconds = rounds({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, count=2)
    assert turns == ["a", "b", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_the_products_are_those_of_forward_and_backward():
    plain = job(SMALL.model_copy(update={"frequencies": 0}))
    # What is summed over, and what is left of both factors, whether rows come first or last.
    sizes = [(left[2], {left[1], right[2]}) for (left, right), _ in bare.products(plain)]
    batch, inputs, width = plain.batch_rows, 6, 8  # three columns and as many components
    assert sizes.count((width, {batch, width})) == 2  # the hidden layer's forward, and its backward to the inputs
    assert sizes.count((batch, {width})) == 1  # and to the weights
    assert sizes.count((inputs, {batch, width})) == 1
    assert sizes.count((width, {batch, inputs})) == 0  # the features need no gradient
    assert sizes.count((batch, {inputs, width})) == 1
    assert (
        bare.Product((torch.Size((2, 3, 4)), torch.Size((2, 4, 5))), ((12, 4, 1), (20, 5, 1))).operations == 2 * 2 * 3 * 4 * 5
    )


def test_a_table_is_cut_to_what_some_epochs_need():
    cut = few_rows(SMALL, 1_000_000, updates=100, held_out_share=0.1)
    assert cut.batch_rows == 1024
    assert cut.rows == 32 * 1024
    assert cut.updates == 96
    assert few_rows(SMALL, 500, updates=10, held_out_share=0.1).rows == 500


def test_every_section_of_an_update_is_met_and_their_sum_is_the_whole():
    seconds = sections.clocked_sections(job())
    assert set(seconds) == {*sections.SECTIONS, "rest"}
    assert all(value > 0 for value in seconds.values())


def test_operations_are_told_apart():
    seconds = sections.operations(job())
    for kind in sections.KINDS:
        assert seconds[kind] > 0, kind


def test_a_part_that_runs_anew_replaces_its_section_alone():
    told = {"order": ["A", "B"], "title": "# Training speed"}
    old = page.merged("", {"B": "old b", "A": "old a"}, **told)
    assert old == "# Training speed\n\n## A\nold a\n\n## B\nold b\n"
    assert page.merged(old, {"B": "new b"}, **told) == old.replace("old b", "new b")


def test_the_command_writes_the_parts_asked_for(tmp_path, monkeypatch, capsys, small_default):
    monkeypatch.setattr(bare, "TABLES", (50, 80))
    monkeypatch.setattr(sections, "TABLES", (50, 80))
    monkeypatch.setattr(training, "UPDATES", 4)
    threads = torch.get_num_threads()
    try:
        assert training.main(["--parts", "default,profile", "--threads", "1", "--rounds", "1", "--out", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    text = (tmp_path / "training.md").read_text()
    assert "## Rows, time" not in text
    assert "1 threads" in text
    assert re.search(r"^\| 80 \| 32 \| \d+ \|.* \d+% \| [\d,]+ \|$", text, re.MULTILINE)
    assert re.search(r"^\| optimiser \| \d+% \| \d+% \|$", text, re.MULTILINE)
    assert "Dropout with its backward" in text
    assert "Where the time goes" in capsys.readouterr().out


def test_the_comparison_shows_both_targets(small_default, monkeypatch):
    monkeypatch.setattr(comparison, "MANY", 3)
    monkeypatch.setattr(comparison, "FEW", 2)
    amount = comparison.Amount(rows=40, held_out=8, paper_epochs=2, default_epochs=10, rounds=1)
    text = comparison.section(amount)
    assert re.search(r"- 3 networks: stacked is \*\*[\d.]+ times\*\*", text)
    assert re.search(r"- 2 networks stacked take \*\*[\d.]+ times\*\*", text)
    assert "2 x 2 x 8, 400 rows x 8, batch 32, 1 epochs" in text


def test_scale_trains_in_processes_of_their_own(monkeypatch):
    made = []

    def alone(function, *arguments):
        made.append((function.__name__, arguments[1]))
        return None if function is scale.write else scale.Run(arguments[1], 4.0, 3.0, 5, 2**20, 3 * 2**20)

    monkeypatch.setattr(scale, "_alone", alone)
    text = scale.section([1000, 2000], device="cpu", threads=1)
    assert made == [("write", 1000), ("run", 1000), ("write", 2000), ("run", 2000)]
    assert "| 1,000 | 4.0 | 3.0 | 5 | 4000 | 600.0 | 3 | 2 | 2097 |" in text


def test_scale_measures_a_whole_training(tmp_path, monkeypatch):
    real = scale.fit_options
    quick = {"epochs": 2, "members": 2, "width": 8, "calibration": "none"}
    monkeypatch.setattr(scale, "fit_options", lambda given: real(given | quick))
    path = tmp_path / "table.parquet"
    scale.write(path, 200)
    run = scale.run(path, 200, "cpu", torch.get_num_threads())
    assert (run.rows, run.epochs) == (200, 2)
    assert 0 < run.fit_seconds < run.seconds
    assert run.peak >= run.before > 2**20
    assert (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(("argument", "value"), [("--parts", "speed"), ("--threads", "0"), ("--rows", "10,x")])
def test_a_wrong_argument_is_named(argument, value, capsys):
    with pytest.raises(SystemExit) as ended:
        training.main([argument, value])
    assert ended.value.code == 2
    assert argument in capsys.readouterr().err


def test_work_without_epochs_is_refused():
    with pytest.raises(ValueError, match="name no epochs"):
        _ = replace(job(), options=SMALL).updates
