"""Latent thought vectors with states and loops, in every mixer; what they cost; what is refused."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.backbone import Backbone
from models.block import Block
from models.depth.health import loop_health
from models.depth.looped import LoopedDepthConfig
from models.latent.documents import number_documents
from models.latent.fronts import Fronted
from models.mixers.listing import MIXERS
from models.ops.twin import step_by_step
from tests.models.cases import (
    CAUSAL_MIXERS,
    ROUNDING,
    VOCABULARY,
)
from tests.models.vectors import (
    ANSWER,
    DRAWS,
    LAYOUTS,
    LENGTH,
    QUESTION,
    SEGMENTS,
    VECTORS,
    logits,
    logits_of,
    made,
    roles,
    tokens,
    with_,
)


@pytest.fixture(params=LAYOUTS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return made(request.param)


# States


def left_padded(lengths: list[int], longest: int) -> tuple[Tensor, Tensor]:
    read = torch.randint(VOCABULARY, (len(lengths), longest))
    segments = torch.full_like(read, -1)
    for row, length in enumerate(lengths):
        segments[row, longest - length :] = 0
    return read, segments


def alone(backbone: Backbone, question: Tensor, answer: Tensor) -> Tensor:
    """Logits of an answer's tokens in one pass over the document."""
    read = torch.cat([question, answer])[None]
    own = torch.full_like(read, ANSWER)
    own[:, : len(question)] = QUESTION
    out = backbone(read, torch.zeros_like(read), roles_BT=own)
    return logits_of(out)[0, len(question) :]


@pytest.mark.parametrize("layout", [kind for kind in MIXERS if kind in CAUSAL_MIXERS])
def test_every_mixer_infers_and_decodes(layout: str) -> None:
    """In inference mode first, so that nothing made there is left in the way of a gradient."""
    backbone = made(layout)
    read, asked = torch.randint(VOCABULARY, (2, 9)), torch.full((2, 6), QUESTION)
    with torch.inference_mode():
        state = backbone.init_state(2, 9, dtype=torch.float64)
        state = backbone(read[:, :6], torch.zeros(2, 6).long(), state, roles_BT=asked).state
        y = logits_of(backbone(read[:, 6:], None, state))
    for row in range(2):
        expected = alone(backbone, read[row, :6], read[row, 6:])
        torch.testing.assert_close(y[row], expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("inference", [False, True])
def test_a_prompt_is_fitted_and_its_answer_decoded(backbone: Backbone, inference: bool) -> None:
    """As generation does: rows leave, fork and enter; each is as one pass over all of it is."""
    with torch.inference_mode(inference):
        read, segments = left_padded([7, 3, 1], 7)
        asked = torch.full_like(read, QUESTION)
        state = backbone.init_state(3, 20, dtype=torch.float64)
        state = backbone(read, segments, state, roles_BT=asked).state
        assert state is not None
        prompts = [own[real >= 0] for own, real in zip(read, segments, strict=True)]
        kept = [2, 0, 0]
        state, questions = state.take(torch.tensor(kept)), [prompts[row] for row in kept]
        said = torch.randint(VOCABULARY, (3, 2))
        logits_of(backbone(said, None, state))
        (entering,) = torch.randint(VOCABULARY, (1, 5))
        fresh = backbone.init_state(1, 20, dtype=torch.float64)
        fresh = backbone(entering[None], None, fresh, roles_BT=asked[:1, :5]).state
        state.put(torch.tensor([1]), fresh)
        questions[1] = entering
        new = torch.randint(VOCABULARY, (3, 3))
        y = torch.cat([logits_of(backbone(new[:, t : t + 1], None, state)) for t in range(3)], 1)
    for row, question in enumerate(questions):
        before = said[row] if row != 1 else said[row, :0]
        expected = alone(backbone, question, torch.cat([before, new[row]]))[len(before) :]
        torch.testing.assert_close(y[row], expected, rtol=1e-8, atol=1e-9)


def test_rows_that_begin_and_rows_that_go_on_share_a_call(backbone: Backbone) -> None:
    """A row of a state that was emptied starts over, beside others, without segments and with."""
    first, second = torch.randint(VOCABULARY, (2, 2, 4))
    expected = [
        logits_of(backbone(torch.cat([first[:1], second[:1]], dim=1)))[0, 4:],
        logits_of(backbone(second[1:]))[0],
    ]
    for segments in (None, torch.tensor([[0] * 4, [7] * 4])):
        state = backbone.init_state(2, 20, dtype=torch.float64)
        state = backbone(first, torch.zeros_like(first), state).state
        assert state is not None
        if segments is None:
            state.put(torch.tensor([1]), backbone.init_state(1, 20, dtype=torch.float64))
        y = logits_of(backbone(second, segments, state))
        for row in range(2):
            torch.testing.assert_close(y[row], expected[row], **ROUNDING)


# Layout, precision, loops


def test_vectors_stand_in_front_of_their_documents() -> None:
    segments = torch.tensor([[-1, 0, 0, 3], [5, 5, 5, 5]])
    number, count = number_documents(segments)
    assert (number.tolist(), count) == ([[-1, 0, 0, 1], [2, 2, 2, 2]], 3)
    laid = Fronted.of(segments, number, torch.ones_like(segments, dtype=torch.bool), count, 2)
    assert laid.source_BL.tolist() == [[0, 8, 9, 1, 2, 10, 11, 3], [12, 13, 4, 5, 6, 7, 14, 14]]
    assert laid.segments_BL is not None
    assert laid.segments_BL.tolist() == [[-1, 0, 0, 0, 0, 3, 3, 3], [5] * 6 + [-1] * 2]
    assert torch.equal(laid.tokens_of(laid.source_BL), torch.arange(8).view(2, 4))
    number, count = number_documents(segments, torch.tensor([False, True]))
    assert (number.tolist(), count) == ([[-1, 0, 0, 1], [-1] * 4], 2)
    kept = torch.tensor([[True, True, False, False], [False] * 4])
    part = Fronted.of(segments, number, kept, count, 2)
    assert part.source_BL.tolist() == [[0, 8, 9, 1], [12] * 4]


def test_it_trains_under_autocast() -> None:
    backbone, read = made().float(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        y = logits(backbone, read, DRAWS)
    y.float().square().mean().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_states_of_loops_keep_the_vectors_positions() -> None:
    """What a recorded state finishes as, and its health, are of the right positions."""
    backbone = made(depth=LoopedDepthConfig(loops=3, coda=1), num_layers=2)
    out = backbone(tokens(), SEGMENTS, roles_BT=roles(), record=True, layers=True)
    ran = out.trajectory
    torch.testing.assert_close(out.finish(ran.states[-1]), out.hidden_BTD, **ROUNDING)
    assert all(layer.shape[:2] == (2, LENGTH) for layer in ran.layers)
    assert ran.segments_BT is not None and ran.states[0].shape[:2] == ran.segments_BT.shape
    assert loop_health(ran, SEGMENTS)["state_norm"] > 0


# What it costs


class EveryModule(nullcontext[None]):
    """Says of all modules that they are one."""

    parents = frozenset({"Global"})


@pytest.mark.parametrize("question", [2, 9])
def test_what_a_fit_runs_is_what_it_says(question: int) -> None:
    backbone, calls = made(), []
    for module in backbone.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda _, given, __: calls.append(given[0].shape[1]))
    read, own = torch.randint(VOCABULARY, (1, 12)), torch.full((1, 12), ANSWER)
    own[:, :question] = QUESTION
    backbone(read, torch.zeros_like(read), roles_BT=own)
    fitting, layers = backbone.fitting(question), 2
    once = [3 + question - 1] * layers * VECTORS.inner_steps
    assert calls == once + [3 + 12] * layers
    assert fitting.passes * layers == 3 * sum(once)
    assert fitting.cost.serial_steps == 2 * len(once)
    assert fitting.latent_steps == 3 * VECTORS.inner_steps


def test_a_fit_costs_at_most_what_is_counted(backbone: Backbone) -> None:
    """Three forward passes are an upper bound: no gradient by the weights is taken."""
    read, own = torch.randint(VOCABULARY, (1, 12)), torch.full((1, 12), QUESTION)

    def counted(roles_BT: Tensor | None) -> int:
        counter = FlopCounterMode(display=False)
        # Its hooks on modules, which tell FLOPs apart by module, don't know autograd.grad.
        counter.mod_tracker = EveryModule()  # type: ignore[assignment]
        with step_by_step(), counter:
            backbone(read, torch.zeros_like(read), roles_BT=roles_BT)
        return counter.get_total_flops()

    fit_flops, claimed = counted(own) - counted(None), backbone.fitting(12).cost.flops
    assert 2 / 3 * claimed < fit_flops < claimed
    assert counted(None) == pytest.approx(backbone.prefill_cost(12, readouts=0).flops, rel=0.01)


def test_costs_by_hand() -> None:
    """Width 16, feed-forward 24, 24 words, convolutions over 3: two blocks of attention after three
    vectors of five.
    """
    backbone, head = made("attn"), 2 * 16 * 24
    block = 2 * (4 * 16 * 16 + 3 * 16 * 24 + 3 * 16 * 3)

    def stack(first: int, last: int) -> int:
        """Two blocks at these positions, of which each sees itself and all before."""
        return sum(2 * (block + 4 * 16 * seen) for seen in range(first, last + 1))

    vectors = 3 * 2 * 5 * 16
    assert backbone.prefill_cost(7).flops == stack(1, 3 + 7) + vectors + head
    assert backbone.cost(7).flops == stack(3 + 7, 3 + 7) + head
    assert backbone.cost(1).flops == stack(1, 3 + 1) + vectors + head
    held = 2 * 4 * ((3 + 7) * 2 * 16 + 2 * 3 * 16)
    assert backbone.cost(7).state_bytes == held
    assert backbone.float().init_state(1, 7).nbytes == held
    own = sum(weight.numel() for weight in backbone.latent.parameters())
    assert backbone.prefill_cost(7).weight_bytes - backbone.cost(7).weight_bytes == 4 * own
    step = 3 * (stack(1, 3 + 6) + vectors + 6 * head)
    assert backbone.fitting(7).cost.flops == 2 * step
    assert backbone.fitting(7).latent_steps == 2 * 3
    assert backbone.fitting(7).cost.serial_steps == 2 * 2 * 2
    for nothing in (backbone.fitting(1), with_(backbone, inner_steps=0).fitting(7)):
        assert (nothing.cost.flops, nothing.passes, nothing.latent_steps) == (0, 0, 0)


@pytest.mark.parametrize("refused", [{"vectors": 0}, {"width": 0}, {"inner_steps": -1}])
def test_impossible_numbers_are_refused(refused: dict[str, int]) -> None:
    ((name, value),) = refused.items()
    with pytest.raises(ValueError, match=rf"latent\.{name}={value} must be at least"):
        made(latent=replace(VECTORS, **refused))


def test_other_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latent\.inner_lr=0 must be a finite number above 0"):
        made(latent=replace(VECTORS, inner_lr=0))
    with pytest.raises(ValueError, match=r"latent\.fit_on=all is not known: choose document or"):
        made(latent=replace(VECTORS, fit_on="all"))
