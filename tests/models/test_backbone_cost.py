"""Costs of whole backbones: counted FLOPs, bytes really held, block calls really made."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import Backbone
from models.block import Block
from models.ops.twin import step_by_step
from tests.models.cases import (
    BACKBONE_CASES,
    CAUSAL_BACKBONES,
    LENGTH,
    VARYING,
    VOCABULARY,
    build_backbone,
)

STEADY = {case: config for case, config in BACKBONE_CASES.items() if case not in VARYING}
LOOPED = [case for case, config in STEADY.items() if config.depth.kind != "fixed"]
COUNTS = [(case, None) for case in STEADY] + [(case, 4) for case in LOOPED]
CAUSAL = [(case, loops) for case, loops in COUNTS if case in CAUSAL_BACKBONES]
PROMPT = 9


def unreal(case: str) -> Backbone:
    """Return a backbone without storage."""
    with torch.device("meta"):
        return Backbone(BACKBONE_CASES[case])


def tokens(length: int) -> torch.Tensor:
    return torch.empty(1, length, dtype=torch.long, device="meta")


def counted(run: Callable[[], Any]) -> int:
    with step_by_step(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("readouts", [1, PROMPT])
@pytest.mark.parametrize(("case", "loops"), COUNTS)
def test_cost_of_a_prompt_is_counted(case: str, loops: int | None, readouts: int) -> None:
    """Every position runs; as many as are asked for are read out."""
    backbone = unreal(case)

    def prompt() -> None:
        out = backbone(tokens(PROMPT), loops=loops)
        out.readout(out.hidden_BTD[:, -readouts:])

    analytic = backbone.prefill_cost(PROMPT, loops, readouts=readouts).flops
    assert analytic == pytest.approx(counted(prompt), rel=0.01)


@pytest.mark.parametrize(("case", "loops"), CAUSAL)
def test_reading_at_once_costs_what_its_tokens_cost(case: str, loops: int | None) -> None:
    backbone = unreal(case)
    tokenwise = [backbone.cost(context, loops).flops for context in range(1, LENGTH + 1)]
    at_once = backbone.prefill_cost(LENGTH, loops, readouts=LENGTH)
    assert at_once.flops == pytest.approx(sum(tokenwise))


@pytest.mark.parametrize("context", [1, PROMPT])
@pytest.mark.parametrize(("case", "loops"), CAUSAL)
def test_cost_of_a_decoded_token_is_counted(case: str, loops: int | None, context: int) -> None:
    backbone = unreal(case)
    state = backbone.init_state(1, context, "meta", loops=loops)
    if context > 1:
        with step_by_step():
            state = backbone(tokens(context - 1), None, state).state

    def token() -> None:
        out = backbone(tokens(1), None, state)
        out.readout(out.hidden_BTD)

    assert backbone.cost(context, loops).flops == pytest.approx(counted(token), rel=0.01)


@pytest.mark.parametrize(("case", "loops"), CAUSAL)
def test_bytes_held_are_bytes_counted(case: str, loops: int | None) -> None:
    backbone = unreal(case)
    for context in (2, LENGTH):
        state = backbone.init_state(1, context, loops=loops)
        assert state.nbytes == backbone.cost(context, loops).state_bytes > 0
        assert state.nbytes == backbone.prefill_cost(context, loops).state_bytes


@pytest.mark.parametrize(("case", "loops"), COUNTS)
def test_block_calls_are_the_calls_made(case: str, loops: int | None) -> None:
    backbone, calls = build_backbone(BACKBONE_CASES[case]), []
    for module in backbone.modules():
        if isinstance(module, Block):
            module.register_forward_hook(
                lambda _, given, __: calls.append(given[0][..., 0].numel())
            )
    out = backbone(torch.randint(VOCABULARY, (2, LENGTH)), loops=loops)
    expected = backbone.block_calls_per_position(loops)
    positions = sum(calls) / (2 * (backbone.latent.prefix + LENGTH))
    assert positions == expected == out.trajectory.block_calls
    at_once = len(backbone.depth.calls(backbone.depth.resolve_loops(loops)))
    assert len(calls) == at_once * backbone.latent.prompt_serial(LENGTH)
    assert backbone.prefill_cost(LENGTH, loops).serial_steps == len(calls)
    assert backbone.cost(3, loops).serial_steps == at_once * backbone.latent.token_serial()


SHARED = [case for case, config in STEADY.items() if "@" in config.layout]
PASSES = [case for case, config in STEADY.items() if config.latent.kind != "none"]
ONCE = [case for case in STEADY if case not in LOOPED + SHARED + PASSES]


@pytest.mark.parametrize("case", ONCE)
def test_weight_bytes_are_the_weights_read(case: str) -> None:
    """All weights, but for the embedding where it isn't the head: a token reads one row of it."""
    backbone = unreal(case)
    read = backbone.num_parameters
    if not backbone.config.tie_embeddings:
        read -= backbone.embedding.weight.numel()
    assert backbone.cost(4).weight_bytes == 4 * read
    assert backbone.prefill_cost(LENGTH).weight_bytes == 4 * read, "at once, weights are read once"


def test_each_loop_reads_its_weights_and_keeps_its_state() -> None:
    backbone = unreal("looped")  # a block before the loop, one in it, one after
    one, two, five = (backbone.cost(LENGTH, loops) for loops in (1, 2, 5))
    assert five.flops - one.flops == 4 * (two.flops - one.flops)
    assert five.weight_bytes - one.weight_bytes == 4 * (two.weight_bytes - one.weight_bytes) > 0
    assert five.state_bytes == 7 / 3 * one.state_bytes
