"""The looped depth against plain stacks (property tests t1, t2, t9 and t12 of looped models)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.depth.depth import Asked
from models.depth.draws import Draws
from tests.models.cases import (
    LENGTH,
    PACKINGS,
    ROUNDING,
    backbone_config,
    build_backbone,
)
from tests.models.loops import looped, stack_with_blocks_of, tokens


@pytest.mark.parametrize("injection", ["add", "none"])
def test_one_loop_is_the_plain_stack(injection: str) -> None:
    backbone = looped("gdn attn", 3, prelude=1, loops=1, injection=injection, norm=False)
    plain, read = stack_with_blocks_of(backbone, [0, 1, 2]), tokens()
    actual = backbone(read, PACKINGS["several"]).hidden_BTD
    assert torch.equal(actual, plain(read, PACKINGS["several"]).hidden_BTD)


def test_a_tied_loop_is_a_deep_stack_of_copies() -> None:
    backbone = looped("gdn attn", 4, prelude=1, coda=1, loops=3, injection="none", norm=False)
    plain = stack_with_blocks_of(backbone, [0, 1, 2, 1, 2, 1, 2, 3])
    read = tokens()
    actual = backbone(read, PACKINGS["several"]).hidden_BTD
    assert torch.equal(actual, plain(read, PACKINGS["several"]).hidden_BTD)


def test_gradients_of_a_tied_loop_add_up_over_the_copies() -> None:
    backbone = looped(loops=3, injection="none", norm=False)
    plain, read = stack_with_blocks_of(backbone, [0, 1] * 3), tokens()
    for model in (backbone, plain):
        model(read).hidden_BTD.sin().sum().backward()
    gradients = {name: p.grad for name, p in plain.depth.blocks.named_parameters()}
    for name, parameter in backbone.depth.blocks.named_parameters():
        index, rest = name.split(".", 1)
        copies = sum(gradients[f"{int(index) + 2 * loop}.{rest}"] for loop in range(3))
        torch.testing.assert_close(parameter.grad, copies, **ROUNDING)


@pytest.mark.parametrize("norm", [True, False])
def test_injection_is_what_its_equation_says(norm: bool) -> None:
    backbone = looped("gdn attn", 4, prelude=1, coda=1, loops=3, injection="add", norm=norm)
    depth, x = backbone.depth, torch.randn(2, LENGTH, 16, dtype=torch.float64)

    def core(hidden: Tensor) -> Tensor:
        return depth.blocks[2](depth.blocks[1](hidden)[0])[0]

    entry = depth.entry_norm(depth.blocks[0](x)[0])
    hidden = core(entry)
    for _ in range(2):
        hidden = core(depth.loop_norm(hidden) + entry)
    expected = depth.blocks[3](hidden)[0]
    assert torch.equal(depth(x, None, None, Asked(3))[0], expected)


def test_more_loops_start_as_fewer_do() -> None:
    backbone, read = looped("gdn attn", 3, prelude=1, coda=1, loops=4), tokens()
    four = backbone(read, record=True).trajectory.states
    two = backbone(read, loops=2, record=True).trajectory.states
    assert [len(four), len(two)] == [4, 2]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(two, four, strict=False))


def test_states_are_recorded_only_on_demand() -> None:
    backbone, read = looped("gdn attn", 3, loops=3), tokens()
    silent, recorded = backbone(read), backbone(read, record=True)
    assert silent.trajectory.states == []
    assert recorded.trajectory.loops == silent.trajectory.loops == 3
    assert len(recorded.trajectory.states) == 3
    assert all(state.shape == (2, LENGTH, 16) for state in recorded.trajectory.states)
    last = backbone.norm(recorded.trajectory.states[-1])
    assert torch.equal(last, recorded.hidden_BTD), "without a coda the last state is read out"


def test_an_ordinary_stack_records_its_one_state() -> None:
    backbone = build_backbone(backbone_config())
    out = backbone(tokens(), record=True)
    assert out.trajectory.loops == 1
    assert torch.equal(backbone.norm(out.trajectory.states[0]), out.hidden_BTD)


@pytest.mark.parametrize("loops", [1, 2, 5])
def test_the_count_asked_for_is_run(loops: int) -> None:
    backbone, read = looped("gdn attn", 4, prelude=1, coda=1, loops=3), tokens()
    state = backbone.init_state(2, LENGTH, dtype=torch.float64, loops=loops)
    assert len(state.calls) == backbone.block_calls_per_position(loops) == 2 + 2 * loops
    parts = [backbone(part, None, state).hidden_BTD for part in read.split([9, 11, 1], dim=1)]
    expected = backbone(read, loops=loops)
    assert expected.trajectory.loops == loops
    torch.testing.assert_close(torch.cat(parts, dim=1), expected.hidden_BTD, **ROUNDING)


def test_every_parameter_is_reached_from_two_loops_on() -> None:
    backbone = looped("gdn attn", 3, loops=2)
    backbone(tokens()).hidden_BTD.sin().sum().backward()
    unused = [name for name, p in backbone.named_parameters() if p.grad is None]
    assert unused == ["head.weight"]


# Sampled counts


def test_sampled_counts_are_a_pure_function() -> None:
    one, two = (looped(count="uniform", min_loops=1, max_loops=8).depth for _ in range(2))
    draws = [one.counts(Draws(3, 0, step)) for step in range(50)]
    torch.manual_seed(99)
    assert draws == [two.counts(Draws(3, 0, step)) for step in range(50)]
    assert draws[20:] == [two.counts(Draws(3, 0, step)) for step in range(20, 50)], "on resume"
    assert draws != [one.counts(Draws(4, 0, step)) for step in range(50)]
    assert draws != [one.counts(Draws(3, 1, step)) for step in range(50)]


def test_sampled_counts_are_uniform() -> None:
    depth, steps = looped(count="uniform", min_loops=2, max_loops=6).depth, 5000
    draws = torch.tensor([depth.counts(Draws(0, 0, step))[0] for step in range(steps)])
    shares = torch.bincount(draws, minlength=7)[2:] / steps
    assert draws.min() == 2 and draws.max() == 6
    assert (shares - 0.2).abs().max() < 0.02, f"five standard errors off: {shares.tolist()}"
    assert abs(draws.double().mean().item() - 4) < 0.1
    neighbours = torch.corrcoef(torch.stack([draws[1:], draws[:-1]]).double())[0, 1]
    assert abs(neighbours) < 0.07, "successive counts hang together"


def test_without_a_range_each_step_runs_the_default() -> None:
    depth = looped(loops=3).depth
    assert all(depth.counts(Draws(0, 0, step, 9)) == [3] for step in range(9))
    assert build_backbone(backbone_config()).depth.counts(Draws(0, 0, 1)) == [1]


# What is refused


def test_a_fixed_depth_refuses_loops() -> None:
    backbone = build_backbone(backbone_config())
    assert not backbone.depth.adjustable and backbone.depth.default_loops == 1
    backbone(tokens(), loops=1)
    for ask in (
        lambda: backbone(tokens(), loops=2),
        lambda: backbone.cost(3, loops=2),
        lambda: backbone.init_state(1, 3, loops=2),
        lambda: backbone.block_calls_per_position(2),
    ):
        with pytest.raises(ValueError, match=r"loops=2 .* depth is fixed"):
            ask()


def test_a_looped_depth_refuses_no_loops() -> None:
    backbone = looped()
    assert backbone.depth.adjustable
    for loops in (0, -1):
        with pytest.raises(ValueError, match=f"loops={loops} must be at least 1"):
            backbone(tokens(), loops=loops)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prelude": 1, "coda": 1},
            "depth.prelude=1 and depth.coda=1 leave nothing to loop over 2",
        ),
        ({"prelude": -1}, "depth.prelude=-1"),
        ({"coda": -1}, "depth.coda=-1"),
        ({"loops": 0}, "depth.loops=0 must be at least 1"),
        ({"min_loops": 2}, "depth.min_loops=2 .* depth.count=fixed draws none"),
        ({"max_loops": 2}, "depth.max_loops=2 limit counts .* depth.count=fixed draws none"),
        ({"count": "uniform", "min_loops": 0}, "depth.min_loops=0 must be at least 1"),
        (
            {"count": "uniform", "min_loops": 3, "max_loops": 2},
            "depth.min_loops=3 must not be above depth.max_loops=2",
        ),
        ({"injection": "glue"}, "depth.injection=glue is not known: choose none or add or"),
        ({"start": "here"}, "depth.start=here is not known: choose input or zeros"),
        ({"relaxation": "nap"}, "depth.relaxation=nap is not known: choose none or scale"),
        ({"count": "many"}, "depth.count=many is not known: choose fixed or uniform"),
        ({"curriculum": "steep"}, "depth.curriculum=steep is not known: choose none or linear"),
        ({"order": "random"}, "depth.order=random is not known: choose cycle or sequence"),
        ({"part": "mlp"}, "depth.part=mlp is not known: choose block or mixer"),
        ({"part": "mixer"}, "depth.part=mixer runs .* depth.order=cycle can't be: set sequence"),
        ({"order": "sequence"}, "depth.order=sequence repeats single layers, so depth.injection"),
        ({"mean_loops": 0.5}, "depth.mean_loops=0.5 must be at least 1, or null"),
        ({"spread": -1.0}, "depth.spread=-1.0 must be at least 0"),
        ({"loop_from": 1.5}, "depth.loop_from=1.5 must lie between 0 and 1"),
        ({"rank": 0}, "depth.rank=0 must be at least 1"),
        ({"gradient_loops": 0}, "depth.gradient_loops=0 must be at least 1"),
        ({"gradient_loops": 5}, "depth.gradient_loops=5 is above the 4 loops"),
        (
            {"gradient_loops": 2, "order": "sequence", "injection": "none"},
            "depth.order=sequence repeats single layers: set gradient_loops=null",
        ),
        ({"gradient_loops": 2, "injection": "none"}, "depth.gradient_loops=2 cuts off all that"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        looped(**settings)
    assert "\n" not in str(error.value)
