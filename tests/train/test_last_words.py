"""What several processes know, one of them says; who has died is said, not who noticed."""

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from data.errors import one_line_errors
from train.last_words import lost_peers, speaking_once
from train.launch import LOST_PEERS, _failure

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] "


def ended(error: Exception) -> object:
    """The status of a process of a run that meets an error."""
    with pytest.raises(SystemExit) as stop, one_line_errors("train"), speaking_once():
        raise error
    return stop.value.code


def test_what_all_know_is_said_once_and_faults_by_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folders are those that torchrun's agent makes: one for each process."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    for rank in ("0", "1", "2"):
        (tmp_path / rank).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        assert ended(ArithmeticError("step 3: loss nan")) == 2
        assert ended(ValueError(f"only {rank} knows")) == 2
        with pytest.raises(KeyError), one_line_errors("train"), speaking_once():
            raise KeyError("a fault of the program")
    lines = [f"train: only {rank} knows" for rank in "012"]
    assert capsys.readouterr().err.splitlines() == ["train: step 3: loss nan", *lines]
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert ended(ArithmeticError("step 3: loss nan")) == 2  # alone, there is nobody else
    assert "step 3" in capsys.readouterr().err


def test_a_broken_connection_is_told_from_other_faults() -> None:
    """The whole way is walked in test_launch: one process is killed, and the other says nothing."""
    assert lost_peers(RuntimeError(f"{GLOO}Connection closed by peer [127.0.0.1]:14728"))
    assert lost_peers(RuntimeError(f"{GLOO}Read error [::1]:1: Connection reset by peer. GLHF!"))
    assert not lost_peers(RuntimeError(f"{GLOO}Timed out waiting 1800000ms for recv operation"))
    assert not lost_peers(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lost_peers(BrokenPipeError("Broken pipe"))


@pytest.mark.parametrize(
    ("statuses", "line", "status"),
    [
        ((LOST_PEERS, -9), "process 1 was killed by SIGKILL", 137),
        ((LOST_PEERS, 1), "process 1 ended with status 1", 1),
        ((LOST_PEERS, LOST_PEERS), "process 0 has lost the others", LOST_PEERS),
    ],
)
def test_the_one_that_died_is_named(statuses: tuple[int, int], line: str, status: int) -> None:
    failures = {rank: ProcessFailure(rank, 1, code, "") for rank, code in enumerate(statuses)}
    found = _failure(ChildFailedError("train", failures))
    assert (str(found), found.status) == (line, status) and not found.is_final
