"""Tokens that stop: property tests t4, t11 and t12 of looped models, and what holes leave."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone, Output
from models.depth.halting import act_weights, divergence, exit_probabilities, prior_R
from models.depth.loop_costs import ExitCosts
from models.depth.looped import LoopedDepthConfig
from models.depth.stop import Look, Stop
from tests.models.cases import (
    LENGTH,
    PACKINGS,
    ROUNDING,
    VOCABULARY,
    adaptive,
    backbone_config,
    build_backbone,
)
from tests.models.loops import DRAWS, MIXERS, depth_of, positions_run, tokens

RULES = ("gate:0.6", "kl:0.05", "entropy:2.9", "margin:0.05", "argmax:2", "fixed_point:0.9")


def stopping(layout: str = "gdn attn", num_layers: int = 2, **settings: Any) -> Backbone:
    config = adaptive(**{"prelude": 0, **settings})
    return build_backbone(backbone_config(layout, num_layers, depth=config))


@pytest.mark.parametrize("layout", MIXERS)
def test_without_a_rule_every_token_runs_every_loop(layout: str) -> None:
    gated, read = stopping(layout), tokens()
    plain = build_backbone(backbone_config(layout, depth=LoopedDepthConfig(loops=4)))
    plain.load_state_dict({k: v for k, v in gated.state_dict().items() if "halting" not in k})
    assert torch.equal(gated(read).hidden_BTD, plain(read).hidden_BTD)
    never = gated(read, stop=Stop.parse("fixed_point:1e-9"))
    assert never.trajectory.exits_BT.unique().tolist() == [4]
    torch.testing.assert_close(never.hidden_BTD, plain(read).hidden_BTD, **ROUNDING)


def separating(backbone: Backbone, read: Tensor, rule: str) -> Output:
    """Run under the rule, its number moved until tokens stop in different loops."""
    stop = Stop.parse(rule)
    for share in (1.0, 0.9, 0.75, 0.5, 0.3):
        out = backbone(read, stop=Stop(stop.rule, stop.at * share))
        if len(out.trajectory.exits_BT.unique()) > 1:
            return out
    raise AssertionError(f"{rule} separates no tokens")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", MIXERS)
def test_a_loop_is_run_on_the_tokens_that_reached_it(layout: str, rule: str) -> None:
    """The pass written out for one document: pick the tokens, run the block, put them back."""
    backbone, read = stopping(layout, 1), tokens(1)
    depth, out = depth_of(backbone), separating(backbone, read, rule)
    exits_T = out.trajectory.exits_BT[0]
    entry_TD = depth.entry_norm(backbone.embedding(read)[0])
    hidden_TD = entry_TD
    for loop in range(int(exits_T.max())):
        reached = (exits_T > loop).nonzero()[:, 0]
        x_ND = hidden_TD[reached]
        x_ND = entry_TD[reached] if loop == 0 else depth.loop_norm(x_ND) + entry_TD[reached]
        made_1ND, _ = depth.blocks[0](x_ND[None])
        hidden_TD = hidden_TD.index_copy(0, reached, made_1ND[0])
    torch.testing.assert_close(out.hidden_BTD[0], backbone.norm(hidden_TD), **ROUNDING)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", ["attn", "window"])
def test_a_filled_hole_shows_what_it_showed_last(layout: str, rule: str) -> None:
    """The masked full pass: each block reads every position, a stopped one its last input."""
    backbone, read = stopping(layout, 2, holes="reuse"), tokens(1)
    depth, out = depth_of(backbone), separating(backbone, read, rule)
    exits_1T1 = out.trajectory.exits_BT[..., None]
    entry_BTD = depth.entry_norm(backbone.embedding(read))
    hidden_BTD, shown = entry_BTD, {}
    for loop in range(4):
        active_1T1 = exits_1T1 > loop
        x_BTD = entry_BTD if loop == 0 else depth.loop_norm(hidden_BTD) + entry_BTD
        for layer, block in enumerate(depth.blocks):
            shown[layer] = torch.where(active_1T1, x_BTD, shown.get(layer, x_BTD))
            x_BTD, _ = block(shown[layer])
        hidden_BTD = torch.where(active_1T1, x_BTD, hidden_BTD)
    torch.testing.assert_close(out.hidden_BTD, backbone.norm(hidden_BTD), **ROUNDING)


@pytest.mark.parametrize("rule", RULES)
def test_tokens_stop_where_their_rule_says(rule: str) -> None:
    """Each token alone, from the states that every loop left; the first that fulfils it stops."""
    backbone, read, stop = stopping(loops=5), tokens(), Stop.parse(rule)
    out = backbone(read, stop=stop, record=True)
    entry_BTD = depth_of(backbone).entry_norm(backbone.embedding(read))
    for row in range(2):
        for place in range(LENGTH):
            watch, states = stop.begin(), [entry_BTD, *out.trajectory.states]
            halts = [halt[row, place] for halt in out.trajectory.halts]
            expected = 5
            for loop in range(1, 5):
                before, after = (states[at][row, place][None] for at in (loop - 1, loop))
                halted = 1 - torch.stack([1 - halt for halt in halts[:loop]]).prod()
                logits = backbone.head(backbone.norm(after))
                if watch.stops(Look(before, after, logits, halted[None])):
                    expected = loop
                    break
            assert int(out.trajectory.exits_BT[row, place]) == expected


@pytest.mark.parametrize(
    ("layout", "holes"),
    [("attn", "reuse"), ("attn", "skip"), ("gdn", "skip"), ("mamba2", "skip")],
)
def test_stopping_calls_fewer_blocks(layout: str, holes: str) -> None:
    """In a batch that decodes: what is run is what is counted, and the less, the more stop."""
    backbone = stopping(layout, prelude=1, holes=holes)
    prompt, new = tokens(3), torch.randint(VOCABULARY, (3, 6))
    totals = {}
    for rule in ("none", "gate:0.9", "gate:0.5"):
        stop = Stop.parse(rule)
        state = backbone.init_state(3, 2 * LENGTH, dtype=torch.float64, stop=stop)
        with positions_run(backbone) as positions:
            outs = [backbone(prompt, None, state)]
            prompt_positions = sum(positions)
            outs += [backbone(new[:, at : at + 1], None, state) for at in range(6)]
        totals[rule] = sum(positions)
        if stop:
            exits = [out.trajectory.exits_BT for out in outs]
            new_BT = torch.cat(exits[1:], dim=1).tolist()
            costs = ExitCosts(depth_of(backbone), 4, stop)
            decoded = [costs.spent(row, 0).block_calls for row in new_BT]
            assert sum(decoded) == totals[rule] - prompt_positions
            read = [costs.spent(row, LENGTH).block_calls for row in exits[0].tolist()]
            if holes == "reuse":  # rows read together are padded to the one with the most
                assert sum(read) <= prompt_positions <= 3 * max(read)
            else:
                assert sum(read) == prompt_positions
    assert totals["gate:0.5"] < totals["gate:0.9"] < totals["none"]


def test_exits_cost_what_counts_cost_where_all_are_equal() -> None:
    """Tokens that all run three of four loops cost what three loops do."""
    backbone, stop = stopping("attn", prelude=1), Stop.parse("gate:1")
    spent = ExitCosts(depth_of(backbone), 4, stop).spent([3] * LENGTH, LENGTH - 2)
    expected = backbone.depth.prefill_cost(LENGTH, 3)
    assert spent.flops == pytest.approx(expected.flops)
    assert spent.block_calls == LENGTH * len(backbone.depth.calls(3))
    assert spent.serial_calls == 3 * len(backbone.depth.calls(3))


def test_a_rule_that_reads_out_is_charged_for_it() -> None:
    depth = depth_of(stopping())
    readouts = {
        rule: ExitCosts(depth, 4, Stop.parse(rule)).spent([1, 4, 2], 2).readouts
        for rule in ("kl:0.1", "gate:0.5")
    }
    assert readouts["kl:0.1"] == 1 + 3 + 2, "after the last loop nothing is asked"
    assert readouts["gate:0.5"] == 0


def test_halting_probabilities_sum_to_one_and_have_their_closed_forms() -> None:
    halts = list(torch.rand(5, 2, 7, dtype=torch.float64))
    for p_RBT in (exit_probabilities(halts), act_weights(halts)):
        torch.testing.assert_close(p_RBT.sum(dim=0), torch.ones(2, 7, dtype=torch.float64))
        assert (p_RBT >= 0).all()
    same = [torch.full((1, 1), 0.3, dtype=torch.float64)] * 4
    p_R = exit_probabilities(same)[:, 0, 0]
    expected = torch.tensor([0.3, 0.3 * 0.7, 0.3 * 0.49, 0.343], dtype=torch.float64)
    torch.testing.assert_close(p_R, expected)
    entropy = -(p_R * p_R.log()).sum()
    uniform = divergence(p_R[:, None, None], prior_R("uniform", 0.0, 4).double())
    torch.testing.assert_close(uniform[0, 0], torch.tensor(4.0).double().log() - entropy)
    geometric = divergence(p_R[:, None, None], prior_R("geometric", 0.3, 4).double())
    assert abs(float(geometric)) < 1e-7
    assert act_weights(same)[:, 0, 0].tolist() == pytest.approx([0.3, 0.3, 0.3, 0.1])
    assert act_weights([torch.full((1, 1), 0.6)] * 3)[:, 0, 0].tolist() == pytest.approx(
        [0.6, 0.4, 0]
    )


def test_act_returns_the_mean_of_its_states() -> None:
    backbone, read = stopping("gdn", halting="act"), tokens()
    out = backbone(read, record=True)
    weights_RBT = act_weights(out.trajectory.halts)
    mean_BTD = (weights_RBT[..., None] * torch.stack(out.trajectory.states)).sum(dim=0)
    torch.testing.assert_close(out.hidden_BTD, backbone.norm(mean_BTD), **ROUNDING)
    assert (weights_RBT[-1] == 0).any(), "some tokens halt early"


@pytest.mark.parametrize("halting", ["gate", "act"])
@pytest.mark.parametrize("prior", ["uniform", "geometric"])
def test_training_charges_the_gate_and_stops_nobody(halting: str, prior: str) -> None:
    backbone = stopping(halting=halting, halting_prior=prior, stop="gate:0.5", halting_weight=0.5)
    out = backbone(tokens(), PACKINGS["left padded"], draws=DRAWS)
    assert out.trajectory.exits_BT is None
    charged_BT = depth_of(backbone).halting.cost(out.trajectory.halts)
    real_BT = PACKINGS["left padded"] >= 0
    means = [charged_BT[row][real_BT[row]].mean() for row in range(2)]
    torch.testing.assert_close(out.losses["halting"], 0.5 * torch.stack(means).mean())
    out.losses["halting"].backward()
    assert depth_of(backbone).halting.gate.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "text", ["kl", "kl:0", "argmax:1", "argmax:2.5", "margin:1", "gate:1.5", "k:1"]
)
def test_rules_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"stop={text}"):
        Stop.parse(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"halting": "gate", "loops": 1, "prelude": 0}, r"depth.halting=gate chooses among loops"),
        ({"halting": "none", "stop": "gate:0.5"}, r"depth.stop=gate:0.5 asks the gate"),
        ({"coda": 1, "stop": "kl:0.1"}, r"depth.stop=kl:0.1 reads out after every loop"),
        ({"memory": "last", "stop": "gate:0.5"}, r"depth.memory=last: set none and per_loop"),
        ({"holes": "reuse"}, r"depth.holes=reuse .* attention without canon"),
        ({"stop": "kl:0.1/keep"}, r"depth.stop=kl:0.1/keep: keep is no policy for holes"),
        ({"halting": "gate", "order": "sequence", "injection": "none"}, r"depth.halting=gate goes"),
        ({"halting_rate": 1.0}, r"depth.halting_rate=1.0 must lie between 0 and 1"),
        ({"memory": "carry", "checkpoint": True}, r"depth.memory=carry .* checkpoint=false"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbone_config("gdn attn", 3, depth=adaptive(**settings)).depth.build(
            build_backbone(backbone_config("gdn attn", 3)).depth.blocks, 16
        )


def test_a_rule_may_name_its_own_policy_for_holes() -> None:
    filled, skipped, read = stopping("attn", holes="reuse"), stopping("attn"), tokens()
    for backbone, other in ((filled, skipped), (skipped, filled)):
        named = Stop.parse(f"gate:0.5/{other.config.depth.holes}")
        expected = other(read, stop=Stop.parse("gate:0.5")).hidden_BTD
        assert torch.equal(backbone(read, stop=named).hidden_BTD, expected)
    with pytest.raises(ValueError, match=r"stop=gate:0.5/reuse .* not for GatedDeltaNet"):
        stopping("gdn")(read, stop=Stop.parse("gate:0.5/reuse"))


def test_a_state_keeps_to_its_rule() -> None:
    backbone = stopping()
    state = backbone.init_state(1, LENGTH, dtype=torch.float64, stop=Stop.parse("gate:0.5"))
    with pytest.raises(ValueError, match=r"stop=kl:0.1 .* state was made for gate:0.5"):
        backbone(tokens(1), None, state, stop=Stop.parse("kl:0.1"))
    plain = build_backbone(backbone_config())
    with pytest.raises(ValueError, match=r"stop=kl:0.1 .* no loops to stop"):
        plain(tokens(1), stop=Stop.parse("kl:0.1"))
