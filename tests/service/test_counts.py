from service.counts import SharedCounts, forget
from service.metrics import FAMILIES


def test_counts_of_other_processes_last_when_these_end(tmp_path):
    one, other = SharedCounts(tmp_path, "one"), SharedCounts(tmp_path, "other")
    for times in (1, 2):
        other.leave(
            {
                "errorbar_requests": [(["m", "1", "ok"], [2.0 * times])],
                "errorbar_run_rows": [(["m", "1"], [1.0 * times, 3.0 * times])],
                "errorbar_up": [([], [1.0])],
                "errorbar_model_info": [(["m", "1", "abc", "cpu"], [1.0])],
            }
        )
    (left,) = one.others()
    assert left["errorbar_requests"] == [[["m", "1", "ok"], [4.0]]]
    assert left["errorbar_up"] == [[[], [1.0]]]
    for _ in range(2):  # the second time there is nothing to forget
        forget(tmp_path, "other")
        (left,) = one.others()
        assert left["errorbar_requests"] == [[["m", "1", "ok"], [4.0]]]
        assert left["errorbar_run_rows"] == [[["m", "1"], [2.0, 6.0]]]
        assert not left.keys() & {"errorbar_up", "errorbar_model_info"}
    assert {family.kind for family in FAMILIES.values()} == {"counter", "gauge", "largest", "histogram", "hidden"}


def test_a_full_disk_loses_the_counts_of_a_process_that_has_ended_and_nothing_else(tmp_path, monkeypatch, caplog):
    one, other = SharedCounts(tmp_path, "one"), SharedCounts(tmp_path, "other")
    other.leave({"errorbar_up": [([], [1.0])]})

    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("service.counts._write", write)
    forget(tmp_path, "other")
    assert one.others() == []
    assert "the counts of a process that has ended are lost ([Errno 28] No space left on device)" in caplog.text
