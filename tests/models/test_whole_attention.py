"""Attention that sees whole documents: its equation, its cost, and what it can't do."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.kernels import TOLERANCE, flash_documents, self_check
from models.mixer import Site
from models.mixers.attention import Attention, AttentionConfig, SlidingWindowConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.ops.blocked_attention import KEPT_LENGTH
from models.ops.twin import step_by_step
from models.parallel import Parallel
from tests.models.cases import (
    LENGTH,
    PACKINGS,
    ROUNDING,
    SITE,
    backbone_config,
    build_backbone,
    build_mixer,
    documents,
    segments_of,
)
from tests.models.stand_ins import varlen_by_loop

WHOLE = AttentionConfig(causal=False)


def inputs(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randn(batch, length, SITE.dim, dtype=torch.float64)


def by_hand(mixer: Attention, x_TD: Tensor) -> Tensor:
    """One document alone, unrotated and unnormalised: softmax over all of its tokens."""
    q, k, v = mixer.qkv(x_TD).unflatten(-1, (3, mixer.heads, mixer.head_dim)).unbind(1)
    scores = torch.einsum("thk,shk->hts", q, k) * mixer.head_dim**-0.5
    return mixer.output(torch.einsum("hts,shv->thv", scores.softmax(-1), v).flatten(1))


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_token_sees_its_document_and_no_other(packing: str) -> None:
    mixer = build_mixer(AttentionConfig(causal=False, rope_base=None, qk_norm=False))
    assert isinstance(mixer, Attention)
    x, segments = inputs(), PACKINGS[packing]
    y = mixer(x, segments)[0]
    for name, own in documents(segments):
        expected = by_hand(mixer, x[own])
        torch.testing.assert_close(y[own], expected, **ROUNDING, msg=lambda t, n=name: f"{n}: {t}")


def test_gradients_come_from_the_whole_document_alone() -> None:
    mixer, segments, x = build_mixer(WHOLE), PACKINGS["several"], inputs().requires_grad_()
    y = mixer(x, segments)[0]
    for name, own in documents(segments):
        first = own & (own.cumsum(dim=1) == 1)
        (gradient,) = torch.autograd.grad(y[first].square().sum(), x, retain_graph=True)
        assert gradient[~own].count_nonzero() == 0, f"{name} draws gradient from others"
        assert gradient[own].abs().sum(dim=-1).min() > 0, f"{name} ignores tokens of its own"


@pytest.mark.parametrize("length", [150, KEPT_LENGTH + 70])
def test_blocks_are_the_twin_at_any_length(length: int) -> None:
    """Over several blocks of queries, and where probabilities are made again for the gradient."""
    mixer = build_mixer(WHOLE, Site(dim=4, head_dim=2))
    segments, x = segments_of([[60, length - 80, -20]]), inputs(1, length)[..., :4]
    found = []
    for twin in (False, True):
        read = x.clone().requires_grad_()
        if twin:
            with step_by_step():
                y = mixer(read, segments)[0]
        else:
            y = mixer(read, segments)[0]
        found.append([y, torch.autograd.grad(y.sin().sum(), read)[0]])
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, **ROUNDING)


def test_without_gradients_the_result_is_the_same() -> None:
    mixer, x, segments = build_mixer(WHOLE), inputs(), PACKINGS["left padded"]
    expected = mixer(x, segments)[0]
    with torch.inference_mode():
        torch.testing.assert_close(mixer(x, segments)[0], expected, **ROUNDING)


def test_each_token_pays_for_all_and_nothing_is_kept() -> None:
    whole, causal = build_mixer(WHOLE), build_mixer(AttentionConfig())
    for length in (1, 2, LENGTH):
        read = whole.prefill_cost(length)
        assert read.flops == length * causal.cost(length).flops
        assert read.weight_bytes == causal.prefill_cost(length).weight_bytes
        assert read.state_bytes == whole.cost(length).state_bytes == 0
    inner = SITE.dim
    dearer = whole.prefill_cost(LENGTH).flops - causal.prefill_cost(LENGTH).flops
    assert dearer == 4 * inner * LENGTH * (LENGTH - 1) / 2


def test_a_state_is_refused() -> None:
    whole, causal = build_mixer(WHOLE), build_mixer(AttentionConfig())
    with pytest.raises(ValueError, match=r"can't write word by word.*objective.fill=true"):
        whole.init_state(1, LENGTH, "cpu", torch.float64)
    with pytest.raises(ValueError, match=r"causal=false: .*read the document from scratch"):
        whole(inputs(1), None, causal.init_state(1, LENGTH, "cpu", torch.float64))
    backbone = build_backbone(backbone_config("gdn whole"))
    with pytest.raises(ValueError, match="causal=false"):
        backbone.init_state(1, LENGTH)


@pytest.mark.parametrize(
    "config",
    [
        AttentionConfig(causal=False, window=4),
        AttentionConfig(causal=False, window=4, sinks=2),
        AttentionConfig(causal=False, sinks=2),
        SlidingWindowConfig(causal=False),
    ],
)
def test_a_window_or_sinks_are_refused(config: AttentionConfig) -> None:
    with pytest.raises(ValueError, match="causal=false sees the whole document, but window="):
        config.build(SITE)


@pytest.mark.parametrize(
    ("layout", "changes", "expected"),
    [
        ("attn", {}, True),
        ("gdn whole", {}, False),
        ("attn+whole", {}, False),
        ("attn", {"overrides": {"1": {"causal": False}}}, False),
        ("whole", {"overrides": {"0": {"causal": True}, "1": {"causal": True}}}, True),
    ],
)
def test_one_mixer_that_sees_ahead_makes_a_backbone_see_ahead(
    layout: str, changes: dict[str, Any], expected: bool
) -> None:
    assert build_backbone(backbone_config(layout, **changes)).causal == expected


def test_side_by_side_one_is_enough() -> None:
    pair = Parallel([WHOLE.build(SITE), GatedDeltaNetConfig().build(SITE)], SITE.dim)
    assert not pair.causal


@pytest.mark.parametrize("causal", [True, False])
def test_a_flash_attention_that_ignores_the_order_asked_for_is_left_aside(causal: bool) -> None:
    def always(*inputs: Any, **options: Any) -> Tensor:
        return varlen_by_loop(*inputs, **options | {"causal": causal})

    assert self_check(flash_documents, always, torch.device("cpu")) > TOLERANCE


def test_flash_attention_gets_the_whole_document() -> None:
    x, segments = torch.randn(2, LENGTH, 3, 4), PACKINGS["several"]
    y = flash_documents(varlen_by_loop, x, x, x, segments, None, causal=False)
    for _, own in documents(segments):
        scores = torch.einsum("thk,shk->hts", x[own], x[own]) / 2
        torch.testing.assert_close(y[own], torch.einsum("hts,shv->thv", scores.softmax(-1), x[own]))
