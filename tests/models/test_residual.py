"""Where a block's norms stand: the equations, how weights begin, what is counted."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.block import Block
from models.layers import RMSNorm, parameter_bytes
from models.mlps.listing import MLPS
from models.residual import NORM_PLACES
from models.twins import TWINS, twin_of
from tests.models.cases import (
    BACKBONE_CASES,
    LENGTH,
    MIXER_CASES,
    ROUNDING,
    SITE,
    backbone_config,
    build_backbone,
    randomise,
)

OUTWARD = [place for place in NORM_PLACES if place != "pre"]


def block_of(norm_place: str, mixer: str = "gdn", mlp: str = "swiglu", canon: str = "") -> Block:
    """A new block, as training begins with it."""
    own = (MIXER_CASES[mixer].build(SITE), SITE.dim, MLPS[mlp]().build(SITE.dim, 24))
    return Block(*own, canon, norm_place=norm_place)


def tokens() -> Tensor:
    return torch.randn(2, LENGTH, SITE.dim)


def norm(module: nn.Module | None) -> RMSNorm:
    assert isinstance(module, RMSNorm)
    return module


def expected(place: str, block: Block, x: Tensor, feed: bool) -> Tensor:
    """The four equations, written out."""
    mixer, mlp = block.mixer_residual, block.mlp_residual
    parts = [(lambda y: block.mixer(y)[0], block.mixer_norm, mixer, "A")]
    parts += [(block.mlp, block.mlp_norm, mlp, "C")] if feed else []
    for f, n1, residual, canon in parts:
        assert f is not None and residual is not None

        def inner(y: Tensor, f=f, canon=canon) -> Tensor:
            return f(block.canon.apply_at(canon, y, None, None))

        if place == "pre":
            x = x + inner(norm(n1)(x))
        elif place == "post":
            x = norm(residual.sum_norm)(x + inner(x))
        elif place == "sandwich":
            x = x + norm(residual.made_norm)(inner(norm(n1)(x)))
        else:
            x = norm(residual.sum_norm)(inner(norm(n1)(x)) + x)
    return x


@pytest.mark.parametrize("feed", [True, False])
@pytest.mark.parametrize("canon", ["", "AC"])
@pytest.mark.parametrize("place", NORM_PLACES)
def test_a_block_is_its_equation(place: str, canon: str, feed: bool) -> None:
    block, x = block_of(place, canon=canon).double(), tokens().double()
    randomise(block)
    actual = block(x, feed=feed)[0]
    torch.testing.assert_close(actual, expected(place, block, x, feed), **ROUNDING)


@pytest.mark.parametrize("case", MIXER_CASES)
def test_a_sandwiched_block_begins_as_the_identity_and_learns(case: str) -> None:
    """No scale is dead, because the mixer's output is drawn, and no gradient is a thousandfold."""
    block, x = block_of("sandwich", case), tokens()
    y = block(x)[0]
    assert torch.equal(y, x)
    y.sin().sum().backward()
    assert block.mlp_residual is not None
    for residual in (block.mixer_residual, block.mlp_residual):
        gradient = norm(residual.made_norm).weight.grad
        assert gradient is not None and gradient.count_nonzero() == SITE.dim
        assert gradient.abs().max() < x[..., 0].numel()


@pytest.mark.parametrize("mlp", MLPS)
def test_every_output_is_drawn_behind_a_norm(mlp: str) -> None:
    parts = block_of("sandwich", "attn", mlp).named_modules()
    outputs = {name: part for name, part in parts if name.endswith("output")}
    assert len(outputs) >= 2
    for name, part in outputs.items():
        assert isinstance(part, nn.Linear)
        scale = part.weight.var().item() * part.in_features
        assert scale == pytest.approx(1, rel=0.5), name


@pytest.mark.parametrize("place", ["post", "sandwich_res"])
def test_a_block_that_norms_the_sum_begins_as_that_norm(place: str) -> None:
    x = tokens()
    once = norm(block_of(place).mixer_residual.sum_norm)(x)
    torch.testing.assert_close(block_of(place)(x)[0], once)


@pytest.mark.parametrize("place", NORM_PLACES)
def test_resetting_a_block_begins_it_anew(place: str) -> None:
    """Also where it was made without storage, as sharded models are."""
    with torch.device("meta"):
        empty = block_of(place, canon="A")
    empty.to_empty(device="cpu")
    for parameter in empty.parameters():
        nn.init.constant_(parameter, math.nan)
    made = block_of(place, canon="A")
    for block in (empty, made, made):
        torch.manual_seed(4)
        block.reset_parameters()
    for (name, one), two in zip(empty.named_parameters(), made.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("feed", [True, False])
@pytest.mark.parametrize("place", NORM_PLACES)
def test_every_norm_is_weights_to_read(place: str, feed: bool) -> None:
    block = block_of(place)
    parts = [block.mixer, *([block.mlp] if feed else [])]
    norms = 4 * SITE.dim * len(NORM_PLACES[place]) * len(parts)
    inner = sum(parameter_bytes(part) for part in parts if part is not None)
    assert block.cost(1, feed).weight_bytes == inner + norms
    assert block.prefill_cost(LENGTH, feed).weight_bytes == inner + norms
    if feed:
        assert inner + norms == parameter_bytes(block)


def test_pre_norm_keeps_the_names_of_its_weights() -> None:
    """Checkpoints made before there was a choice still load."""
    names = [name for name in block_of("pre").state_dict() if "norm" in name.split(".")[0]]
    assert names == ["mixer_norm.weight", "mlp_norm.weight"]


@pytest.mark.parametrize("match", TWINS[1:])
@pytest.mark.parametrize("place", OUTWARD)
def test_a_twin_norms_in_the_same_places(place: str, match: str) -> None:
    looped = replace(
        BACKBONE_CASES["norm sandwich_res looped"], norm_place=place, dim=32, mlp_hidden=96
    )
    twin = build_backbone(twin_of(looped, match))
    assert twin.config.norm_place == place
    assert (twin.depth.block(0).mixer_norm is None) == ("read" not in NORM_PLACES[place])


def test_another_placement_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone.norm_place=peri is not known: choose pre, "):
        build_backbone(backbone_config(norm_place="peri"))
