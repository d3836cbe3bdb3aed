"""Cut packed sequences into chunks, and say which tokens of a chunk may see what.

Legend: B batch, T time, N chunks, C tokens in a chunk, H heads.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ChunkMask:
    """Document bookkeeping of one chunked sequence; every field is boolean.

    Attributes:
        causal_BNCC: row i may read column j: same document and j <= i.
        reads_BNC: the token continues the document of the state that enters its chunk.
        writes_BNC: the token belongs to the document of the state that leaves its chunk.
        carries_BN: the state that leaves the chunk is of the document that entered it.
    """

    causal_BNCC: Tensor
    reads_BNC: Tensor
    writes_BNC: Tensor
    carries_BN: Tensor

    def chunk_first(self) -> "ChunkMask":
        """Swap the axes B and N."""
        return ChunkMask(*(getattr(self, field.name).transpose(0, 1) for field in fields(self)))


def padding_to(length: int, chunk_size: int) -> int:
    """Return how many tokens to append so that `length` is a multiple of `chunk_size`."""
    return -length % chunk_size


def pad_time(x: Tensor, amount: int) -> Tensor:
    """Append `amount` zeros along axis 1 (time) of `[B, T, ...]`."""
    if amount == 0:
        return x
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, amount))


def to_chunks(x_BTHD: Tensor, chunk_size: int) -> Tensor:
    """Copy `[B, N*C, H, D]` to `[N, B, H, C, D]`: laid out once, not again by each product."""
    return x_BTHD.unflatten(1, (-1, chunk_size)).permute(1, 0, 3, 2, 4).contiguous()


def from_chunks(x_NBHCD: Tensor, length: int) -> Tensor:
    """Undo `to_chunks` and drop the padding: `[N, B, H, C, D]` to `[B, T, H, D]`."""
    return x_NBHCD.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :length]


def chunk_mask(
    segments_BT: Tensor | None, shape: tuple[int, int], chunk_size: int, device: torch.device
) -> ChunkMask:
    """Build the masks of a `[B, T]` sequence (T already padded to whole chunks).

    The state that enters the first chunk belongs to the document of the first token: a caller whose
    state is of another document clears it. `segments_BT=None` means one document in every row.
    """
    length = shape[1]
    if segments_BT is None:
        segments_BT = torch.zeros(1, length, dtype=torch.long, device=device)
    elif segments_BT.shape[1] < length:  # padding continues the last document and writes nothing
        last = segments_BT[:, -1:].expand(-1, length - segments_BT.shape[1])
        segments_BT = torch.cat([segments_BT, last], dim=1)
    chunks_BNC = segments_BT.unflatten(1, (-1, chunk_size))
    last_BN = chunks_BNC[:, :, -1]
    entering_BN = torch.cat([chunks_BNC[:, :1, 0], last_BN[:, :-1]], dim=1)
    lower = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=device).tril()
    return ChunkMask(
        causal_BNCC=(chunks_BNC[..., :, None] == chunks_BNC[..., None, :]) & lower,
        reads_BNC=chunks_BNC == entering_BN[..., None],
        writes_BNC=chunks_BNC == last_BN[..., None],
        carries_BN=entering_BN == last_BN,
    )


def document_cumsum(log_decay_BNCH: Tensor, mask: ChunkMask) -> Tensor:
    """Inclusive cumulative sum of the log decay within each document and chunk: `[B, N, H, C]`.

    Restarting (a product with the mask, not a difference of two global sums) keeps the rounding of
    one document out of the next.
    """
    return (mask.causal_BNCC.to(log_decay_BNCH.dtype) @ log_decay_BNCH).mT.contiguous()


def pair_decay(cumulative_BNHC: Tensor, mask: ChunkMask) -> Tensor:
    """`exp(G_i - G_j)` where row i may read column j, else 0, as a constant for `decayed_pairs`.

    Masked before `exp`, so that nothing overflows.
    """
    fixed = cumulative_BNHC.detach()
    difference = fixed[..., :, None] - fixed[..., None, :]
    return difference.masked_fill_(~mask.causal_BNCC[:, :, None], float("-inf")).exp_()


def decayed_pairs(scores: Tensor, pairs: Tensor, cumulative: Tensor) -> Tensor:
    """Multiply scores `[..., C, C]` by their decay.

    Args:
        scores: may have size one where `pairs` has several heads.
        pairs: `pair_decay` of `cumulative`.
        cumulative: `[..., C]`, which takes the gradient of `pairs`.
    """
    if scores.requires_grad or cumulative.requires_grad:
        return _DecayedPairs.apply(scores, pairs, cumulative)
    return scores * pairs


class _DecayedPairs(torch.autograd.Function):
    """`out = scores exp(G_i - G_j)`, so `dG = rowsum(g out) - columnsum(g out)`; `exp` is free."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, pairs: Tensor, cumulative: Tensor) -> Tensor:
        out = scores * pairs
        ctx.save_for_backward(pairs, out)
        ctx.shape = scores.shape
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        pairs, out = ctx.saved_tensors
        (gradient,) = gradients
        product = gradient * out
        along = product.sum(dim=-1) - product.sum(dim=-2)
        return (gradient * pairs).sum_to_size(ctx.shape), None, along


def leaving_decay(cumulative_BNHC: Tensor, mask: ChunkMask) -> Tensor:
    """`exp(G_last - G_j)` for tokens that write the leaving state, else 0."""
    difference = cumulative_BNHC[..., -1:] - cumulative_BNHC
    return difference.masked_fill(~mask.writes_BNC[:, :, None], float("-inf")).exp()


def entering_decay(cumulative_BNHC: Tensor, mask: ChunkMask) -> Tensor:
    """`exp(G_i)` for tokens that read the entering state, else 0."""
    return cumulative_BNHC.masked_fill(~mask.reads_BNC[:, :, None], float("-inf")).exp()


def carried_decay(cumulative_BNHC: Tensor, mask: ChunkMask) -> Tensor:
    """`exp(G_last)` of chunks whose document goes on through them, else 0. Shape `[B, N, H]`."""
    return cumulative_BNHC[..., -1].masked_fill(~mask.carries_BN[..., None], float("-inf")).exp()


def same_document(segments_BT: Tensor | None, time: int) -> Tensor | None:
    """Whether token `time` continues the document before it, shape `[B]`; None if always."""
    if segments_BT is None or time == 0:
        return None
    return segments_BT[:, time] == segments_BT[:, time - 1]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Accumulate half precisions in float32; keep float32 and float64."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
