"""Analytic costs equal what a FLOP counter sees in the step-by-step twin, on the meta device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.cost import Cost, linear_flops, total
from models.mixer import Mixer
from models.ops.twin import step_by_step
from tests.models.cases import CAUSAL_MIXERS, LENGTH, MIXER_CASES, SITE

CONTEXTS = [1, 4, 13]


def counted(run: Callable[[], Any]) -> int:
    with step_by_step(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(params=MIXER_CASES, ids=lambda case: case.replace(" ", "_"))
def unreal(request: pytest.FixtureRequest) -> Mixer:
    """Each mixer in turn, without storage."""
    with torch.device("meta"):
        return MIXER_CASES[request.param].build(SITE)


@pytest.fixture(params=CAUSAL_MIXERS, ids=lambda case: case.replace(" ", "_"))
def unreal_causal(request: pytest.FixtureRequest) -> Mixer:
    """Each mixer that keeps a state, without storage."""
    with torch.device("meta"):
        return MIXER_CASES[request.param].build(SITE)


def inputs(length: int) -> torch.Tensor:
    return torch.empty(1, length, SITE.dim, device="meta")


@pytest.mark.parametrize("length", CONTEXTS)
def test_cost_of_reading_is_counted(unreal: Mixer, length: int) -> None:
    x = inputs(length)
    flops = counted(lambda: unreal(x))
    assert unreal.prefill_cost(length).flops == pytest.approx(flops, rel=0.01)


@pytest.mark.parametrize("length", CONTEXTS)
def test_a_state_makes_reading_no_dearer(unreal_causal: Mixer, length: int) -> None:
    unreal, x = unreal_causal, inputs(length)
    state = unreal.init_state(1, length, "meta", torch.float32)
    assert counted(lambda: unreal(x, None, state)) == counted(lambda: unreal(x))


@pytest.mark.parametrize("context", CONTEXTS)
def test_cost_of_decoding_is_counted(unreal_causal: Mixer, context: int) -> None:
    unreal = unreal_causal
    state = unreal.init_state(1, context, "meta", torch.float32)
    if context > 1:
        with step_by_step():
            _, state = unreal(inputs(context - 1), None, state)
    flops = counted(lambda: unreal(inputs(1), None, state))
    assert unreal.cost(context).flops == pytest.approx(flops, rel=0.01)


def test_reading_costs_what_its_tokens_cost(unreal_causal: Mixer) -> None:
    unreal = unreal_causal
    costs = [unreal.cost(context) for context in range(1, LENGTH + 1)]
    at_once = unreal.prefill_cost(LENGTH)
    assert at_once.flops == pytest.approx(sum(cost.flops for cost in costs))
    assert at_once.state_bytes == costs[-1].state_bytes, "a prompt leaves its last token's state"
    assert at_once.weight_bytes == costs[0].weight_bytes, "at once, weights are read once"


def test_weight_bytes_are_all_weights_in_float32(unreal: Mixer) -> None:
    assert unreal.cost(3).weight_bytes == 4 * sum(p.numel() for p in unreal.parameters())


def test_costs_add_and_scale() -> None:
    one = Cost(flops=1, weight_bytes=2, state_bytes=3, serial_steps=4)
    assert one + Cost(flops=10) == Cost(11, 2, 3, 4)
    assert 3 * one == one * 3 == Cost(3, 6, 9, 12)
    assert total([one, one, one]) == 3 * one
    assert total([]) == Cost()
    assert linear_flops(3, 5) == 30
