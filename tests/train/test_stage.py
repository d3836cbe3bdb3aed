"""Stages, their schedules, and what trains in them."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from eval.checkpoint import checkpoint_path, read_checkpoint
from models.depth.draws import Draws
from tests.train.runs import LOOPED, metrics, small_backbone, train, with_trainer
from train.config import RunConfig
from train.objective_config import ObjectiveConfig
from train.schedule import ScheduleConfig, warmup_stable_decay
from train.stage import Place, StageConfig, StagePlan, set_trainable


def shares(config: ScheduleConfig, steps: int) -> list[float]:
    return [warmup_stable_decay(config, step, steps) for step in range(steps)]


def test_it_warms_up_stays_and_decays() -> None:
    curve = shares(ScheduleConfig(warmup=0.1, decay=0.3, final=0.1), 100)
    assert curve[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert curve[10:70] == [1.0] * 60
    assert curve[70] == 1.0
    assert curve[71] == pytest.approx(0.1 + 0.9 * 29 / 30)
    assert curve[99] == pytest.approx(0.1 + 0.9 / 30)
    falls = [before - after for before, after in pairwise(curve[70:])]
    assert falls == pytest.approx([0.9 / 30] * 29)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("decay", [0.0, 0.4, 1.0])
def test_every_step_learns_something(steps: int, warmup: float, decay: float) -> None:
    if warmup + decay <= 1:
        curve = shares(ScheduleConfig(warmup, decay), steps)
        assert all(0 < share <= 1 for share in curve)


def test_without_warm_up_and_decay_it_is_constant() -> None:
    assert shares(ScheduleConfig(warmup=0, decay=0), 5) == [1.0] * 5


@pytest.mark.parametrize(
    "config",
    [
        ScheduleConfig(warmup=-0.1),
        ScheduleConfig(warmup=0.7, decay=0.4),
        ScheduleConfig(decay=math.nan),
        ScheduleConfig(final=1.5),
        ScheduleConfig(final=math.nan),
    ],
)
def test_impossible_schedules_are_named(config: ScheduleConfig) -> None:
    with pytest.raises(ValueError, match=r"stages\[0\]\.schedule\.(warmup|final)="):
        StageConfig(schedule=config).validate("stages[0]")


def test_impossible_objectives_are_named() -> None:
    for objective, key in (
        (ObjectiveConfig(chunk_size=0), "chunk_size=0"),
        (ObjectiveConfig(z_loss=-1.0), "z_loss=-1.0"),
        (ObjectiveConfig(z_loss=math.nan), "z_loss=nan"),
    ):
        with pytest.raises(ValueError, match=rf"stages\[2\]\.objective\.{key}"):
            StageConfig(objective=objective).validate("stages[2]")


def test_stages_lie_end_to_end() -> None:
    plan = StagePlan([StageConfig("a", 3), StageConfig("b", 1), StageConfig("c")], 10)
    assert plan.lengths == [3, 1, 6]
    assert [(plan.place(step).stage, plan.place(step).step) for step in range(10)] == [
        *((0, 0), (0, 1), (0, 2)),
        (1, 0),
        *((2, step) for step in range(6)),
    ]
    assert plan.place(10) == plan.place(99) == Place(2, 5, 6)


def test_each_stage_has_its_own_schedule() -> None:
    flat = ScheduleConfig(warmup=0, decay=0)
    rising = ScheduleConfig(warmup=1.0, decay=0)
    plan = StagePlan([StageConfig(steps=2, schedule=flat), StageConfig(schedule=rising)], 6)
    expected = [1.0, 1.0, 0.25, 0.5, 0.75, 1.0]
    assert [plan.learning_rate_share(step) for step in range(6)] == expected


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "stages is empty"),
        ([None, 3], "only the last stage may take what is left"),
        ([None, None], "only the last stage may take what is left"),
        ([11], "ask for 11 steps, trainer.max_steps=10: raise trainer.max_steps"),
        ([10, None], "raise trainer.max_steps or shorten the stages"),
        ([0, 10], "each needs at least 1 step"),
        ([4, 5], "make them equal, or set the last stage's steps to null"),
    ],
)
def test_stages_that_do_not_fit_are_refused(steps: list[int | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StagePlan([StageConfig(steps=length) for length in steps], 10)


def test_a_part_is_a_whole_name() -> None:
    """`blocks.1` is not `blocks.10`."""
    module = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(1, 1) for _ in range(11))})
    module["head"] = nn.Linear(1, 1)
    set_trainable(module, ["blocks.1", "head.bias"])
    training = {name for name, p in module.named_parameters() if p.requires_grad}
    assert training == {"blocks.1.weight", "blocks.1.bias", "head.bias"}
    set_trainable(module, [])
    assert all(p.requires_grad for p in module.parameters())
    with pytest.raises(ValueError, match=r"no part block; its parts are blocks, head"):
        set_trainable(module, ["block"])


def test_parts_are_frozen_in_one_stage_and_freed_in_the_next(
    run_at: Callable[..., RunConfig],
) -> None:
    """The first stage is long enough for the zero-initialised outputs to let gradients through."""
    stages = [StageConfig("all", 4), StageConfig("head", 2, trainable=["head"]), StageConfig("end")]
    config = with_trainer(run_at(stages=stages), max_steps=8, checkpoint_every=1, keep_last=10)
    run = train(config)
    saved = [read_checkpoint(checkpoint_path(run, step))["state_dict"] for step in range(1, 9)]

    def changed(step: int) -> set[str]:
        before, after = saved[step - 2], saved[step - 1]
        return {name for name, weight in after.items() if not torch.equal(weight, before[name])}

    assert changed(4) == changed(7) == changed(8) == set(saved[0])
    assert changed(5) == changed(6) == {"objective.backbone.head.weight"}
    names = [row["stage"] for row in metrics(run)]
    assert names == ["all"] * 4 + ["head"] * 2 + ["end"] * 2


def test_a_stage_draws_its_own_loops(run_at: Callable[..., RunConfig]) -> None:
    config = run_at(backbone=small_backbone(depth=LOOPED))
    config = replace(config, stages=[StageConfig("a", 6), StageConfig("b")])
    loops = [int(row["loops"]) for row in metrics(train(config))]
    draws = [Draws(0, stage, step, 6) for stage in (0, 1) for step in range(6)]
    expected = [LOOPED.law().draw(each.key("loops")) for each in draws]
    assert loops == expected
    assert set(loops) == {1, 2, 3}


def test_a_part_that_is_not_there_is_refused_before_any_work(
    run_at: Callable[..., RunConfig],
) -> None:
    config = run_at(stages=[StageConfig("a", 6), StageConfig("b", trainable=["heads"])])
    with pytest.raises(ValueError, match=r"stages\[1\]\.trainable: the backbone has no part heads"):
        train(config)
