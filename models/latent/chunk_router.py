"""Where chunks begin: learned by similarity (H-Net, arXiv 2507.07955, section 2.1), or by a rule.

    p_t = (1 - cos(W_q h_t, W_k h_{t-1})) / 2       a chunk begins at t where p_t >= 1/2

and p = 1 at the first token of every document. The published code compares the same two positions
with the names of the matrices exchanged; they begin as identities, so nothing hangs on it.

Legend: B batch, T time, D width, S documents of a row.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..cost import linear_flops
from ..ops.normalization import unit_norm
from ..segments import row_means

SPACE = 32
"""The byte of a space."""


@dataclass(frozen=True)
class Sight:
    """What a router goes by.

    Attributes:
        hidden_BTD: the encoder's outputs.
        before_BD: the last output before them; it counts only where a document goes on.
        positions_BT: place of each token in its document.
        tokens_BT: token ids; None where the level reads chunks, not bytes.
        last_B: the last token before them.
    """

    hidden_BTD: Tensor
    before_BD: Tensor
    positions_BT: Tensor
    tokens_BT: Tensor | None
    last_B: Tensor


class ChunkRouter(nn.Module, ABC):
    """Gives each position its chance of beginning a chunk.

    Attributes:
        learns: whether the chances are learned; else they are 0 or 1.
        flops: FLOPs of one position.
    """

    learns: bool = False
    flops: int = 0

    def reset_parameters(self) -> None:
        """Draw the weights anew, where there are any."""

    @abstractmethod
    def forward(self, sight: Sight) -> Tensor:
        """Return the chances `[B, T]`; a chunk begins where they are at least one half."""


class CosineRouter(ChunkRouter):
    """A chunk begins where neighbours are unlike."""

    learns = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.flops = 2 * linear_flops(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with the similarity of the encoder's outputs themselves."""
        nn.init.eye_(self.query.weight)
        nn.init.eye_(self.key.weight)

    def forward(self, sight: Sight) -> Tensor:
        """Compare each position with the one before it."""
        h_BTD = sight.hidden_BTD
        earlier_BTD = torch.cat([sight.before_BD[:, None].to(h_BTD.dtype), h_BTD[:, :-1]], dim=1)
        q_BTD, k_BTD = self.query(h_BTD), self.key(earlier_BTD)
        wide = torch.promote_types(q_BTD.dtype, torch.float32)
        cosine_BT = (unit_norm(q_BTD.to(wide)) * unit_norm(k_BTD.to(wide))).sum(dim=-1)
        p_BT = ((1 - cosine_BT) / 2).clamp(0, 1)
        return torch.where(sight.positions_BT == 0, 1.0, p_BT)


class StrideRouter(ChunkRouter):
    """A chunk begins at every `ratio`-th token of a document: the control of fixed chunks."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, sight: Sight) -> Tensor:
        """Count."""
        begins_BT = (sight.positions_BT % self.ratio == 0).to(sight.hidden_BTD.dtype)
        return begins_BT.expand(sight.hidden_BTD.shape[:2])


class SpaceRouter(ChunkRouter):
    """A chunk begins after a space, at the first byte that is none: the control of words."""

    def forward(self, sight: Sight) -> Tensor:
        """Look at the byte and the one before it."""
        tokens_BT = sight.tokens_BT
        assert tokens_BT is not None, "only the outer level reads bytes"
        earlier_BT = torch.cat([sight.last_B[:, None], tokens_BT[:, :-1]], dim=1)
        begins_BT = (earlier_BT == SPACE) & (tokens_BT != SPACE)
        return (begins_BT | (sight.positions_BT == 0)).to(sight.hidden_BTD.dtype)


ROUTERS = ("cosine", "stride", "space")


def router_of(kind: str, dim: int, ratio: int) -> ChunkRouter:
    """Make a router of `ROUTERS`."""
    if kind == "cosine":
        return CosineRouter(dim)
    return StrideRouter(ratio) if kind == "stride" else SpaceRouter()


def straight_through(p_BT: Tensor, begins_BT: Tensor) -> Tensor:
    """One, whose gradient is that of the confidence: p where a chunk begins, 1 - p elsewhere."""
    sure_BT = torch.where(begins_BT, p_BT, 1 - p_BT)
    return sure_BT - sure_BT.detach() + 1


def ratio_loss(
    p_BT: Tensor, begins_BT: Tensor, positions_BT: Tensor, segments_BT: Tensor | None, ratio: int
) -> Tensor:
    """Charge a document that is cut more, or less, than once in N positions.

        L = N / (N - 1) ((1 - F) (1 - G) + (N - 1) F G)

    F is the share of its positions that begin a chunk (a constant), G their mean chance (H-Net,
    equation 10); at F = G = 1 / N it is one. Of each document, then a mean over the tokens of each
    row, then over rows: neither how documents are packed into a batch nor how that is cut over
    processes changes it.
    """
    number_BT = (positions_BT == 0).cumsum(dim=1).expand(p_BT.shape)  # 0 is never used
    counts_BT = torch.ones_like(p_BT)
    f_BS, g_BS, size_BS = (
        torch.zeros(len(p_BT), p_BT.shape[1] + 1, dtype=p_BT.dtype, device=p_BT.device).scatter_add(
            1, number_BT, x_BT
        )
        for x_BT in (begins_BT.to(p_BT.dtype), p_BT, counts_BT)
    )
    f_BS, g_BS = f_BS / size_BS.clamp(min=1), g_BS / size_BS.clamp(min=1)
    loss_BS = ratio / (ratio - 1) * ((1 - f_BS) * (1 - g_BS) + (ratio - 1) * f_BS * g_BS)
    return row_means(loss_BS.gather(1, number_BT), segments_BT).mean()
