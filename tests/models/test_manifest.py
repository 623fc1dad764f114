import math
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from models import conformal, distributions
from models.manifest import (
    Calibration,
    CalibrationMethod,
    Column,
    Evaluation,
    Family,
    IntervalKind,
    Manifest,
    Target,
    Transform,
)
from models.transforms import TRANSFORMS
from tests.model_files import MIXED, write_formula_model


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    targets = (Target(name="y", minimum=0.0, maximum=1.0), Target(name="z", minimum=-5.0, maximum=5.0, transform="identity"))
    path = tmp_path_factory.mktemp("manifest") / "model.onnx"
    return write_formula_model(path, columns=MIXED, targets=targets, group_column="colour")


def changed(manifest, **parts):
    """The manifest's document with some of its top-level parts replaced, read again."""
    return Manifest.model_validate(manifest.model_dump() | parts)


def test_a_manifest_survives_json(manifest):
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_names_keep_the_order_of_x_and_of_the_outputs(manifest):
    assert manifest.feature_names == ["a", "b", "colour", "open", "when"]
    assert manifest.target_names == ["y", "z"]


def test_residuals_are_an_array_of_targets_by_rows_for_each_group(manifest):
    assert manifest.residuals().shape == (2, 99)
    assert manifest.residuals(group=3).shape == (2, 39)
    assert manifest.residuals(group=3).tolist() == manifest.calibration.groups[3].residuals
    assert (manifest.calibration.rows, manifest.calibration.groups[1].rows) == (99, 19)


def test_a_manifest_cannot_be_changed(manifest):
    with pytest.raises(ValidationError, match="frozen"):
        manifest.default_coverage = 0.5


def test_an_unknown_field_is_refused(manifest):
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        changed(manifest, colour="blue")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_without_a_json_form_is_refused(value):
    with pytest.raises(ValidationError, match="finite"):
        Target(name="y", minimum=value, maximum=1.0)


@pytest.mark.parametrize("kind_and_categories", [("categorical", None), ("numeric", ["a"]), ("boolean", [])])
def test_categories_belong_to_categorical_columns_alone(kind_and_categories):
    kind, categories = kind_and_categories
    with pytest.raises(ValidationError, match="column 'colour': `categories` belongs to a categorical column"):
        Column(name="colour", kind=kind, categories=categories)


def test_columns_and_targets_have_names_of_their_own(manifest):
    with pytest.raises(ValidationError, match="column names must differ: a"):
        changed(manifest, columns=[*manifest.columns, manifest.columns[0]])
    with pytest.raises(ValidationError, match="target names must differ: y"):
        changed(manifest, targets=[manifest.targets[0]] * 2)


def test_every_group_has_residuals_of_every_target(manifest):
    with pytest.raises(ValidationError, match="residuals of 2 targets, not 1"):
        changed(manifest, targets=manifest.targets[:1])


def test_the_group_column_is_a_feature(manifest):
    calibration = manifest.calibration.model_copy(update={"group_column": "shape"})
    with pytest.raises(ValidationError, match="group column 'shape' is not a feature"):
        changed(manifest, calibration=calibration)


@pytest.mark.parametrize("parts", [{"columns": []}, {"targets": []}, {"default_coverage": 1.0}, {"default_coverage": 0.0}])
def test_what_no_model_can_be_without_is_required(manifest, parts):
    with pytest.raises(ValidationError):
        changed(manifest, **parts)


def test_a_calibration_without_groups_is_refused(manifest):
    with pytest.raises(ValidationError, match="at least 1 item"):
        changed(manifest, calibration=manifest.calibration.model_dump() | {"groups": []})


def test_a_group_without_a_scale_factor_has_that_of_all_rows_as_every_group_of_an_older_file(manifest):
    document = manifest.calibration.model_dump()
    for group in document["groups"]:
        del group["scale_factor"]
    older = Calibration.model_validate(document)
    assert (older.scale_factors, older.moment_groups) == ([[1.0, 1.0]] * 4, [0, 0, 0, 0])
    document["groups"][2]["scale_factor"] = [2.0, 3.0]
    newer = Calibration.model_validate(document)
    assert (newer.scale_factors, newer.moment_groups) == ([[1.0, 1.0], [1.0, 1.0], [2.0, 3.0], [1.0, 1.0]], [0, 0, 2, 0])


def test_missing_values_of_golden_rows_travel_as_null(manifest):
    read = Manifest.model_validate_json(manifest.model_dump_json())
    assert read.golden.x[2] == [None] * 5
    assert np.isnan(np.array(read.golden.x, dtype=np.float64)[2]).all()


def test_an_evaluation_of_an_older_file_is_of_test_rows():
    assert Evaluation.model_validate({"rows": 9, "targets": {}}).source == "test"
    with pytest.raises(ValidationError, match="source"):
        Evaluation(rows=9, source="training", targets={})


def test_the_names_a_manifest_may_hold_are_those_the_arithmetic_knows():
    assert set(get_args(Transform)) == set(TRANSFORMS)
    assert get_args(Family) == get_args(distributions.Family)
    assert get_args(IntervalKind) == get_args(conformal.IntervalKind)
    assert get_args(CalibrationMethod) == get_args(conformal.CalibrationMethod)
