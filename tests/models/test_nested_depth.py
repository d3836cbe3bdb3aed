"""Nested loops: the equations, the gradient's window, what is refused."""

from typing import Any

import pytest
import torch

from models.backbone import Backbone
from models.depth.draws import Draws
from models.depth.nested import NestedDepth, NestedDepthConfig
from tests.models.cases import LENGTH, ROUNDING, VOCABULARY, backbone_config, build_backbone


def nested(num_layers: int = 2, layout: str = "gdn attn", **settings: Any) -> Backbone:
    return build_backbone(backbone_config(layout, num_layers, depth=NestedDepthConfig(**settings)))


def by_hand(backbone: Backbone, read: torch.Tensor, detach_after: int = 0) -> torch.Tensor:
    """The equations, for two layers of which the second makes the slow state if it is apart."""
    depth = backbone.depth
    assert isinstance(depth, NestedDepth)
    apart = depth.config.high_layers == 1
    one, two = (lambda x, block=block: block(x)[0] for block in depth.blocks)
    fast = one if apart else (lambda x: two(one(x)))
    slow = two if apart else fast
    entry = depth.entry_norm(backbone.embedding(read))
    low, high = (start(entry, None) for start in (depth.low_start, depth.high_start))
    for loop in range(depth.config.loops):
        for _ in range(depth.config.low_loops):
            low = fast(depth.low_norm(low + high + entry))
        high = slow(depth.high_norm(high + low))
        if loop + 1 == detach_after:
            low, high = low.detach(), high.detach()
    return backbone.norm(high)


@pytest.mark.parametrize("high_layers", [0, 1])
@pytest.mark.parametrize("start", ["input", "zeros"])
def test_nested_loops_are_their_equations(high_layers: int, start: str) -> None:
    backbone = nested(high_layers=high_layers, start=start, loops=3, low_loops=2)
    read = torch.randint(VOCABULARY, (2, LENGTH))
    torch.testing.assert_close(backbone(read).hidden_BTD, by_hand(backbone, read), **ROUNDING)
    calls = 3 * (2 * (2 - high_layers) + (high_layers or 2))
    assert backbone.block_calls_per_position() == calls


@pytest.mark.parametrize(
    ("own", "asked"), [(1, None), (2, None), (None, None), (1, 2), (2, 1), (None, 2), (1, 3)]
)
def test_a_window_is_a_detached_pair_of_states(own: int | None, asked: int | None) -> None:
    """The depth's own window, or the one that a pass is asked for in its place."""
    backbone, window = nested(high_layers=1, loops=3, gradient_loops=own), asked or own
    read = torch.randint(VOCABULARY, (2, LENGTH))
    gradients = []
    for made in (
        backbone(read, draws=Draws(0, 0, 0, rows=2), gradient_loops=asked).hidden_BTD,
        by_hand(backbone, read, 3 - window if window else 0),
    ):
        backbone.zero_grad()
        made.sin().sum().backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    for name, expected in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], expected, **ROUNDING)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"high_layers": 2}, "must leave a layer of 2 for the fast state"),
        ({"prelude": 1, "coda": 1}, "must leave a layer of 2 for the fast state"),
        ({"low_loops": 0}, "depth.low_loops=0 must be at least 1"),
        ({"start": "there"}, "depth.start=there is not known: choose input or zeros"),
        ({"gradient_loops": 4}, "depth.gradient_loops=4 must lie between 1 and depth.loops=3"),
        ({"start": "learned"}, "depth.start=learned never learns behind a window"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nested(**settings)
