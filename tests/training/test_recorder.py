"""What a run says of itself while it trains."""

from __future__ import annotations

from pri3d.training.recorder import DataWait


def test_a_long_wait_for_data_is_explained_once() -> None:
    wait = DataWait(workers=1, cores=4)
    assert [wait.advise(fraction) for fraction in (0.9, 0.9, 0.1, 0.9, 0.4)] == [""] * 5  # never three in a row
    assert wait.advise(0.5) == "training waits for data 50% of the time: give more than 1 --workers"
    assert [wait.advise(1.0) for _ in range(9)] == [""] * 9


def test_where_all_cores_load_data_more_processes_are_not_advised() -> None:
    wait = DataWait(workers=3, cores=4)
    assert [wait.advise(0.8) for _ in range(3)][-1].endswith("use a local disk, or a smaller --size")
