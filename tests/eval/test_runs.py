"""Run folders are found, read, told apart, and refused with the way out."""

import re

import pytest

from eval.findings import gather
from eval.runs import RunError, find_runs, read_runs


@pytest.fixture
def one_run(tmp_path, answers, make_run):
    return make_run(tmp_path / "exp" / "only", answers("transformer", items=5))


def test_runs_are_found_under_an_experiment(experiment):
    found, unevaluated = find_runs([experiment])
    assert [folder.name for folder in found] == sorted(folder.name for folder in found)
    assert len(found) == 5
    assert unevaluated == []


def test_files_of_loggers_are_no_runs(one_run):
    inner = one_run / "wandb" / "files"
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("a: 1")
    (one_run.parent / "plots").mkdir()
    (one_run.parent / "plots" / "config.yaml").write_text("a: 1")
    assert find_runs([one_run.parent]) == ([one_run], [])


def test_a_run_named_twice_is_read_once(one_run):
    assert find_runs([one_run, one_run.parent])[0] == [one_run]


def test_unevaluated_runs_are_mentioned(one_run):
    other = one_run.parent / "trained"
    other.mkdir()
    (other / "cost.json").write_text("{}")
    findings = gather([one_run.parent], 0.9)
    assert findings.unevaluated == [other]
    assert "not evaluated, so not shown: trained" in " ".join(findings.notes())


def test_no_ledger_names_the_command_that_makes_one(one_run):
    (one_run / "ledger.parquet").unlink()
    with pytest.raises(RunError, match=re.escape(f"python -m eval run={one_run}")) as refused:
        find_runs([one_run.parent])
    assert str(one_run.parent) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "missing"), ("{", "not JSON"), ("[]", "must hold an object"), ("{}", "`parameters`")],
)
def test_cost_without_parameters_names_the_file(one_run, content, says):
    file = one_run / "cost.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(RunError, match=says) as refused:
        read_runs([one_run])
    assert str(file) in str(refused.value)


def test_runs_of_one_backbone_are_told_apart(tmp_path, answers, make_run):
    for experiment in ("first", "second"):
        make_run(tmp_path / experiment / "run", answers("transformer", items=5))
    runs = read_runs(find_runs([tmp_path])[0])
    assert len({run.label for run in runs}) == len({run.name for run in runs}) == 2
    findings = gather([tmp_path], 0.9)
    assert findings.points["label"].n_unique() == 2
