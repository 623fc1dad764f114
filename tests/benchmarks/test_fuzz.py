"""A few thousand bodies that are nearly right; `python -m benchmarks.fuzz` asks a million."""

import base64
import random

import pytest

from benchmarks import fuzz
from benchmarks.fuzz_inputs import mutated, valid_inputs
from service.errors import UnavailableError

FORMS = {"v1", "invocations", "csv", "ndjson", "arrow", "v2", "v2 binary", "v2 raw"}


def test_what_is_valid_is_answered(monkeypatch):
    valid = valid_inputs()
    monkeypatch.setattr(fuzz, "mutated", lambda rng, _: valid.pop())
    report = fuzz.fuzz(len(valid), seed=0)
    assert report.failures == []
    assert report.refused == {}
    assert set(report.answered) == FORMS


def test_whatever_comes_is_answered_or_refused_in_a_sentence():
    report = fuzz.fuzz(4000, seed=1)
    assert [str(failure) for failure in report.failures] == []
    for form in FORMS:
        assert report.answered[form] > 0
        assert report.refused[form].total() > 0
    assert report.answered.total() + sum(refused.total() for refused in report.refused.values()) == 4000


def test_an_input_follows_from_its_seed_and_number():
    valid = valid_inputs()
    first, again, other = (mutated(random.Random(seed), valid) for seed in (5, 5, 6))  # noqa: S311 - not for secrets
    assert first == again
    assert first != other


@pytest.mark.parametrize("problem", [ZeroDivisionError, AssertionError, UnavailableError])
def test_what_is_neither_is_a_failure_that_can_be_repeated(monkeypatch, capsys, problem):
    def broken(question, model, *, of_tensors):
        if question.samples:
            raise problem("oops")

    monkeypatch.setattr(fuzz, "_check_question", broken)
    failures = fuzz.fuzz(300, seed=2).failures
    (again,) = fuzz.fuzz(1, seed=2, first=failures[0].number).failures
    assert again == failures[0]
    assert fuzz.main(["--inputs", "1", "--seed", "2", "--first", str(again.number)]) == 1
    told = capsys.readouterr().out
    assert "oops" in told
    assert base64.b64encode(again.input.body).decode() in told
    assert "1 failures" in told
    assert fuzz.main(["--inputs", "1", "--seed", "2", "--first", str(again.number + 1)]) == 0
