import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from models.losses import LOSSES
from training.config import CalibrationOptions, FitOptions, Loss, NetworkOptions, TableOptions, column_words, fit_options
from training.errors import OptionError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path):
    """Writes a TOML file and returns its path."""

    def write(text):
        path = tmp_path / "fit.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_target_is_all_that_must_be_given():
    options = fit_options({"target": ["y"], "loss": None})
    assert options == FitOptions(target=["y"])
    assert (options.loss, options.beta, options.coverage) == ("beta_nll", 0.5, 0.9)


def test_without_a_target_it_is_asked_for():
    with pytest.raises(OptionError, match=r"^--target is needed$"):
        fit_options({"loss": "nll"})


def test_keys_of_the_file_have_hyphens_or_underscores(config):
    path = config('target = "y"\nlearning-rate = 0.01\nweight_decay = 0.5\ndrop-missing-target = true\ncalibrate-by = "site"\n')
    options = fit_options({}, config=path)
    assert (options.target, options.learning_rate, options.weight_decay) == (["y"], 0.01, 0.5)
    assert (options.drop_missing_target, options.calibrate_by) == (True, "site")


def test_a_list_in_the_file_is_a_list_or_one_value(config):
    options = fit_options({}, config=config('target = ["y", "z"]\nexclude = "id"\ntransform = ["y=log"]\n'))
    assert (options.target, options.exclude, options.transform) == (["y", "z"], ["id"], ["y=log"])


def test_names_in_the_file_are_utf_8(config):
    assert fit_options({}, config=config('target = "Größe µ"\n')).target == ["Größe µ"]


def test_the_command_line_stands_above_the_file(config):
    path = config('target = "y"\nmembers = 4\nbaselines = true\nseed = 3\n')
    options = fit_options({"members": 2, "baselines": False, "seed": None}, config=path)
    assert (options.members, options.baselines, options.seed) == (2, False, 3)


def test_an_unknown_key_is_refused_with_the_nearest_name(config):
    with pytest.raises(OptionError, match=r"fit\.toml: there is no option 'learning-rat'; did you mean 'learning_rate'\?"):
        fit_options({}, config=config('target = "y"\nlearning-rat = 0.1\n'))


def test_an_unknown_key_like_no_other_is_refused_with_all_names(config):
    with pytest.raises(OptionError, match=r"there is no option 'qqq'; the options are target, .*members.*baselines"):
        fit_options({}, config=config("qqq = 1\n"))


def test_an_option_given_in_both_spellings_is_refused(config):
    with pytest.raises(OptionError, match="'test_share' is given twice"):
        fit_options({}, config=config('target = "y"\ntest-share = 0.1\ntest_share = 0.2\n'))


@pytest.mark.parametrize("text", ["target = \n", "\x00", "target"])
def test_what_is_not_toml_is_refused(config, text):
    with pytest.raises(OptionError, match=r"fit\.toml: is not TOML"):
        fit_options({}, config=config(text))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "fit.toml"
    path.write_bytes(b'target = "\xff"\n')
    with pytest.raises(OptionError, match=r"fit\.toml: is not TOML"):
        fit_options({}, config=path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"none\.toml: cannot be read \(No such file or directory\)"):
        fit_options({}, config=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"members": 0}, "--members 0: input should be greater than or equal to 1"),
        ({"loss": "l2"}, "--loss 'l2': input should be 'beta_nll', 'nll', "),
        ({"learning_rate": -1.0}, "--learning-rate -1.0: input should be greater than 0"),
        ({"beta": 1.5}, "--beta 1.5: input should be less than or equal to 1"),
        ({"coverage": 90.0}, "--coverage 90.0: input should be less than 1"),
        ({"dropout": float("nan")}, "--dropout nan: input should be "),
        ({"epochs": "many"}, "--epochs 'many': input should be a valid integer"),
        ({"minimum_std": 20.0}, "minimum_std 20 must be below maximum_std 10"),
        (
            {"members": 2, "fold_members": 3},
            "fold_members 3 is more than members 2: intervals would be calibrated on more networks",
        ),
        ({"target": []}, r"--target \[\]: list should have at least 1 item"),
        ({"maximum_std": 1.0}, "--maximum-std 1.0: input should be greater than 1"),
        ({"maximum_std": 1e30}, "--maximum-std 1e\\+30: input should be less than or equal to 1000000"),
        ({"seed": 2**64}, "--seed 18446744073709551616: input should be less than 18446744073709551616"),
        ({"delimiter": ""}, "--delimiter '': string should have at least 1 character"),
        ({"folds": 1}, "--folds 1: input should be greater than or equal to 2"),
    ],
)
def test_a_bad_value_is_a_sentence_that_names_option_and_value(given, sentence):
    with pytest.raises(OptionError, match=f"^{sentence}"):
        fit_options({"target": ["y"]} | given)


def test_all_bad_values_are_told_at_once():
    with pytest.raises(OptionError, match=r"--members 0: .*; --width 0: .*"):
        fit_options({"target": ["y"], "members": 0, "width": 0})


def test_a_transform_without_a_target_is_that_of_all():
    assert FitOptions(target=["y", "z"], transform=["log"]).transforms() == {"y": "log", "z": "log"}


def test_a_later_transform_of_one_target_stands_above_that_of_all():
    options = FitOptions(target=["y", "a=b"], transform=["log", "a=b=identity"])
    assert options.transforms() == {"y": "log", "a=b": "identity"}


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("y=sqrt", "--transform y=sqrt: the transforms are identity, log and logit"),
        ("y", "--transform y: the transforms are"),
        ("x=log", r"--transform x=log: 'x' is not a target \(y, z\)"),
    ],
)
def test_a_transform_that_cannot_be_is_refused(entry, sentence):
    with pytest.raises(OptionError, match=sentence):
        FitOptions(target=["y", "z"], transform=[entry]).transforms()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "nll", "beta": 0.3}, "--beta has no effect here: --loss nll has no beta"),
        ({"frequencies": 0, "embedding_outputs": 4}, "--embedding-outputs has no effect here: --frequencies 0"),
        ({"frequencies": 0, "frequency_scale": 0.1}, "--frequency-scale has no effect here"),
        ({"calibration": "split", "folds": 2}, "--folds has no effect here: --calibration split has no folds"),
        ({"calibration": "cross", "calibration_share": 0.3}, "--calibration-share has no effect here"),
        ({"calibration": "none", "calibrate_by": "colour"}, "--calibrate-by has no effect here: --calibration none"),
        ({"target": ["y", "warnings"]}, "--target warnings: with several targets"),
    ],
)
def test_an_option_without_effect_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        fit_options({"target": ["y"], **options})


def test_words_about_a_column_go_to_the_longest_name_that_fits():
    names = ["Age", "Age=old", "share"]
    entries = ["Age=day", "Age=old=year", "share=a=b"]
    assert column_words(entries, option="unit", names=names) == {"Age": "day", "Age=old": "year", "share": "a=b"}


def test_words_about_an_unknown_column_are_refused_with_the_nearest():
    with pytest.raises(OptionError, match="--unit Agee=day: is not COLUMN=TEXT for a column; did you mean 'Age'"):
        column_words(["Agee=day"], option="unit", names=["Age"])


def test_the_losses_of_the_option_are_those_there_are():
    assert get_args(Loss) == LOSSES


def test_every_option_says_what_it_is():
    assert {name for name, field in FitOptions.model_fields.items() if not field.description} == set()


def test_no_option_belongs_to_two_parts():
    parts = [set(part.model_fields) for part in (TableOptions, NetworkOptions, CalibrationOptions)]
    assert sum(len(part) for part in parts) == len(FitOptions.model_fields)


def test_reading_options_needs_no_torch():
    program = "import sys, training.config; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_a_size_sets_what_is_not_given():
    default, small, large = (FitOptions(target=["y"], size=size) for size in ("default", "small", "large"))
    assert default == FitOptions(target=["y"])
    assert small.members < default.members < large.members
    assert small.width < default.width < large.width
    assert FitOptions(target=["y"], size="small", width=200).width == 200
    assert FitOptions(target=["y"], size="small", frequencies=0).embedding_outputs == small.embedding_outputs  # none is idle
    assert FitOptions.model_validate(large.model_dump()) == large
