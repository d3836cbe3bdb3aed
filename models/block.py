"""A block: norm, mixer, residual; norm, feed-forward network, residual; or norms elsewhere.

Legend: B batch, T time, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .canon import Canon, CanonState
from .cost import Cost
from .layers import RMSNorm, parameter_bytes
from .mixer import Mixer
from .mlps.mlp import MLP
from .residual import Residual, norm_at
from .shared import Shared


class Block(nn.Module):
    """Residual block around any mixer.

    Args:
        mixer: moves information along time.
        dim: width D.
        mlp: mixes channels; None is a block of the mixer alone.
        canon: places of residual convolutions, some of "ACD" (see `models.canon`).
        canon_width: tokens that their filters span.
        norm_place: where norms stand: pre, post, sandwich or sandwich_res (see `models.residual`).
    """

    def __init__(
        self,
        mixer: Mixer,
        dim: int,
        mlp: MLP | None,
        canon: str = "",
        canon_width: int = 4,
        norm_place: str = "pre",
    ) -> None:
        super().__init__()
        self.mixer_norm = norm_at("read", norm_place, dim)
        self.mixer = mixer
        self.mixer_residual = Residual(dim, norm_place)
        self.mlp_norm = norm_at("read", norm_place, dim) if mlp else None
        self.mlp = mlp
        self.mlp_residual = Residual(dim, norm_place) if mlp else None
        places = canon if mlp else canon.replace("C", "").replace("D", "")
        self.canon = Canon(places, canon_width, dim, mlp.inner_width if mlp else 0)
        self._reset_residuals()

    def reset_parameters(self) -> None:
        """Draw all weights anew."""
        for part in (self.mixer_norm, self.mixer, self.mlp_norm, self.mlp, self.canon):
            if part is not None:
                part.reset_parameters()
        self._reset_residuals()

    def _reset_residuals(self) -> None:
        self.mixer_residual.reset_parameters(self.mixer)
        if self.mlp is not None and self.mlp_residual is not None:
            self.mlp_residual.reset_parameters(self.mlp)

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor | None = None,
        state: Any = None,
        shared: Shared | None = None,
        feed: bool = True,
        mix: Callable[..., tuple[Tensor, Any]] | None = None,
    ) -> tuple[Tensor, Any]:
        """Return the block's output and its new state (None if none was given).

        `shared` is handed to a mixer that shares tensors between layers; without `feed` the
        feed-forward network is left out, as where the mixer alone is looped; `mix` stands in for
        the mixer, as where only some positions run.
        """
        tails = self.canon.kept_tails(state, segments_BT) if state and self.canon else None
        inner_state = state.mixer if tails is not None else state
        at = partial(self.canon.apply_at, segments_BT=segments_BT, tails=tails)
        given = (shared,) if self.mixer.shares else ()
        mix = self.mixer if mix is None else mix
        read_BTD = at("A", _normed(self.mixer_norm, x_BTD))
        mixed_BTD, inner_state = mix(read_BTD, segments_BT, inner_state, *given)
        x_BTD = self.mixer_residual(x_BTD, mixed_BTD)
        if feed and self.mlp is not None and self.mlp_residual is not None:
            inner = partial(at, "D") if "D" in self.canon.convolutions else None
            made_BTD = self.mlp(at("C", _normed(self.mlp_norm, x_BTD)), segments_BT, inner)
            x_BTD = self.mlp_residual(x_BTD, made_BTD)
        return x_BTD, inner_state if tails is None else CanonState(inner_state, tails)

    def init_state(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> Any:
        """Return empty memory for documents of up to `max_len` tokens."""
        state = self.mixer.init_state(batch, max_len, device, dtype)
        if not self.canon:
            return state
        return CanonState(state, self.canon.init_tails(batch, device, dtype))

    def cost(self, context: int, feed: bool = True) -> Cost:
        """Cost of one token that sees `context` tokens: one serial step."""
        return self.mixer.cost(context) + self._rest(feed)

    def prefill_cost(self, length: int, feed: bool = True) -> Cost:
        """Cost of reading `length` tokens at once."""
        rest = self._rest(feed)
        once = Cost(0, rest.weight_bytes, rest.state_bytes, rest.serial_steps)
        return self.mixer.prefill_cost(length) + once + Cost(flops=length * rest.flops)

    def _rest(self, feed: bool) -> Cost:
        """All but the mixer: norms, convolutions, the feed-forward network (where it is run)."""
        own = self.canon.each()
        canon = [part for place, part in own.items() if feed or place == "A"]
        norms = [self.mixer_norm, self.mixer_residual]
        norms += [self.mlp_norm, self.mlp_residual] if feed else []
        weights = sum(parameter_bytes(part) for part in (*norms, *canon) if part is not None)
        flops = sum(part.flops for part in canon)
        rest = Cost(flops, weights, 4 * self.canon.state_size, serial_steps=1)
        return rest + self.mlp.cost() if feed and self.mlp is not None else rest


def _normed(norm: RMSNorm | None, x_BTD: Tensor) -> Tensor:
    return x_BTD if norm is None else norm(x_BTD)
