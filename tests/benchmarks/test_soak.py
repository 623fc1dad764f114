"""Every part of the soak, for seconds; `python -m benchmarks.soak` runs them for minutes."""

import pytest

from benchmarks.soak import __main__ as program
from benchmarks.soak import parts

SHORT = [
    *("--minutes", "0.1", "--every", "2", "--connections", "20", "--seconds", "1"),
    *("--times", "2", "--kills", "5", "--requests", "3000"),
]


@pytest.mark.parametrize("part", parts.PARTS)
def test_nothing_goes_wrong_under_load(part, tmp_path, capsys):
    status = program.main(["--parts", part, *SHORT, "--out", str(tmp_path)])
    page = (tmp_path / "soak.md").read_text()
    assert status == 0, page
    assert f"## {parts.PARTS[part][0]}\n" in page
    assert "Nothing was wrong." in page
    assert page.split("\n", 2)[2].strip() in capsys.readouterr().out


def test_what_goes_wrong_is_told_and_is_the_status(tmp_path, monkeypatch):
    async def part(folder, options):
        assert folder.is_dir()
        return f"{options.times} times", ["a wrong mean", "a wrong mean", "no answer"]

    monkeypatch.setitem(parts.PARTS, "signals", ("Signals", part))
    assert program.main(["--parts", "signals", "--times", "7", "--out", str(tmp_path)]) == 1
    page = (tmp_path / "soak.md").read_text()
    assert "7 times\n\nWRONG, 3 times: a wrong mean; no answer" in page


@pytest.mark.parametrize(
    ("mean", "status", "problem"), [(2.0, 200, None), (2.1, 200, "mean 2.1 instead of 2"), (2.0, 503, "503: ")]
)
def test_an_answer_is_held_to_the_model(mean, status, problem):
    found = parts._right(2.0)(status, b'{"predictions": [{"mean": %f}]}' % mean)
    assert found is None if problem is None else found.startswith(problem)
