"""Losses don't depend on how a global batch is cut over micro-batches and processes."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from data.batch import Batch
from data.corpus import Corpus
from data.module import CorpusModule, StepRows
from data.order import GlobalOrder
from models.depth.looped import LoopedDepthConfig
from tests.train.runs import (
    GATED,
    LOOPED,
    SMALL,
    VECTORS,
    launch,
    metrics,
    small_backbone,
    start,
    train,
    wait_for_rows,
)
from train.config import ParallelConfig, RunConfig
from train.optim import OptimConfig
from train.pretrain import pretrain
from train.schema import register_schemas, to_config

STEPS = 30
ROWS = 8


def step_rows(corpus: Corpus, rank: int = 0, world: int = 1, accumulate: int = 1) -> StepRows:
    """Two stages: the second begins at step 12."""

    def place(step: int) -> tuple[int, int, int]:
        return (0, step, 12) if step < 12 else (1, step - 12, STEPS - 12)

    rows = corpus.split("train")
    return StepRows(rows, ROWS, 7, place, range(STEPS), rank, world, accumulate)


@pytest.fixture(scope="module")
def corpus(corpus_path: Path) -> Corpus:
    return Corpus.open(corpus_path)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_parts_cover_each_global_batch_once(corpus: Corpus, world: int, accumulate: int) -> None:
    feeds = [step_rows(corpus, rank, world, accumulate) for rank in range(world)]
    for step in range(STEPS):
        parts = [part for feed in feeds for part in feed.micro_batches(feed.indices(step))]
        assert len(parts) == world * accumulate
        assert {len(part) for part in parts} == {ROWS // (world * accumulate)}
        whole = step_rows(corpus).indices(step)
        assert sorted(np.concatenate(parts)) == sorted(whole)


def test_a_micro_batch_holds_the_same_rows_at_any_number_of_processes(corpus: Corpus) -> None:
    """What accumulation adds up in one process, several processes add up at once."""
    indices = step_rows(corpus).indices(3)
    alone = step_rows(corpus, accumulate=4).micro_batches(indices)
    side_by_side = [step_rows(corpus, rank, 4, 1).micro_batches(indices)[0] for rank in range(4)]
    assert [list(part) for part in alone] == [list(part) for part in side_by_side]


@pytest.mark.parametrize("start", [0, 1, 11, 12, 29])
def test_the_stream_from_a_step_is_the_tail_of_the_whole(corpus: Corpus, start: int) -> None:
    """Also over the stages' border, after which the order is another."""
    whole = step_rows(corpus, accumulate=2)
    tail = step_rows(corpus, accumulate=2)
    tail.steps = range(start, STEPS)
    expected = [*whole][2 * start :]
    assert len(expected) == 2 * (STEPS - start)
    for mine, theirs in zip(tail, expected, strict=True):
        assert mine.tokens_BT.equal(theirs.tokens_BT)
        assert mine.loss_BT.equal(theirs.loss_BT)
        assert mine.denominator == theirs.denominator


def test_the_denominator_is_the_whole_batchs(corpus: Corpus) -> None:
    for step in (0, 17):
        (whole,) = _batches(step_rows(corpus), step)
        parts = [
            batch for rank in (0, 1) for batch in _batches(step_rows(corpus, rank, 2, 2), step)
        ]
        weights = [float(part.loss_BT.sum()) for part in parts]
        assert len(set(weights)) > 1, "parts of equal weight show nothing"
        assert sum(weights) == pytest.approx(float(whole.loss_BT.sum()))
        assert {float(part.denominator) for part in parts} == {float(whole.denominator)}
        assert float(whole.denominator) == pytest.approx(float(whole.loss_BT.sum()))


def _batches(feed: StepRows, step: int) -> list[Batch]:
    feed.steps = range(step, step + 1)
    return [*feed]


def test_a_stage_has_its_own_order(corpus: Corpus) -> None:
    feed, phases = step_rows(corpus), corpus.split("train").phases
    assert list(feed.indices(13)) == list(GlobalOrder(phases, ROWS, 7, stage=1).indices(1))
    assert list(feed.indices(13)) != list(feed.indices(1))


def test_validation_batches_share_one_denominator(corpus: Corpus) -> None:
    def module(validation_rows: int) -> CorpusModule:
        return CorpusModule(corpus, ROWS, validation_rows, 0, lambda step: (0, step), STEPS)

    held_out = corpus.split("validation")
    batches = module(validation_rows=10_000).validation_batches()
    assert sum(len(batch.tokens_BT) for batch in batches) == held_out.num_rows
    weight = sum(float(batch.loss_BT.sum()) for batch in batches)
    for batch in batches:
        assert float(batch.denominator) == pytest.approx(weight)
    assert sum(len(batch.tokens_BT) for batch in module(3).validation_batches()) == 3
    assert module(0).validation_batches() == []


EXPERT = LoopedDepthConfig(loops=3, route="expert")


CUT = {
    "looped": small_backbone(depth=LOOPED),
    "gated": small_backbone(depth=GATED),
    "expert": small_backbone(depth=EXPERT),
    "vectors": small_backbone(latent=VECTORS),
}


@pytest.mark.parametrize("case", CUT)
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_no_loss(
    run_at: Callable[..., RunConfig], accumulate: int, case: str
) -> None:
    config = run_at(backbone=CUT[case], optim=OptimConfig("adamw", lr=0.01))
    run = train(config)
    whole = metrics(run)
    shutil.rmtree(run)
    parallel = ParallelConfig(accelerator="cpu", accumulate=accumulate)
    assert train(replace(config, parallel=parallel)) == run
    assert_equal_up_to_rounding(metrics(run), whole)


def assert_equal_up_to_rounding(run: list[dict[str, str]], other: list[dict[str, str]]) -> None:
    assert len(run) == len(other) > 0
    for mine, theirs in zip(run, other, strict=True):
        for key, value in mine.items():
            if key not in EXACT and value:
                close = pytest.approx(float(theirs[key]), rel=LOOSE.get(key, 1e-5))
                assert float(value) == close, (key, mine)
            else:
                assert value == theirs[key]


LOOSE = dict.fromkeys(("posterior_kl", "update_ratio_matrices", "update_ratio_rest"), 1e-3)
"""Adam's first steps are as long for a gradient of 1e-7, which rounding turns, as for any other."""
EXACT = ("step", "stage", "learning_rate", "loops", "tokens", "seconds")

_SHORT = (
    *("experiment=smoke", *SMALL, "optim=adamw"),
    *("trainer.max_steps=12", "trainer.checkpoint_every=4", "trainer.validate_every=4"),
    *("parallel.accelerator=cpu", "parallel.accumulate=2"),
)
DISTRIBUTED = (
    *(*_SHORT, "backbone=looped", "depth=looped"),
    *("backbone.depth.loops=2", "backbone.depth.max_loops=3"),
)
ROUTED = (*_SHORT, "backbone=mor", "backbone.depth.route=token", "backbone.num_layers=3")
PLAIN = (*_SHORT, "backbone=transformer")
HYBRID = (*_SHORT, "backbone=gdn_hybrid", "backbone.num_layers=4", "optim.lr=1e-4")
"""Slowly: at the usual rate, weights that are 1e-7 apart have gradients 1e-2 apart in ten steps."""


@pytest.mark.multiprocess
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("command", "name", "loops"),
    [
        pytest.param(DISTRIBUTED, "looped", {"1", "2", "3"}, id="looped"),
        pytest.param(ROUTED, "mor", {"3"}, id="routed", marks=pytest.mark.nightly),
        pytest.param(PLAIN, "transformer", {"1"}, id="transformer", marks=pytest.mark.nightly),
        pytest.param(HYBRID, "gdn_hybrid", {"1"}, id="hybrid", marks=pytest.mark.nightly),
    ],
)
def test_two_processes_train_as_one(
    tmp_path: Path, command: tuple[str, ...], name: str, loops: set[str]
) -> None:
    """Real ones over gloo; a loop of one leaves a norm without gradient, of which DDP must know."""
    status, out, err = launch("train", *command, "parallel.devices=2", cwd=tmp_path)
    assert status == 0, err
    (run,) = (tmp_path / "runs" / "smoke").iterdir()
    assert out == f"run: {run.relative_to(tmp_path)}\n"
    assert err.count(f"training {name}") == 1
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("checkpoints", "config.yaml", "corpus.json", "cost.json", "environment.json"),
        *("metrics.csv", ".lock", "heartbeat"),
    }
    assert {path.name for path in tmp_path.iterdir()} == {"corpora", "runs"}
    register_schemas()
    with initialize_config_module(config_module="configs", version_base="1.3"):
        place = [f"runs={tmp_path / 'alone'}", f"data.root={tmp_path / 'corpora'}"]
        alone = pretrain(*to_config(compose("train", [*command, *place])))
    assert alone.name == run.name
    assert {row["loops"] for row in metrics(run)} == loops
    assert_equal_up_to_rounding(metrics(run), metrics(alone))


@pytest.mark.nightly
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_two_processes_stop_together_and_go_on(tmp_path: Path) -> None:
    """The signal reaches the first one only."""
    command = (*DISTRIBUTED, "trainer.max_steps=300", "trainer.checkpoint_every=1000")
    process = start("train", *command, "parallel.devices=2", cwd=tmp_path)
    try:
        wait_for_rows(tmp_path / "runs" / "smoke", 20, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    (run,) = (tmp_path / "runs" / "smoke").iterdir()
    assert (process.returncode, out) == (143, "")
    assert err.count("saved; the same command goes on from there") == 1
    assert 20 <= len(metrics(run)) < 300
    whole = (*command, "experiment_name=whole")
    for arguments in (command, whole):
        status, out, err = launch("train", *arguments, "parallel.devices=2", cwd=tmp_path)
        assert status == 0, err
    assert metrics(run) == metrics(tmp_path / "runs" / "whole" / run.name)
