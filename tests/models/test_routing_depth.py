"""Routers that choose who goes on (property test t3), and memories across loops."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from models.depth.routing import TokenPass, best_of_documents
from models.routing import routers
from tests.models.cases import (
    LENGTH,
    PACKINGS,
    ROUNDING,
    VOCABULARY,
    documents,
)
from tests.models.loops import DRAWS, MIXERS, looped, positions_run, tokens


@pytest.mark.parametrize("layout", MIXERS)
def test_routing_at_full_capacity_is_the_loop(layout: str) -> None:
    routed = looped(layout, loops=3, prelude=1, route="expert", capacity=[1.0, 1.0])
    plain, read = looped(layout, loops=3, prelude=1), tokens()
    plain.load_state_dict({k: v for k, v in routed.state_dict().items() if "route." not in k})
    out = routed(read, PACKINGS["several"], draws=DRAWS)
    expected = plain(read, PACKINGS["several"], draws=DRAWS)
    assert out.trajectory.exits_BT.unique().tolist() == [3]
    torch.testing.assert_close(out.hidden_BTD, expected.hidden_BTD, **ROUNDING)


@pytest.mark.parametrize("packing", ["several", "short", "left padded"])
@pytest.mark.parametrize("route", ["expert", "token"])
def test_training_runs_fewer_positions_and_choices_are_per_document(
    route: str, packing: str
) -> None:
    backbone, segments, read = looped(loops=3, route=route), PACKINGS[packing], tokens()
    with positions_run(backbone) as positions:
        out = backbone(read, segments, draws=DRAWS)
    exits_BT = out.trajectory.exits_BT
    assert sum(positions) < 3 * len(backbone.depth.blocks) * read.numel()
    if route == "expert":
        for row in range(2):
            for document in segments[row].unique().tolist():
                own = segments[row] == document
                kept = [int((exits_BT[row][own] > loop).sum()) for loop in (1, 2)]
                full = [-(-2 * int(own.sum()) // 3), -(-int(own.sum()) // 3)]
                assert kept == ([0, 0] if document < 0 else full)
    for name, own in documents(segments):
        other = torch.where(own, (read + 1) % VOCABULARY, read)
        again = backbone(other, segments, draws=DRAWS).trajectory.exits_BT
        assert torch.equal(again[~own], exits_BT[~own]), f"{name} changes what others run"


def test_the_best_of_each_document_are_chosen() -> None:
    score = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.2, 0.3, 0.8]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, -1]])
    active = torch.tensor([[True, False, True, True, True, True, True]])
    chosen = best_of_documents(score, active, segments, 0.5)
    assert chosen.tolist() == [[True, False, True, True, False, True, False]]
    chosen = best_of_documents(score, active, None, 0.4)
    assert chosen.tolist() == [[False, False, True, True, False, False, True]]


def test_routers_learn() -> None:
    """The choice has a gradient through what it lets through, and one from its own loss."""
    backbone, read = looped(loops=3, route="expert", route_weight=0.0), tokens()
    backbone(read, PACKINGS["several"], draws=DRAWS).hidden_BTD.sin().sum().backward()
    assert backbone.depth.route.score.weight.grad.abs().max() > 0
    backbone.zero_grad()
    taught = looped(loops=3, route="expert", route_weight=1.0)(
        read, PACKINGS["several"], draws=DRAWS
    )
    assert taught.losses["routing"] > 0 and taught.losses["routing"].requires_grad
    token = looped(loops=3, route="token")
    token(read, PACKINGS["several"], draws=DRAWS)
    (router,) = routers(token)
    assert router.load_E.sum() == read.numel(), "each token's choice is counted"


def test_a_process_without_tokens_calls_the_blocks_that_others_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All choose one loop here, but another process goes on: nothing changes, all is called."""
    backbone, read = looped(loops=3, route="token"), tokens()
    monkeypatch.setattr(TokenPass, "goes_on", lambda self, loop, hidden, active: active & False)
    alone = backbone(read, PACKINGS["several"], draws=DRAWS).hidden_BTD
    monkeypatch.setattr("models.depth.cycles.in_any_process", lambda here: True)
    with positions_run(backbone) as positions:
        beside = backbone(read, PACKINGS["several"], draws=DRAWS).hidden_BTD
    assert torch.equal(alone, beside) and len(positions) == 3 * len(backbone.depth.blocks)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"route": "expert", "capacity": [1.0, 0.0]}, r"0.0 must be above 0 and at most 1"),
        ({"route": "expert", "capacity": [1.0, 1.5]}, r"1.5 must be above 0 and at most 1"),
        ({"route": "expert", "capacity": [1.0]}, r"must name 2 shares"),
        ({"capacity": [1.0, 1.0]}, r"but depth.route=none"),
        ({"route": "token", "capacity": [1.0, 1.0]}, r"depth.capacity=.* but depth.route=token"),
        ({"route": "token", "count": "uniform"}, r"depth.route=token shares out a fixed number"),
        ({"route": "token", "halting": "gate"}, r"so depth.halting=gate"),
        ({"memory": "budget", "memory_budget": 0}, r"depth.memory_budget=0 must be at least 1"),
        ({"memory": "carry", "order": "sequence", "injection": "none"}, r"depth.memory=carry goes"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        looped(**{"loops": 3, **settings})


def test_carry_needs_a_recurrent_memory() -> None:
    with pytest.raises(ValueError, match="none of Attention has a recurrent memory"):
        looped("attn", loops=3, memory="carry")


# Memories across loops


@pytest.mark.parametrize("layout", ["gdn", "mamba2", "gdn attn"])
def test_carry_begins_as_each_loop_its_own(layout: str) -> None:
    carrying, own, read = looped(layout, loops=3, memory="carry"), looped(layout, loops=3), tokens()
    own.load_state_dict({k: v for k, v in carrying.state_dict().items() if "carried" not in k})
    assert not torch.allclose(carrying(read).hidden_BTD, own(read).hidden_BTD)
    for name, parameter in carrying.named_parameters():
        if "carried" in name:
            torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(carrying(read).hidden_BTD, own(read).hidden_BTD, **ROUNDING)


def test_carry_reads_the_earlier_loop_at_the_same_position() -> None:
    """Written out token by token: q_r reads S_r, and rho times S_{r-1}."""
    mixer = looped("gdn", 1, loops=3, memory="carry").depth.blocks[0].mixer
    x_BTD, shared = torch.randn(2, 2, LENGTH, 16, dtype=torch.float64), {}
    _, second = (mixer(x, None, None, shared)[0] for x in x_BTD)
    states = [mixer.init_state(2, LENGTH, "cpu", torch.float64) for _ in range(2)]
    for now in range(LENGTH):
        shared = {}
        for loop in range(2):
            x = x_BTD[loop][:, now : now + 1]
            y, states[loop] = mixer(x, None, states[loop], shared)
        torch.testing.assert_close(y, second[:, now : now + 1], **ROUNDING)
    alone, _ = mixer(x_BTD[1], None, None, {})
    assert not torch.allclose(alone, second)


def decoded(backbone: Backbone, read: Tensor, split: int) -> Tensor:
    state = backbone.init_state(2, LENGTH, dtype=torch.float64)
    parts = [backbone(read[:, :split], None, state).hidden_BTD]
    parts += [backbone(read[:, at : at + 1], None, state).hidden_BTD for at in range(split, LENGTH)]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("layout", ["attn", "gdn", "mamba2", "window"])
def test_a_budget_of_all_loops_is_exact_and_one_is_the_last(layout: str) -> None:
    exact, read = looped(layout, loops=3), tokens()
    for memory, budget in (("budget", 3), ("budget", 1), ("last", 4), ("first", 4)):
        kept = looped(layout, loops=3, memory=memory, memory_budget=budget)
        kept.load_state_dict(exact.state_dict())
        torch.testing.assert_close(kept(read).hidden_BTD, exact(read).hidden_BTD, **ROUNDING)
        held = kept.init_state(1, LENGTH, dtype=torch.float64).nbytes
        assert held * 3 == exact.init_state(1, LENGTH, dtype=torch.float64).nbytes * (
            budget if memory == "budget" else 1
        )
        decodes_alike = torch.allclose(decoded(kept, read, 9), exact(read).hidden_BTD)
        assert decodes_alike == (budget == 3)
        torch.testing.assert_close(
            decoded(kept, read, 9)[:, :9], exact(read).hidden_BTD[:, :9], **ROUNDING
        )
    one, last = (looped(layout, loops=3, memory=m, memory_budget=1) for m in ("budget", "last"))
    assert torch.equal(decoded(one, read, 5), decoded(last, read, 5))


def test_last_reads_what_the_last_loop_left() -> None:
    """Written out for one token after a prompt: every loop reads the last loop's state."""
    backbone, read = (
        looped("gdn", 1, loops=2, injection="none", norm=False, memory="last"),
        tokens(),
    )
    block, exact = backbone.depth.blocks[0], looped("gdn", 1, loops=2, injection="none", norm=False)
    prompt, new = backbone.embedding(read[:, :9]), backbone.embedding(read[:, 9:10])
    state = block.init_state(2, LENGTH, "cpu", torch.float64)
    once, _ = block(prompt)
    _, state = block(once, None, state)
    once, _ = block(new, None, state.take(torch.arange(2)))
    twice, _ = block(once, None, state)
    expected = decoded(backbone, read, 9)[:, 9:10]
    torch.testing.assert_close(backbone.norm(twice), expected, **ROUNDING)
    assert exact.depth.held(2) == [0, 0] and backbone.depth.held(2) == [0]
