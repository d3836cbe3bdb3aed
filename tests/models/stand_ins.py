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
        initial_state: Tensor | None,
        output_final_state: bool,
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
