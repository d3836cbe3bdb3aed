"""The operators against closed forms that share no code with them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.ops.convolution import next_tail, short_convolution
from models.ops.decay import decayed_attention, decayed_attention_reference
from models.ops.delta import delta_rule, delta_rule_reference
from models.ops.rotary import rotate
from models.ops.sight import visible_keys
from models.ops.softmax import softmax_attention
from tests.models.cases import LENGTH, PACKINGS, ROUNDING

REPEATABLE = settings(max_examples=25, deadline=None, derandomize=True, database=None)
ONE = PACKINGS["one"]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def same_document_past(segments_BT: Tensor) -> Tensor:
    """`[B, T, T]`: row t may see column s."""
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    return same & torch.ones(same.shape[1:], dtype=torch.bool).tril()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_decayed_attention_is_attention_with_decayed_weights(segments: Tensor, groups: int) -> None:
    """`o_t = scale * sum_s exp(g_{s+1} + .. + g_t) (q_t . k_s) v_s` over the document's past."""
    q, k = random(2, 2, LENGTH, groups, 3)
    v, decay = random(2, LENGTH, 4, 5), -random(2, LENGTH, 4).square()
    seen = same_document_past(segments)
    passed = decay.cumsum(1)[:, :, None] - decay.cumsum(1)[:, None]  # [B, T, S, H]
    weights = passed.masked_fill(~seen[..., None], -math.inf).exp()
    repeated = (x.repeat_interleave(4 // groups, dim=2) for x in (q, k))
    scores = torch.einsum("bthk,bshk->btsh", *repeated)
    expected = 0.7 * torch.einsum("btsh,bshv->bthv", weights * scores, v)
    actual, _ = decayed_attention(q, k, v, decay, scale=0.7, segments=segments, chunk_size=8)
    torch.testing.assert_close(actual, expected, **ROUNDING)


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_groups_share_queries_and_keys(chunk_size: int) -> None:
    q, k = random(2, 2, LENGTH, 2, 3)
    v, decay = random(2, LENGTH, 6, 5), -random(2, LENGTH, 6).square()
    repeated = (x.repeat_interleave(3, dim=2) for x in (q, k))
    grouped = decayed_attention(q, k, v, decay, chunk_size=chunk_size)
    for mine, theirs in zip(grouped, decayed_attention(*repeated, v, decay), strict=True):
        torch.testing.assert_close(mine, theirs, **ROUNDING)


def delta_inputs(length: int = LENGTH, keys: int = 4, values: int = 3) -> tuple[Tensor, ...]:
    q, k = random(2, 2, length, 2, keys)
    beta = 2 * random(2, length, 2).sigmoid()
    return q, unit(k), random(2, length, 2, values), -random(2, length, 2).square(), beta


def test_delta_rule_is_a_product_of_matrices() -> None:
    """The state as one matrix product after another, of `alpha (I - beta k k^T)`, written out."""
    q, k, v, decay, beta = delta_inputs()
    state, expected = random(2, 2, 4, 3), []
    start = state.clone()
    for t in range(LENGTH):
        erase = torch.eye(4, dtype=torch.float64) - torch.einsum(
            "bh,bhi,bhj->bhij", beta[:, t], k[:, t], k[:, t]
        )
        write = torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], v[:, t])
        state = decay[:, t].exp()[..., None, None] * erase @ state + write
        expected.append(0.5 * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    actual, last = delta_rule(q, k, v, decay, beta, state=start, chunk_size=8)
    torch.testing.assert_close(actual, torch.stack(expected, dim=1), **ROUNDING)
    torch.testing.assert_close(last, state, **ROUNDING)


def test_delta_rule_recalls_what_it_wrote() -> None:
    """With beta = 1 and no decay, a key returns the value that was last written under it."""
    keys = torch.eye(4, dtype=torch.float64)[[0, 1, 2, 0, 3, 1, 0, 2, 1]][None, :, None]
    values, plain = random(1, 9, 1, 3), torch.zeros(1, 9, 1, dtype=torch.float64)
    read, _ = delta_rule(keys, keys, values, plain, plain + 1, scale=1.0, chunk_size=4)
    torch.testing.assert_close(read, values, **ROUNDING)


def test_delta_rule_reflects_where_beta_is_two() -> None:
    """Twice the same reflection is the identity: what states of permutations are made of."""
    key, plain = unit(random(1, 1, 1, 4)).expand(1, 6, 1, 4), torch.zeros(1, 6, 1).double()
    start, nothing = random(1, 1, 4, 3), torch.zeros(1, 6, 1, 3).double()
    states = [
        delta_rule(
            key[:, :n], key[:, :n], nothing[:, :n], plain[:, :n], plain[:, :n] + 2, state=start
        )[1]
        for n in (1, 6)
    ]
    assert not torch.allclose(states[0], start)
    torch.testing.assert_close(states[1], start, **ROUNDING)


def test_document_of_the_last_token_owns_the_last_state(segments: Tensor) -> None:
    inputs = delta_inputs()
    _, last = delta_rule(*inputs, segments=segments, chunk_size=8)
    for row, ids in enumerate(segments):
        own = [x[row : row + 1, ids == ids[-1]] for x in inputs]
        torch.testing.assert_close(last[row : row + 1], delta_rule(*own)[1], **ROUNDING)
    q, k, v, decay, _ = inputs
    _, last = decayed_attention(q, k, v, decay, segments=segments, chunk_size=8)
    for row, ids in enumerate(segments):
        own = [x[row : row + 1, ids == ids[-1]] for x in (q, k, v, decay)]
        torch.testing.assert_close(last[row : row + 1], decayed_attention(*own)[1], **ROUNDING)


@pytest.mark.parametrize("op", [delta_rule, decayed_attention], ids=lambda op: op.__name__)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [1, 5])
def test_half_inputs_give_half_outputs_and_float32_states(
    op: Callable[..., Any], dtype: torch.dtype, length: int
) -> None:
    inputs = [x.to(dtype) for x in delta_inputs(length)]
    runs = {
        delta_rule: (delta_rule, delta_rule_reference),
        decayed_attention: (decayed_attention, decayed_attention_reference),
    }[op]
    for run in runs:
        out, state = run(*inputs[: 5 if op is delta_rule else 4])
        assert out.dtype == dtype
        assert state.dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("log_decay", [0.0, -16.0, -300.0, "mixed"])
@pytest.mark.parametrize("op", [delta_rule, decayed_attention], ids=lambda op: op.__name__)
def test_extreme_decays_stay_finite(
    op: Callable[..., Any], log_decay: float | str, segments: Tensor
) -> None:
    """A mask after the exponential would give finite outputs here, and NaN in the gradients."""
    q, k, v, decay, beta = (x.float() for x in delta_inputs())
    if log_decay == "mixed":
        decay = torch.where(torch.rand(decay.shape) < 0.5, -300.0, 0.0)
    else:
        decay = torch.full_like(decay, float(log_decay))
    inputs = [q, k, v, decay, beta][: 5 if op is delta_rule else 4]
    inputs = [x.requires_grad_() for x in inputs]
    out, state = op(*inputs, segments=segments, chunk_size=8)
    gradients = torch.autograd.grad(out.square().sum() + state.square().sum(), inputs)
    for x in (out, state, *gradients):
        assert x.isfinite().all()


def explicit_softmax(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention from its definition; `seen` is `[B or 1, T, S]`."""
    repeats = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(repeats, dim=2) for x in (k, v))
    scores = torch.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    weights = scores.exp() * seen[:, None]
    return torch.einsum("bhts,bshk->bthk", weights / weights.sum(-1, keepdim=True), v)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 4])
def test_softmax_attention_is_its_definition(
    segments: Tensor, kv_heads: int, window: int | None
) -> None:
    q, (k, v) = random(2, LENGTH, 4, 6), random(2, 2, LENGTH, kv_heads, 6)
    time = torch.arange(LENGTH)[None]
    visible = visible_keys(time, time, segments, segments, window)
    near = time[..., None] - time[:, None] < (window or LENGTH)
    seen = same_document_past(segments) & near
    assert torch.equal(visible, seen)
    actual = softmax_attention(q, k, v, visible=visible, window=window)
    torch.testing.assert_close(actual, explicit_softmax(q, k, v, seen), **ROUNDING)


def test_plain_causal_attention_needs_no_mask() -> None:
    q, k, v = random(3, 2, LENGTH, 4, 6)
    expected = explicit_softmax(q, k, v, same_document_past(ONE))
    torch.testing.assert_close(softmax_attention(q, k, v, visible=None), expected, **ROUNDING)


def test_keys_that_do_not_exist_are_not_seen() -> None:
    held = torch.tensor([[-1, 0, 3, 2]])
    assert visible_keys(torch.tensor([[2]]), held, None, None, None).tolist() == [
        [[False, True, False, True]]
    ]
    assert visible_keys(torch.tensor([[2]]), held, None, None, 2).tolist() == [
        [[False, False, False, True]]
    ]


def test_rotation_sees_only_distances() -> None:
    q, k = random(2, 1, 1, 1, 8)

    def score(query_at: int, key_at: int) -> float:
        at = [torch.tensor([[position]]) for position in (query_at, key_at)]
        turned = [rotate(x, where, 1e4, 600) for x, where in zip((q, k), at, strict=True)]
        return float((turned[0] * turned[1]).sum())

    assert score(5, 2) == pytest.approx(score(503, 500), abs=1e-12)
    assert score(5, 2) != pytest.approx(score(5, 3), abs=1e-3)


def test_rotation_is_a_product_with_unit_complex_numbers() -> None:
    x, positions = random(2, LENGTH, 3, 8), torch.randint(700, (2, LENGTH))
    frequencies = 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    angles = positions[..., None, None] * frequencies
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([pairs.real, pairs.imag], dim=-1)
    torch.testing.assert_close(rotate(x, positions, 100.0, 700), expected, **ROUNDING)
    assert torch.equal(rotate(x, 0 * positions, 100.0, 1), x), "position 0 is not turned"


@pytest.mark.parametrize("width", [1, 2, 4, 30])
def test_short_convolution_is_torchs_on_each_document(segments: Tensor, width: int) -> None:
    x, weight = random(2, LENGTH, 5), random(5, width)
    actual = short_convolution(x, weight, segments_BT=segments)[0]
    for row, ids in enumerate(segments):
        for document in ids.unique():
            alone = x[row, ids == document].T[None]
            padded = F.pad(alone, (width - 1, 0))
            expected = F.conv1d(padded, weight.flip(1)[:, None], groups=5)[0].T
            torch.testing.assert_close(actual[row, ids == document], expected, **ROUNDING)


@REPEATABLE
@given(
    cut=st.integers(1, LENGTH - 1), width=st.integers(1, 6), packing=st.sampled_from([*PACKINGS])
)
def test_a_tail_carries_the_convolution_on(cut: int, width: int, packing: str) -> None:
    x, weight, segments = random(2, LENGTH, 3), random(3, width), PACKINGS[packing]
    tail = next_tail(x[:, :cut], width, segments[:, :cut], None)
    continues = (segments[:, cut] == segments[:, cut - 1])[:, None, None]
    rest, following = short_convolution(
        x[:, cut:], weight, segments_BT=segments[:, cut:], tail_BWD=tail * continues
    )
    whole = short_convolution(x, weight, segments_BT=segments)[0]
    torch.testing.assert_close(rest, whole[:, cut:], **ROUNDING)
    assert torch.equal(following, next_tail(x, width, segments, None))
