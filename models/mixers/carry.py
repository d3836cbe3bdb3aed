"""Reading, in one loop, what the loop before it remembered at the same position.

    o_r(t) = read(q_r(t), S_r(t)) + rho read(q_r(t), S_{r-1}(t))

Each loop scans its own tokens from its own past; the second term scans the earlier loop's again
under the new queries. So it is exact in training and decoding, and position t sees nothing after t.

Legend: B batch, T time, H heads, V value dim.
"""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

Scan = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""`(queries [B, T, H, K], memory before) -> (outputs [B, T, H, V], memory after)`."""


class Carry(nn.Module):
    """Remembers the scan of the last call under a key, within one forward pass.

    Args:
        heads: H; each has its own rho, zero at first.
        key: names the layer among what a pass shares.
    """

    def __init__(self, heads: int, key: str) -> None:
        super().__init__()
        self.key = key
        self.rho_H = nn.Parameter(torch.zeros(heads))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin without."""
        self.rho_H.zero_()

    def forward(
        self, scan: Scan, queries: Tensor, memory: Tensor | None, shared: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Read this call's scan and, if there was one, the last call's."""
        out_BTHV, after = scan(queries, memory)
        if self.key in shared:
            earlier_BTHV = shared[self.key](queries)[0]
            out_BTHV = out_BTHV + self.rho_H[:, None].to(out_BTHV.dtype) * earlier_BTHV
        shared[self.key] = lambda others: scan(others, memory)
        return out_BTHV, after


def read_scan(
    carry: Carry | None,
    scan: Scan,
    queries: Tensor,
    memory: Tensor | None,
    shared: MutableMapping[str, Any] | None,
) -> tuple[Tensor, Tensor]:
    """Read a scan, with what is carried where a mixer carries."""
    if carry is None or shared is None:
        return scan(queries, memory)
    return carry(scan, queries, memory, shared)
