"""How loops start, what they are told, how often they run, how far back the gradient goes.

The property tests t1, t2, t5, t6, t9 and t14 of looped models, over attention, GDN and Mamba-2.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from models.depth.count import LAWS, grown
from models.depth.draws import Draws
from models.depth.injection import INJECTIONS, DiagonalInjection, ResidualInjection
from models.depth.relaxation import RELAXATIONS
from tests.models.cases import (
    PACKINGS,
    ROUNDING,
    backbone_config,
    build_backbone,
)
from tests.models.loops import DRAWS, MIXERS, depth_of, looped, stack_with_blocks_of, tokens


def gradients(backbone: Backbone, read: Tensor, **options: Any) -> dict[str, Tensor]:
    backbone.zero_grad()
    backbone(read, PACKINGS["several"], **options).hidden_BTD.sin().sum().backward()
    named = backbone.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


# t1, t2: what a loop is without its extras


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("layout", MIXERS)
def test_one_loop_is_the_plain_stack(layout: str, injection: str) -> None:
    one = looped(layout, loops=1, injection=injection, norm=False)
    plain, read = build_backbone(backbone_config(layout)), tokens()
    named = {k: v for k, v in one.state_dict().items() if "injection" not in k}
    plain.load_state_dict(named)
    expected = plain(read, PACKINGS["several"]).hidden_BTD
    actual = one(read, PACKINGS["several"]).hidden_BTD
    if injection in ("residual", "lanes"):  # randomised, they weigh even one loop
        assert not torch.equal(actual, expected)
        depth_of(one).injection.reset_parameters()
        actual = one(read, PACKINGS["several"]).hidden_BTD
    torch.testing.assert_close(actual, expected, **ROUNDING)


@pytest.mark.parametrize("layout", MIXERS)
def test_layers_in_sequence_are_a_deep_stack_of_copies(layout: str) -> None:
    sequence = looped(layout, loops=3, order="sequence", injection="none", norm=False)
    plain, read = stack_with_blocks_of(sequence, [0, 0, 0, 1, 1, 1]), tokens()
    assert torch.equal(sequence(read).hidden_BTD, plain(read).hidden_BTD)


@pytest.mark.parametrize("layout", MIXERS)
def test_looped_mixers_run_their_feed_forward_network_once(layout: str) -> None:
    own = {"order": "sequence", "part": "mixer", "injection": "none", "norm": False}
    backbone, read = looped(layout, loops=3, **own), tokens()
    x = backbone.embedding(read)
    for block in backbone.depth.blocks:
        for _ in range(3):
            x = x + block.mixer(block.mixer_norm(x))[0]
        x = x + block.mlp(block.mlp_norm(x))
    torch.testing.assert_close(backbone(read).hidden_BTD, backbone.norm(x), **ROUNDING)
    whole = looped(layout, loops=3, **own | {"part": "block"})
    assert backbone.cost(9).flops < whole.cost(9).flops


@pytest.mark.parametrize("choice", [{"relaxation": name} for name in RELAXATIONS if name != "none"])
def test_relaxations_begin_as_none(choice: dict[str, str]) -> None:
    relaxed, tied, read = looped("attn", loops=3, **choice), looped("attn", loops=3), tokens()
    tied.load_state_dict(relaxed.state_dict(), strict=False)
    assert not torch.allclose(relaxed(read).hidden_BTD, tied(read).hidden_BTD)
    depth_of(relaxed).relaxation.reset_parameters()
    torch.testing.assert_close(relaxed(read).hidden_BTD, tied(read).hidden_BTD, **ROUNDING)


def test_low_rank_changes_are_those_of_their_loop() -> None:
    """Each loop of a relaxed group is a block whose weights are `W + B_r A_r`."""
    relaxed = looped("attn", 1, loops=2, relaxation="lora", rank=2, injection="none", norm=False)
    plain, read = build_backbone(backbone_config("attn", 2)), tokens()
    weights = {k: v for k, v in relaxed.state_dict().items() if not k.startswith("depth.")}
    relaxation = depth_of(relaxed).relaxation
    for loop in range(2):
        block, index = dict(relaxed.depth.blocks[0].state_dict()), 0
        for name, module in relaxed.depth.blocks[0].named_modules():
            if isinstance(module, torch.nn.Linear):
                change = relaxation.up[index][loop] @ relaxation.down[index][loop]
                block[f"{name}.weight"] = module.weight + change
                index += 1
        for name, value in block.items():
            weights[f"depth.blocks.{loop}.{name}"] = value
    plain.load_state_dict(weights)
    torch.testing.assert_close(relaxed(read).hidden_BTD, plain(read).hidden_BTD, **ROUNDING)


def test_concat_begins_as_no_injection() -> None:
    concat, none, read = (
        looped("attn", injection="concat"),
        looped("attn", injection="none"),
        tokens(),
    )
    none.load_state_dict(concat.state_dict(), strict=False)
    depth_of(concat).injection.reset_parameters()
    torch.testing.assert_close(concat(read).hidden_BTD, none(read).hidden_BTD, **ROUNDING)


@pytest.mark.parametrize("start", ["input", "zeros"])
def test_a_residual_adds_the_state_before_each_loop(start: str) -> None:
    backbone, read = looped("gdn", loops=2, start=start, injection="residual", norm=False), tokens()
    depth = depth_of(backbone)
    injection = depth.injection
    assert isinstance(injection, ResidualInjection)
    h = e = backbone.embedding(read)
    h = h if start == "input" else torch.zeros_like(h)
    for _ in range(2):
        made = depth.blocks[1](depth.blocks[0](h, None)[0], None)[0]
        h = made + injection.rho * h
    torch.testing.assert_close(backbone(read).hidden_BTD, backbone.norm(h), **ROUNDING)
    injection.reset_parameters()
    assert torch.equal(injection.leave(e, made), made)


# t5, t6: the gradient's window


@pytest.mark.parametrize("layout", MIXERS)
def test_a_window_of_all_loops_is_the_full_gradient(layout: str) -> None:
    read = tokens()
    full = gradients(looped(layout, loops=3), read, draws=DRAWS)
    window = gradients(looped(layout, loops=3, gradient_loops=3), read, draws=DRAWS)
    assert full.keys() == window.keys()
    assert all(torch.equal(window[name], value) for name, value in full.items())


@pytest.mark.parametrize("start", ["input", "zeros"])
@pytest.mark.parametrize("layout", MIXERS)
def test_a_window_is_a_detached_state(layout: str, start: str) -> None:
    """Loops before the window change nothing but the state that enters it."""
    settings = {"loops": 4, "prelude": 1, "start": start}
    cut, read = looped(layout, 3, gradient_loops=2, **settings), tokens()
    actual = gradients(cut, read, draws=DRAWS)
    cut.zero_grad()
    depth, segments = depth_of(cut), PACKINGS["several"]

    def core(x: Tensor) -> Tensor:
        return depth.blocks[2](depth.blocks[1](x, segments)[0], segments)[0]

    entry = depth.entry_norm(depth.blocks[0](cut.embedding(read), segments)[0])
    hidden = depth.start(entry, None)
    for loop in range(4):
        given = depth.injection.enter(depth.loop_norm(hidden), entry)
        hidden = core(entry if loop == 0 and start == "input" else given)
        if loop == 1:
            hidden = hidden.detach()
    cut.norm(hidden).sin().sum().backward()
    for name, parameter in cut.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(actual[name], parameter.grad, **ROUNDING)


def test_evaluation_has_no_window() -> None:
    read = tokens()
    window, full = looped("attn", loops=3, gradient_loops=1), looped("attn", loops=3)
    for name, value in gradients(full, read).items():
        assert torch.equal(gradients(window, read)[name], value)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_activations_made_again_give_the_same_gradient(relaxation: str) -> None:
    read, own = tokens(), {"loops": 3, "relaxation": relaxation}
    kept = gradients(looped("gdn attn", **own), read, draws=DRAWS)
    again = gradients(looped("gdn attn", checkpoint=True, **own), read, draws=DRAWS)
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, **ROUNDING)


# t9: counts


@pytest.mark.parametrize("count", LAWS)
def test_counts_have_the_mean_that_they_are_about(count: str) -> None:
    depth = depth_of(looped("attn", loops=6, count=count))
    draws = [depth.counts(Draws(0, 0, step, 4000))[0] for step in range(4000)]
    found = torch.tensor(draws).double()
    mean = {"lognormal_poisson": 7.0}.get(count, 6.0)
    error = 4 * found.std() / len(draws) ** 0.5
    assert abs(found.mean() - mean) <= error + 0.05, f"{found.mean():.2f}"
    assert found.min() >= 1


def drawn(steps: int, **settings: Any) -> Tensor:
    depth = depth_of(looped("attn", **settings))
    counts = [depth.counts(Draws(1, 0, step, steps))[0] for step in range(steps)]
    return torch.tensor(counts).double()


QUANTILES = torch.tensor([0.1, 0.5, 0.9]).double()


def test_poisson_counts_have_its_quantiles() -> None:
    found = drawn(4000, loops=8, count="poisson").quantile(QUANTILES)
    number = torch.arange(40).double()
    below = (number * torch.tensor(8.0).log() - 8 - torch.lgamma(number + 1)).exp().cumsum(0)
    expected = [int((below < quantile).sum()) for quantile in QUANTILES]
    assert (found - torch.tensor(expected)).abs().max() <= 1


def test_lognormal_counts_have_its_quantiles() -> None:
    found = drawn(4000, loops=8, count="lognormal", spread=0.7).quantile(QUANTILES)
    normal = 2**0.5 * torch.erfinv(2 * QUANTILES - 1)
    expected = 8 * (0.7 * normal - 0.7**2 / 2).exp()
    assert (found - expected).abs().max() <= 1


@pytest.mark.parametrize("curriculum", ["linear", "root"])
def test_a_curriculum_grows_from_one_loop(curriculum: str) -> None:
    own = {"loops": 9, "curriculum": curriculum, "curriculum_share": 0.5}
    depth = depth_of(looped("attn", **own))
    counts = [depth.counts(Draws(0, 0, step, 100))[0] for step in range(100)]
    assert counts[0] == 1 and counts == sorted(counts) and set(counts[50:]) == {9}
    assert counts[25] == {"linear": 5, "root": 3}[curriculum]
    assert grown(9, "none", 0.1) == 9


def test_loops_are_switched_on_in_mid_training() -> None:
    depth = depth_of(looped("attn", loops=3, loop_from=0.6))
    counts = [depth.counts(Draws(0, 0, step, 10))[0] for step in range(10)]
    assert counts == [1] * 6 + [3] * 4


@pytest.mark.parametrize("start", ["input", "zeros"])
def test_sequences_of_their_own_counts_run_as_alone(start: str) -> None:
    """A row of a batch ends as it would alone at its count, in whichever part of the batch."""
    own = {"loops": 3, "count": "poisson", "max_loops": 6, "count_per": "sequence"}
    backbone, read = looped("gdn attn", start=start, gradient_loops=2, **own), tokens()
    counts = backbone.depth.counts(DRAWS)
    assert len(set(counts)) == 2, "the draws of the test should differ"
    together = backbone(read, draws=DRAWS).hidden_BTD
    for row, count in enumerate(counts):
        alone = backbone(read[row : row + 1], loops=count).hidden_BTD
        torch.testing.assert_close(together[row : row + 1], alone, **ROUNDING)
        place = Draws(3, 0, 5, 10, rows=2, places_B=torch.tensor([row]))
        part = backbone(read[row : row + 1], draws=place).hidden_BTD
        torch.testing.assert_close(part, alone, **ROUNDING)


def test_noise_is_a_rows_own_wherever_it_is_run() -> None:
    backbone, read = looped("attn", start="noise", injection="concat"), tokens()
    together = backbone(read, draws=DRAWS).hidden_BTD
    torch.manual_seed(123)
    assert torch.equal(backbone(read, draws=DRAWS).hidden_BTD, together)
    place = Draws(3, 0, 5, 10, rows=2, places_B=torch.tensor([1]))
    torch.testing.assert_close(backbone(read[1:], draws=place).hidden_BTD, together[1:], **ROUNDING)
    other = backbone(read, draws=Draws(3, 0, 6, 10, rows=2)).hidden_BTD
    assert not torch.allclose(other, together)


# t14: the injection's bound


def test_the_diagonal_injection_stays_below_one() -> None:
    injection = DiagonalInjection(8, from_entry=True)
    decay, step = injection.decay()
    torch.testing.assert_close(decay, torch.full((8,), 0.2**0.5))
    optimizer = torch.optim.SGD(injection.parameters(), lr=1e4)
    for sign in (1, -1, -1, 1):
        state, entry = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
        optimizer.zero_grad()
        (sign * injection.enter(state, entry)).sum().backward()
        optimizer.step()
        decay, step = injection.decay()
        assert (decay > 0).all() and (decay < 1).all() and (step > 0).all()
        assert injection.spectral_bound() < 1


@pytest.mark.parametrize("injection", INJECTIONS)
def test_bounds_are_what_an_injection_does_to_a_state(injection: str) -> None:
    depth = depth_of(looped("attn", injection=injection))
    bound = depth.injection.spectral_bound()
    if bound is None or injection in ("gate", "lanes"):
        return
    one, two = torch.randn(2, 1, 4, 16, dtype=torch.float64)
    zero = torch.zeros(1, 4, 16, dtype=torch.float64)
    left = [depth.injection.leave(s, depth.injection.enter(s, zero)) for s in (one, two)]
    moved = left[0] - left[1]
    assert (moved.norm(dim=-1) <= bound * (one - two).norm(dim=-1) * (1 + 1e-5)).all()
