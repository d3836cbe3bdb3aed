"""Thoughts over every kind of depth: made with states as by whole passes, in training too."""

import pytest
import torch
from torch import Tensor

from models.backbone import Backbone
from models.depth.depth import DepthConfig
from models.depth.draws import Draws
from models.depth.listing import DEPTHS
from models.depth.looped import LoopedDepthConfig
from models.latent.feedback import FeedbackConfig
from models.ops.twin import step_by_step
from tests.models.cases import ROUNDING, backbone_config, build_backbone, soften
from tests.models.test_latent_conformance import SEGMENTS, roles, tokens

DEPTH_CASES: dict[str, DepthConfig] = {
    **{kind: made() for kind, made in DEPTHS.items()},
    "uniform count": LoopedDepthConfig(loops=2, count="uniform", min_loops=1, max_loops=4),
    "noise": LoopedDepthConfig(loops=2, start="noise", injection="concat"),
    "count of each row": LoopedDepthConfig(
        loops=2, count="uniform", min_loops=1, max_loops=4, count_per="sequence"
    ),
    "expert choice": LoopedDepthConfig(loops=2, route="expert"),
    "token choice": LoopedDepthConfig(loops=3, route="token"),
    "gradient window": LoopedDepthConfig(prelude=1, loops=3, gradient_loops=1),
    "gate that stops": LoopedDepthConfig(loops=4, halting="gate", stop="gate:0.5"),
    "carried memory": LoopedDepthConfig(loops=2, memory="carry"),
}
DRAWS = Draws(0, stage=0, step=5, steps=10, rows=2)


def thinking(depth: DepthConfig) -> Backbone:
    latent = FeedbackConfig(thoughts=3)
    backbone = build_backbone(backbone_config("gdn attn", 4, depth=depth, latent=latent))
    soften(backbone)  # thoughts over loops are a long chain
    return backbone


def results(backbone: Backbone, read: Tensor, draws: Draws | None) -> list[Tensor]:
    """Logits of real places, and gradients of their squares."""
    out = backbone(read, SEGMENTS, roles_BT=roles(), draws=draws)
    y = out.readout(out.hidden_BTD)[SEGMENTS >= 0]
    weights = list(backbone.parameters())
    found = torch.autograd.grad(y.square().mean(), weights, allow_unused=True)
    zeros = [torch.zeros_like(weight) for weight in weights]
    return [y.detach(), *(z if g is None else g for g, z in zip(found, zeros, strict=True))]


@pytest.mark.parametrize("draws", [None, DRAWS], ids=["evaluation", "training"])
@pytest.mark.parametrize("case", DEPTH_CASES)
def test_thoughts_are_what_whole_passes_make(case: str, draws: Draws | None) -> None:
    backbone, read = thinking(DEPTH_CASES[case]), tokens()
    fast = results(backbone, read, draws)
    with step_by_step():
        plain = results(backbone, read, draws)
    torch.testing.assert_close(fast, plain, **ROUNDING)


def test_what_needs_its_rows_is_run_as_often_as_it_costs() -> None:
    """By one more pass for each thought; a depth that doesn't reads every position once."""
    keeping, other = thinking(DEPTH_CASES["noise"]), thinking(DEPTH_CASES["looped"])
    assert keeping.depth.keeps_rows and not other.depth.keeps_rows
    passes = keeping.thinking_cost(9, 3).flops / keeping.depth.prefill_cost(9, 2).flops
    assert passes == pytest.approx(3)
    assert other.thinking_cost(9, 3).flops == 0
