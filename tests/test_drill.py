"""The fault drill: real runs, real signals, real damage; the long one is nightly."""

from pathlib import Path

import pytest

from tests.drill import DrillVerb, drill, main, summary


@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_a_short_drill(tmp_path: Path) -> None:
    """Killed, killed in the middle of a save, asked to stop, and a checkpoint's file cut short."""
    kinds = ["kill", "kill_in_save", "truncated"]
    outcomes = drill(DrillVerb(kinds=kinds, folder=str(tmp_path)))
    assert sorted(outcome.kind for outcome in outcomes) == sorted(kinds)
    assert [outcome.refused for outcome in outcomes].count(True) == 1
    assert "3 faults" in summary(outcomes).title


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("processes", "rounds"), [(1, 6), (2, 2)])
def test_a_long_drill(processes: int, rounds: int, tmp_path: Path) -> None:
    drill(DrillVerb(processes=processes, rounds=rounds, folder=str(tmp_path)).checked())


def test_impossible_drills_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["kinds=[stall]"])
    assert "drill: kinds=stall is not possible with processes=1" in capsys.readouterr().err
