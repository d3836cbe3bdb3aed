"""Objectives over loops against their definitions, in float64; what they cost; what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data.batch import Batch
from data.corpus import Corpus
from models.backbone import Backbone
from models.depth.draws import Draws
from models.depth.halting import exit_probabilities
from models.depth.looped import LoopedDepthConfig
from models.ops.twin import step_by_step
from tests.models.cases import randomise
from tests.train.runs import small_backbone
from train.loop_losses import STEP, jacobian_norm, progressive_pass, short_pass
from train.objective import Objective
from train.objective_config import OVER, ObjectiveConfig
from train.spending import DocumentSize, StepKind, step_flops

DRAWS = Draws(seed=1, stage=0, step=7, steps=20, rows=4)


@pytest.fixture(scope="module")
def batch(corpus_path: Path) -> Batch:
    rows = Corpus.open(corpus_path).split("train")
    indices = np.linspace(0, rows.num_rows - 1, 4, dtype=int)
    return Batch.from_rows(rows.read(indices), rows.loss_sum(indices))


def objective(batch: Batch, **settings: Any) -> Objective:
    """A randomised looped backbone in float64 under its objective."""
    depth = LoopedDepthConfig(**{"loops": 3, "halting": "gate", **settings})
    layers = 1 + depth.prelude + depth.coda
    vocabulary = int(batch.tokens_BT.max()) + 1
    config = small_backbone(
        vocab_size=vocabulary, mlp_hidden=8, depth=depth, num_layers=layers, dim=8, head_dim=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Backbone(config).double()
    randomise(backbone)
    return Objective(backbone)


def losses_of(net: Objective, batch: Batch, loops: int, **options: Any) -> Tensor:
    """Each position's cross-entropy, `[B, T]`, of a whole pass at a loop count."""
    out = net.backbone(batch.tokens_BT, batch.segments_BT, loops=loops, **options)
    logits = out.readout(out.hidden_BTD).mT
    return F.cross_entropy(logits, batch.targets_BT, reduction="none")


def mean_of(losses_BT: Tensor, batch: Batch) -> Tensor:
    return (losses_BT * batch.loss_BT).sum() / batch.denominator


def regularised(net: Objective, batch: Batch) -> Tensor:
    out = net.backbone(batch.tokens_BT, batch.segments_BT, draws=DRAWS)
    return sum(out.losses.values(), torch.zeros(()))


@pytest.mark.parametrize("shape", [{}, {"prelude": 1, "coda": 1}])
@pytest.mark.parametrize("over", ["uniform", "linear", "expected"])
def test_every_loop_counts_as_its_own_pass_would(
    batch: Batch, over: str, shape: dict[str, int]
) -> None:
    net = objective(batch, **shape)
    passes_RBT = torch.stack([losses_of(net, batch, loops) for loops in (1, 2, 3)])
    halts = net.backbone(batch.tokens_BT, batch.segments_BT).trajectory.halts
    shares = {
        "uniform": torch.full((3, 1, 1), 1 / 3),
        "linear": torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1) / 6,
        "expected": exit_probabilities(halts),
    }[over]
    expected = mean_of((shares * passes_RBT).sum(dim=0), batch) + regularised(net, batch)
    actual = net(batch, ObjectiveConfig(chunk_size=7, over=over), DRAWS)
    torch.testing.assert_close(actual, expected)
    if over == "expected":
        assert torch.equal(net(batch, ObjectiveConfig(chunk_size=7), DRAWS), actual), "the default"
    plain = net(batch, ObjectiveConfig(over=over), None)
    torch.testing.assert_close(plain, mean_of(passes_RBT[-1], batch)), "evaluation is final"


@pytest.mark.parametrize("over", ["gate", "correct"])
def test_the_gate_alone_is_taught(batch: Batch, over: str) -> None:
    net = objective(batch, halting_weight=0.0)
    with torch.no_grad():
        passes_RBT = torch.stack([losses_of(net, batch, loops) for loops in (1, 2, 3)])
    out = net.backbone(batch.tokens_BT, batch.segments_BT, record=True)
    halts_RBT = torch.stack(out.trajectory.halts)
    if over == "gate":
        gained = (passes_RBT[:-1] - passes_RBT[1:]).clamp(min=0)
        stops, chances = 1 - (50 * (gained - 0.005)).sigmoid(), halts_RBT[1:]
    else:
        logits = [net.backbone.head(net.backbone.norm(state)) for state in out.trajectory.states]
        right = [(each.argmax(dim=-1) == batch.targets_BT) for each in logits[:-1]]
        stops, chances = torch.stack(right).double(), halts_RBT[:-1]
    charged = -(stops * chances.log() + (1 - stops) * (1 - chances).log()).mean(dim=0)
    actual = net(batch, ObjectiveConfig(over=over), DRAWS)
    torch.testing.assert_close(actual, mean_of(charged, batch))
    actual.backward()
    assert net.backbone.depth.halting.gate.weight.grad.abs().max() > 0
    assert net.backbone.head.weight.grad is None, "the readout only judges"


def test_progressive_adds_a_pass_that_starts_without_a_gradient(batch: Batch) -> None:
    net, config = objective(batch, halting="none"), ObjectiveConfig(progressive=0.25)
    extra = progressive_pass(DRAWS, 3)
    assert 1 <= (extra.window or 0) <= extra.loops <= 3
    options = {"draws": DRAWS, "gradient_loops": extra.window}
    parts = 0.75 * mean_of(losses_of(net, batch, 3), batch)
    parts = parts + 0.25 * mean_of(losses_of(net, batch, extra.loops, **options), batch)
    parameters = [p for p in net.parameters()]
    expected = torch.autograd.grad(parts, parameters, allow_unused=True)
    actual = torch.autograd.grad(net(batch, config, DRAWS), parameters, allow_unused=True)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_consistency_draws_fewer_loops_to_all_of_them(batch: Batch) -> None:
    net, config = objective(batch, halting="none"), ObjectiveConfig(consistency=0.1)
    short = short_pass(DRAWS, 3).loops
    assert short in (1, 2)
    read = (batch.tokens_BT, batch.segments_BT)
    far = net.backbone(*read, loops=3).hidden_BTD - net.backbone(*read, loops=short).hidden_BTD
    expected = mean_of(losses_of(net, batch, 3), batch)
    near = mean_of(losses_of(net, batch, short), batch) + mean_of(far.square().mean(-1), batch)
    torch.testing.assert_close(
        net(batch, config, DRAWS), expected + 0.1 * near, rtol=1e-5, atol=1e-6
    )


def test_the_jacobian_term_is_the_product_with_a_direction(batch: Batch) -> None:
    net, config = objective(batch, halting="none"), ObjectiveConfig(jacobian=0.1)
    out = net.backbone(batch.tokens_BT, batch.segments_BT, record=True, draws=DRAWS)
    state, step = out.trajectory.states[-1], out.trajectory.step
    direction = DRAWS.normal("jacobian", state.shape[1:]).to(state)
    with step_by_step():
        exact = torch.autograd.functional.jvp(step, state.detach(), direction)[1]
    length = 1e-5
    near = (step(state + length * direction) - step(state)) / length
    torch.testing.assert_close(near, exact, rtol=1e-3, atol=1e-3)
    real_BT = batch.segments_BT >= 0
    lengths = [
        STEP * each[real].square().mean().sqrt() for each, real in zip(state, real_BT, strict=True)
    ]
    length = torch.stack(lengths)[:, None, None]
    product = (step(state + length * direction) - step(state)) / length
    rows = [product[row][real_BT[row]].square().mean() for row in range(len(real_BT))]
    expected = 0.9 * mean_of(losses_of(net, batch, 3), batch) + 0.1 * torch.stack(rows).mean()
    torch.testing.assert_close(net(batch, config, DRAWS), expected, rtol=1e-5, atol=1e-6)


def stiffness(net: Objective, batch: Batch, *rows: int) -> Tensor:
    """The Jacobian term of some rows of the batch, run by themselves."""
    places = torch.tensor(rows)
    read_BT, segments_BT = batch.tokens_BT[places], batch.segments_BT[places]
    draws = replace(DRAWS, places_B=places)
    trajectory = net.backbone(read_BT, segments_BT, record=True, draws=draws).trajectory
    return jacobian_norm(trajectory, segments_BT, draws)


def test_a_rows_jacobian_term_is_its_own_however_the_batch_is_cut(batch: Batch) -> None:
    net = objective(batch, halting="none")
    with torch.no_grad():
        alone = [stiffness(net, batch, row) for row in range(4)]
        assert max(alone) > 1.01 * min(alone), "the rows of the test should differ"
        for rows in ((0, 1), (2, 3), (1, 3), (0, 1, 2, 3)):
            expected = torch.stack([alone[row] for row in rows]).mean()
            torch.testing.assert_close(stiffness(net, batch, *rows), expected)


def test_padding_has_no_say_in_the_jacobian_term(batch: Batch) -> None:
    net = objective(batch, halting="none")
    segments_BT = batch.segments_BT.clone()
    segments_BT[0, -9:] = -1
    segments_BT[3] = -1
    padded = replace(batch, segments_BT=segments_BT)
    other_BT = torch.where(segments_BT < 0, 1 - batch.tokens_BT % 2, batch.tokens_BT)
    assert not torch.equal(other_BT, batch.tokens_BT)
    with torch.no_grad():
        found = stiffness(net, padded, 0, 1, 2, 3)
        changed = stiffness(net, replace(padded, tokens_BT=other_BT), 0, 1, 2, 3)
        assert found > 0 and torch.equal(changed, found)
        assert stiffness(net, padded, 3) == 0, "a row without a token has no part"


@pytest.mark.parametrize("over", OVER[:4])
def test_what_a_step_runs_is_counted(batch: Batch, over: str) -> None:
    """The forward part: all else is three times that, or once where no gradient is asked."""
    net = objective(batch, coda=1)
    net.backbone.float()
    length = 24
    row = replace(
        batch,
        tokens_BT=batch.tokens_BT[:1, :length],
        targets_BT=batch.targets_BT[:1, :length],
        segments_BT=torch.zeros(1, length, dtype=torch.long),
        roles_BT=batch.roles_BT[:1, :length],
        loss_BT=torch.ones(1, length),
    )
    with step_by_step(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(row, ObjectiveConfig(over=over), replace(DRAWS, rows=1))
    kind = StepKind(3, reads_loops=over != "final")
    counted = step_flops(net.backbone, {DocumentSize(length): 1}, kind) / 3
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "config", "message"),
    [
        (
            {"halting": "none"},
            {"over": "expected"},
            r"stages\[0\].objective.over=expected goes by a",
        ),
        ({"halting": "none"}, {"over": "gate"}, "over=gate goes by a gate's chances"),
        (
            {"halting": "none", "order": "sequence", "injection": "none"},
            {"over": "uniform"},
            "over=uniform is about loops of whole groups",
        ),
        (
            {"halting": "none", "route": "expert"},
            {"over": "uniform"},
            "over=uniform follows every token .* depth.route=expert",
        ),
        (
            {"halting": "none", "injection": "lanes"},
            {"jacobian": 0.1},
            "jacobian=0.1 needs one state between loops",
        ),
    ],
)
def test_what_a_backbone_cannot_be_trained_on_is_refused(
    batch: Batch, settings: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    net = objective(batch, **settings)
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**config).check(net.backbone, "stages[0].objective")


@pytest.mark.parametrize(
    "values", [{"over": "all"}, {"progressive": 1.5}, {"jacobian": -0.1}, {"consistency": -1.0}]
)
def test_impossible_values_are_refused(values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=f"objective.{name}="):
        ObjectiveConfig(**values).validate("objective")
