"""Plain-torch stand-ins for fused kernels: the packages' signatures, a document at a time."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.ops.decay import decayed_attention_reference
from models.ops.delta import delta_rule_reference, dplr_reference


def by_document(operation: Callable[..., tuple[Tensor, Tensor]], order: str) -> Callable[..., Any]:
    """Give a step-by-step twin the signature of fla's chunk functions."""

    def function(
        *,
        scale: float,
        output_final_state: bool,
        initial_state: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        **inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        assert output_final_state
        assert initial_state is None or initial_state.dtype == torch.float32
        assert len({inputs[name].dtype for name in "qkv"}) == 1
        assert inputs["g"].dtype == torch.float32
        given = [inputs[name] for name in order.split()]
        if cu_seqlens is None:
            return operation(*given, scale=scale, state=initial_state)
        assert given[0].shape[0] == 1
        assert initial_state is None or len(initial_state) == len(cu_seqlens) - 1
        outputs, states = [], []
        for place, (start, end) in enumerate(itertools.pairwise(cu_seqlens)):
            first = None if initial_state is None else initial_state[place : place + 1]
            document = [x[:, start:end] for x in given]
            out, last = operation(*document, scale=scale, state=first)
            outputs.append(out)
            states.append(last)
        return torch.cat(outputs, dim=1), torch.cat(states)

    return function


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    return_final_states: bool = False,
) -> tuple[Tensor, Tensor]:
    """mamba-ssm's: states are `[B, H, P, N]`, and what is given belongs to document 0."""
    assert return_final_states
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32 and int(seq_idx[:, 0].abs().max()) == 0
    out, last = decayed_attention_reference(
        C,
        B,
        (dt[..., None] * x).to(x.dtype),
        dt * A,
        scale=1.0,
        segments=seq_idx,
        state=None if initial_states is None else initial_states.mT,
    )
    return out, last.mT


def causal_conv1d_fn(x: Tensor, weight: Tensor, seq_idx: Tensor | None = None) -> Tensor:
    """causal-conv1d's: `x [B, D, T]`, channels last, filters from the furthest input on."""
    assert x.stride(1) == 1
    out, width = torch.zeros_like(x), weight.shape[1]
    for back in range(width):
        end = x.shape[2] - back
        term = x[:, :, :end] * weight[:, width - 1 - back, None]
        if seq_idx is not None:
            assert seq_idx.dtype == torch.int32 and seq_idx.is_contiguous()
            assert seq_idx.shape == (x.shape[0], x.shape[2]) and bool((seq_idx >= 0).all())
            term = term * (seq_idx[:, :end] == seq_idx[:, back:])[:, None]
        out = out + torch.nn.functional.pad(term, (back, 0))
    return out


STAND_INS: dict[str, Callable[..., Any]] = {
    "chunk_simple_gla": by_document(decayed_attention_reference, "q k v g"),
    "chunk_gla": by_document(decayed_attention_reference, "q k v g"),
    "chunk_gated_delta_rule": by_document(delta_rule_reference, "q k v g beta"),
    "chunk_kda": by_document(delta_rule_reference, "q k v g beta"),
    "chunk_dplr_delta_rule": by_document(dplr_reference, "q k v a b g"),
    "mamba_chunk_scan_combined": mamba_chunk_scan_combined,
    "causal_conv1d_fn": causal_conv1d_fn,
}
"""By the names that the packages give them."""


def attend_over(q: Tensor, k: Tensor, v: Tensor, seen: list[int]) -> Tensor:
    """One query `[K]` over some keys `[S, K]`."""
    weights = (k[seen] @ q * q.shape[-1] ** -0.5).softmax(dim=0)
    return weights @ v[seen]


def document_of(bounds: list[int], time: int) -> int:
    """Where the document of a token begins."""
    return max(start for start in bounds[:-1] if start <= time)


def parallel_nsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g_slc: Tensor,
    block_indices: Tensor,
    block_counts: Tensor,
    block_size: int,
    window_size: int,
    scale: float,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """fla's, a query at a time; blocks count from the document's start."""
    batch, length, heads, keys = q.shape
    assert heads // k.shape[2] == 16 and window_size == 0 and scale == keys**-0.5
    assert bool((g_slc == 1).all()) and bool((block_indices >= 0).all())
    assert cu_seqlens is None or batch == 1
    bounds = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    rows, dtype = [], v.dtype
    q, k, v = q.float(), k.float(), v.float()
    for row in range(batch):
        for time in range(length):
            start = document_of(bounds, time)
            count = int(block_counts[row, time, 0])
            blocks = block_indices[row, time, 0, :count].tolist()
            assert len(set(blocks)) == count
            inside = [(s, (s - start) // block_size) for s in range(start, time + 1)]
            seen = [s for s, block in inside if block in blocks]
            for head in range(heads):
                rows.append(attend_over(q[row, time, head], k[row, :, 0], v[row, :, 0], seen))
    return torch.stack(rows).view(batch, length, heads, -1).to(dtype)


def parallel_moba(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    chunk_size: int,
    topk: int,
) -> Tensor:
    """fla's, a query at a time: its own block and the best `topk - 1` complete ones before."""
    assert q.shape[0] == 1 and q.shape == k.shape
    bounds = cu_seqlens.tolist()
    assert int(cu_seqlens.diff().max()) == max_seqlen
    rows, dtype = [], v.dtype
    q, k, v = q.float(), k.float(), v.float()
    for time in range(q.shape[1]):
        start = document_of(bounds, time)
        own = (time - start) // chunk_size
        for head in range(q.shape[2]):
            keys, query = k[0, :, head], q[0, time, head]
            blocks = [
                range(start + b * chunk_size, start + (b + 1) * chunk_size) for b in range(own)
            ]
            scores = [float((keys[list(b)].mean(dim=0) @ query).detach()) for b in blocks]
            best = sorted(range(own), key=lambda b: -scores[b])[: topk - 1]
            seen = [s for b in sorted(best) for s in blocks[b]]
            seen += range(start + own * chunk_size, time + 1)
            rows.append(attend_over(query, keys, v[0, :, head], seen))
    return torch.stack(rows).view(*q.shape[:3], -1).to(dtype)


STAND_INS |= {"parallel_nsa": parallel_nsa, "parallel_moba": parallel_moba}


def varlen_by_loop(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, _: Tensor, longest: int, __: int, **options
) -> Tensor:
    """Variable-length attention with flash-attn's arguments, a document at a time."""
    repeats = q.shape[1] // k.shape[1]
    outputs = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        assert end - start <= longest
        heads_first = (
            q[start:end].transpose(0, 1),
            k[start:end].repeat_interleave(repeats, dim=1).transpose(0, 1),
            v[start:end].repeat_interleave(repeats, dim=1).transpose(0, 1),
        )
        is_causal = options["causal"]
        out = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=is_causal)
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)
