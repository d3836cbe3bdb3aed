"""The short convolution that stands before many mixers.

Legend: B batch, T time, D width (channels), W filter width.
"""

import torch
from torch import Tensor, nn

from .ops.convolution import short_convolution


class ShortConvolution(nn.Module):
    """Causal depthwise convolution of a few tokens, isolated between documents.

    Args:
        dim: channels.
        width: tokens that a filter spans; 0 makes the module an identity.
        residual: add the input to the output (then the filters start at zero).
        silu: apply `silu` after the filter; nothing where there is none.

    Raises:
        ValueError: on a negative width.
    """

    def __init__(self, dim: int, width: int, residual: bool = False, silu: bool = False) -> None:
        super().__init__()
        if width < 0:
            raise ValueError(f"conv_width={width} must be at least 0 tokens; 0 is no convolution")
        self.dim, self.width, self.residual, self.silu = dim, width, residual, silu
        self.weight = nn.Parameter(torch.empty(dim, width)) if width else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filters as torch's convolution does; residual ones start at zero."""
        if self.weight is None:
            return
        bound = 0.0 if self.residual else self.width**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(
        self, x_BTD: Tensor, segments_BT: Tensor | None, tail_BWD: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Convolve `x_BTD`; return the result and the next tail (None if none was given).

        `tail_BWD` holds the W-1 inputs before the first token, zero where of another document.
        """
        if self.weight is None:
            return x_BTD, tail_BWD
        y_BTD, following = short_convolution(
            x_BTD,
            self.weight.to(x_BTD.dtype),
            segments_BT=segments_BT,
            tail_BWD=tail_BWD,
            silu=self.silu,
        )
        if self.residual:
            y_BTD = x_BTD + y_BTD
        if tail_BWD is not None and following is not None:
            tail_BWD = following.to(tail_BWD.dtype)
        return y_BTD, tail_BWD

    def init_tail(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Return a zero tail `[B, W-1, D]` (`[B, 0, D]` without a filter)."""
        return torch.zeros(batch, max(self.width - 1, 0), self.dim, device=device, dtype=dtype)

    @property
    def flops(self) -> int:
        """FLOPs of one token."""
        return 2 * self.width * self.dim

    @property
    def state_size(self) -> int:
        """Numbers held between tokens."""
        return max(self.width - 1, 0) * self.dim
