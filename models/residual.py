"""How what a mixer or a feed-forward network f made joins the stream, and where the norms stand.

    x' = n_sum(x + n_made(f(n_read(x))))

    pre            x + f(n x)            (arXiv 2002.04745)
    post           n(x + f(x))           (arXiv 1706.03762; Universal Transformer, HRM, TRM)
    sandwich       x + n2(f(n1 x))       (Ouro, arXiv 2510.25741)
    sandwich_res   n2(x + f(n1 x))       (Huginn, arXiv 2502.05171)

Legend: B batch, T time, D width.
"""

from torch import Tensor, nn

from .layers import RMSNorm, draw_outputs

NORM_PLACES: dict[str, tuple[str, ...]] = {
    "pre": ("read",),
    "post": ("sum",),
    "sandwich": ("read", "made"),
    "sandwich_res": ("read", "sum"),
}
"""What is normalised, by the name of the placement; all else is left as it is."""


def norm_at(what: str, norm_place: str, dim: int) -> RMSNorm | None:
    """Return a norm of what f reads, of what it made or of the sum, where a placement has one.

    Raises:
        ValueError: on an unknown placement.
    """
    if norm_place not in NORM_PLACES:
        raise ValueError(
            f"backbone.norm_place={norm_place} is not known: choose {', '.join(NORM_PLACES)}"
        )
    return RMSNorm(dim) if what in NORM_PLACES[norm_place] else None


class Residual(nn.Module):
    """Adds what f made to the stream: `n_sum(x + n_made(made))`.

    A block begins as the identity (but for the norm of the sum), because output projections begin
    at zero. Behind n_made they can't: where made is zero the norm multiplies gradients by
    `1 / sqrt(epsilon)`, a thousand, and its first step brings an output of full size, however
    small the step. There the learned scale of the norm begins at zero in their place (as of the
    last norm of a residual branch, arXiv 1706.02677, section 5.1) and the projections are drawn.
    """

    def __init__(self, dim: int, norm_place: str) -> None:
        super().__init__()
        self.made_norm = norm_at("made", norm_place, dim)
        self.sum_norm = norm_at("sum", norm_place, dim)

    def reset_parameters(self, inner: nn.Module) -> None:
        """Set the scales; draw the outputs of f, `inner`, which was reset before, if need be."""
        if self.sum_norm is not None:
            self.sum_norm.reset_parameters()
        if self.made_norm is not None:
            nn.init.zeros_(self.made_norm.weight)
            draw_outputs(inner)

    def forward(self, x_BTD: Tensor, made_BTD: Tensor) -> Tensor:
        """Return the stream with what f made of it."""
        if self.made_norm is not None:
            made_BTD = self.made_norm(made_BTD)
        x_BTD = x_BTD + made_BTD
        return x_BTD if self.sum_norm is None else self.sum_norm(x_BTD)
