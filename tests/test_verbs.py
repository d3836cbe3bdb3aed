"""The verbs as a person meets them: help, last lines, refusals, and what they leave behind."""

import json
import runpy
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

from eval.checkpoint import checkpoints, remove_checkpoint
from eval.runs import find_runs
from tests.train.runs import SMALL, metrics
from train.schema import register_schemas, to_config

pytestmark = pytest.mark.filterwarnings("ignore:.*anonymous.*")
TINY = (*SMALL, "trainer.max_steps=2", "trainer.validate_every=0", "parallel.accelerator=cpu")


@dataclass
class Said:
    """What a verb answered."""

    status: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Give the function that runs `python -m VERB ...` in an empty folder, inside this process."""
    monkeypatch.chdir(tmp_path)

    def verb(name: str, *arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        module = name if "." in name else f"{name}.__main__"
        monkeypatch.delitem(sys.modules, module, raising=False)  # else runpy warns of two of it
        capsys.readouterr()
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
            status: object = 0
        except SystemExit as stop:
            status = stop.code or 0
        assert isinstance(status, int), status
        return Said(status, *capsys.readouterr())

    return verb


HELPS = {
    "data": "corpus: FOLDER",
    "data.inspect": "python -m data.inspect task=",
    "train": "run: FOLDER",
    "train.study": "python -m train.study experiment=quickstart",
    "train.plan": "plan: FILE",
    "train.concepts": "concepts: FOLDER",
    "train.publish": "export: PLACE",
    "train.sync": "synced: FOLDER",
    "train.consolidate": "model.safetensors in the run's folder",
    "train.sbatch": "python -m train.sbatch launcher=slurm experiment=smoke",
    "eval": "python -m eval run=",
    "eval.report": "python -m eval.report runs=",
    "eval.thoughts": "python -m eval.thoughts run=",
    "eval.chunks": "python -m eval.chunks run=",
}


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("name", HELPS)
def test_help_says_what_a_verb_is_for(name: str, flag: str, run: Run, tmp_path: Path) -> None:
    said = run(name, flag)
    assert (said.status, said.err) == (0, "")
    assert HELPS[name] in said.out
    assert f"  python -m {name}" in said.out, "an example"
    assert "Hydra" not in said.out and "powered by" not in said.out
    assert max(map(len, said.out.splitlines())) <= 100
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train", "data"])
def test_helps_examples_work(name: str, run: Run) -> None:
    """Every command that the help shows composes; a sweep's for each of its values."""
    lines = run(name, "--help").out.replace("\\\n", " ").splitlines()
    examples = [line for line in lines if line.startswith(f"  python -m {name} ")]
    assert len(examples) >= 4
    register_schemas()
    for example in examples:
        command = example.strip().removeprefix(f"python -m {name} ").split("   ")[0]
        overrides = shlex.split(command.replace(" -m ", " ").removeprefix("-m "))
        chosen = [word.replace("0,1,2", "2") for word in overrides if "=" in word]
        with initialize_config_module(config_module="configs", version_base="1.3"):
            to_config(compose("train", chosen))


def test_help_lists_the_choices(run: Run) -> None:
    said = run("train", "--help").out
    for choice in ("experiment=smoke", "backbone=gdn_hybrid", "depth=looped", "optim=adamw"):
        assert f"  {choice} " in said


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("train", ["trainr.max_steps=3"], "train: trainr is not a setting: choose one of "),
        ("train", ["optim.lr=fast"], "train: optim.lr: Value 'fast' of type 'str'"),
        ("train", ["backbone=gru"], "train: In 'train': Could not find 'backbone/gru'"),
        ("train", ["backbone.head_dim=24"], "train: backbone.mixers.attn: head_dim=24 doesn't"),
        ("train", ["--cfg", "job", "backbone.head_dim=24"], "train: backbone.mixers.attn: head_"),
        ("train", ["--cfg", "job", "seeed=1"], "train: seeed is not a setting"),
        ("train", ["parallel.accelerator=cuda"], "train: parallel.accelerator=cuda, but torch"),
        ("data", ["data.contxt=64"], "data: data.contxt is not a setting: choose one of name"),
        ("data", ["data.context=2"], "data: data.context=2 is not possible; allowed: a whole"),
        ("train.study", ["experiment=smoke"], "study: study.runs is empty: choose an experiment"),
        ("train.study", ["experiment=quickstart", "sed=1"], "study: sed is not a setting"),
        ("train.study", ["experiment=quickstart", "study.jobs=0"], "study: study.jobs=0 must be"),
        ("eval", ["run=nowhere"], "eval: run=nowhere is no run folder"),
        ("train.publish", ["run=x", "to=a b/c"], "train.publish: to=a b/c is no name of the hub"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    name: str, arguments: list[str], line: str, run: Run, tmp_path: Path
) -> None:
    if "parallel.accelerator=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said = run(name, *arguments)
    assert said.status == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith(line)
    # A sweep's folder is made before its first run is looked at.
    left = [path for path in tmp_path.rglob("*") if path.is_file() and ".sweep" not in path.parts]
    assert not left


def test_cfg_prints_every_setting_and_trains_nothing(run: Run, tmp_path: Path) -> None:
    said = run("train", "experiment=smoke", "--cfg", "job")
    assert (said.status, said.err) == (0, "")
    assert "experiment_name: smoke" in said.out and "num_heads: null" in said.out
    assert not list(tmp_path.iterdir())


def test_from_a_corpus_to_a_report(run: Run, tmp_path: Path) -> None:
    """Each verb's last line names what was made; nothing else lies around."""
    command = ("experiment=smoke", *TINY)
    said = run("data", *command)
    assert said.status == 0, said.err
    corpus = Path(said.out.splitlines()[-1].removeprefix("corpus: "))
    assert corpus.is_dir() and corpus.parent == Path("corpora")
    assert run("data", *command).out == said.out

    said = run("train", *command, "logger=wandb")
    assert said.status == 0, said.err
    folder = Path(said.out.splitlines()[-1].removeprefix("run: "))
    assert folder.parent == Path("runs/smoke")
    assert len(metrics(folder)) == 2 and len(list((folder / "wandb").glob("offline-run-*"))) == 1
    assert str(corpus) in (folder / "config.yaml").read_text()
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["command"].endswith(shlex.join(sys.orig_argv[1:]))

    few = ("eval.items=3", "eval.latency_items=0", "device=cpu")
    said = run("eval", f"run={folder}", *few)
    assert said.status == 0, said.err
    assert said.out.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert (folder / "ledger.parquet").is_file()

    said = run("eval.thoughts", f"run={folder}")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith(f"eval.thoughts: {folder}: it has neither thoughts nor loops")

    said = run("eval.report", "runs=runs/smoke", "output=all.html")
    assert said.status == 0, said.err
    assert said.out.splitlines()[-1] == "report: all.html"
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".png"} == {
        *("corpora", "runs", "all.html"),
    }


@pytest.mark.nightly
def test_a_sweep_makes_a_run_for_each_value_and_skips_what_is_done(
    run: Run, tmp_path: Path
) -> None:
    command = ("-m", "seed=0,1", "experiment=smoke", *TINY, "logger=wandb")
    said = run("train", *command)
    assert said.status == 0, said.err
    folders = [Path(line.removeprefix("run: ")) for line in said.out.splitlines()]
    for folder, seed in zip(folders, (0, 1), strict=True):
        assert folder.name.startswith(f"transformer-s{seed}-")
        assert f"seed: {seed}\n" in (folder / "config.yaml").read_text()
        (offline,) = (folder / "wandb").glob("offline-run-*")
        assert (offline / f"run-{folder.name}.wandb").is_file(), "each run has its own W&B run"
    assert {path.name for path in tmp_path.iterdir()} == {"corpora", "runs"}
    beside = {path.name for path in (tmp_path / "runs" / "smoke").iterdir()}
    assert beside - {".sweep"} == {folder.name for folder in folders}
    losses = [metrics(folder)[-1]["loss"] for folder in folders]
    assert losses[0] != losses[1]

    path = checkpoints(folders[1])[-1]
    remove_checkpoint(path)
    again = run("train", *command)
    assert again.out == said.out
    assert again.err.count(": training\n") == 1
    assert path.is_dir()
    for folder in folders:
        (folder / "ledger.parquet").touch()
    assert find_runs([Path("runs/smoke")])[0] == sorted(folders)
