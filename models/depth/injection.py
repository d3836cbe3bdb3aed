"""How what entered a loop enters it again, each time around.

    x_r = enter(norm(s_{r-1}), e)       s_r = leave(s_{r-1}, core(x_r))       h_R = finish(s_R)

For all but the lanes the state s is the hidden state itself, and `leave` returns what the core
made, to which the residual adds. Without recall of the input e, a deep loop forgets it (arXiv
2202.05826).

Legend: B batch, T time, D width, N lanes.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import linear_flops
from ..layers import init_linear


class Injection(nn.Module, ABC):
    """One way to inject; the weights, if any, are the same in every loop.

    Args:
        dim: width D.
        from_entry: whether the first loop starts from the input itself, rather than from a state
            of its own.
    """

    def __init__(self, dim: int, from_entry: bool) -> None:
        super().__init__()
        self.dim, self.from_entry = dim, from_entry

    def reset_parameters(self) -> None:
        """Draw the weights anew; most have none."""

    def begin(self, hidden_BTD: Tensor) -> Tensor:
        """Make the state that the loops change."""
        return hidden_BTD

    @abstractmethod
    def enter(self, state: Tensor, entry_BTD: Tensor) -> Tensor:
        """Return what the core reads, `[B, T, D]`."""

    def leave(self, state: Tensor, made_BTD: Tensor) -> Tensor:
        """Return the state after a loop."""
        return made_BTD

    def finish(self, state: Tensor) -> Tensor:
        """Return what follows the loops, `[B, T, D]`."""
        return state

    @property
    def flops(self) -> int:
        """FLOPs of entering, for one token."""
        return 0

    @property
    def leave_flops(self) -> int:
        """FLOPs of leaving, for one token."""
        return 0

    def spectral_bound(self) -> float | None:
        """How much the injection alone can stretch a state; above one it may explode."""
        return None


class NoInjection(Injection):
    """The loop is on its own: `x = s` (Universal Transformer, arXiv 1807.03819)."""

    def enter(self, state: Tensor, entry_BTD: Tensor) -> Tensor:
        """Return the state."""
        return state


class AddedInjection(Injection):
    """`x = s + e` (deep thinking's recall, arXiv 2202.05826)."""

    def enter(self, state: Tensor, entry_BTD: Tensor) -> Tensor:
        """Add the input."""
        return state + entry_BTD

    def spectral_bound(self) -> float | None:
        """One: it leaves the state as it is."""
        return 1.0


class ConcatInjection(Injection):
    """`x = W [s; e]` (Huginn, arXiv 2502.05171, section 3.1).

    Where the first loop starts from the input W begins as `[I, 0]`, so that the loop begins as one
    without injection (arXiv 2604.21106); elsewhere, at random, as Huginn's.
    """

    def __init__(self, dim: int, from_entry: bool) -> None:
        super().__init__(dim, from_entry)
        self.adapter = nn.Linear(2 * dim, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set `[I, 0]`, or draw."""
        if self.from_entry:
            nn.init.eye_(self.adapter.weight)
        else:
            init_linear(self.adapter)

    def enter(self, state: Tensor, entry_BTD: Tensor) -> Tensor:
        """Project both to one."""
        return self.adapter(torch.cat([state, entry_BTD], dim=-1))

    @property
    def flops(self) -> int:
        """FLOPs of the adapter."""
        return linear_flops(2 * self.dim, self.dim)

    def spectral_bound(self) -> float | None:
        """The largest singular value of the part that multiplies the state."""
        weight = self.adapter.weight.detach()[:, : self.dim].to(torch.float32)
        return float(torch.linalg.matrix_norm(weight, ord=2))


class DiagonalInjection(Injection):
    """`x = a s + dt (B e)`, `a = exp(-dt exp(A))` in (0, 1) (Parcae, arXiv 2604.12946).

    A begins at 0, dt so that `a = sqrt(1/5)`, B as the identity. However large a step, the decay
    stays below one, so the injection can't make the state explode.
    """

    def __init__(self, dim: int, from_entry: bool) -> None:
        super().__init__(dim, from_entry)
        self.log_rate = nn.Parameter(torch.empty(dim))
        self.time_bias = nn.Parameter(torch.empty(dim))
        self.input = nn.Linear(dim, dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set Parcae's values."""
        self.log_rate.zero_()
        step = math.log(5) / 2  # exp(-step) = sqrt(1/5)
        self.time_bias.fill_(math.log(math.expm1(step)))
        nn.init.eye_(self.input.weight)

    def decay(self) -> tuple[Tensor, Tensor]:
        """The decay a and the step dt of each channel, float32 or better; both are bounded."""
        wide = torch.promote_types(self.time_bias.dtype, torch.float32)
        step = F.softplus(self.time_bias.to(wide)).clamp(min=1e-4)
        rate = self.log_rate.to(wide).clamp(-8, 8).exp()
        # Beyond these limits rounding would make the decay 1 or 0.
        return (-(step * rate).clamp(1e-6, 20.0)).exp(), step

    def enter(self, state: Tensor, entry_BTD: Tensor) -> Tensor:
        """Decay the state, add the input."""
        decay_D, step_D = (x.to(state.dtype) for x in self.decay())
        return decay_D * state + step_D * self.input(entry_BTD)

    @property
    def flops(self) -> int:
        """FLOPs of B."""
        return linear_flops(self.dim, self.dim)

    def spectral_bound(self) -> float | None:
        """The largest decay."""
        return float(self.decay()[0].detach().max())


class GatedInjection(Injection):
    """`x = g s + (1 - g) e`, `g = sigmoid(W [s; e] + b)`; W begins at zero, b at zero."""

    def __init__(self, dim: int, from_entry: bool) -> None:
        super().__init__(dim, from_entry)
        self.gate = nn.Linear(2 * dim, dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin with the mean of both."""
        self.gate.weight.zero_()
        self.gate.bias.zero_()

    def enter(self, state: Tensor, entry_BTD: Tensor) -> Tensor:
        """Mix both, channel by channel."""
        share = self.gate(torch.cat([state, entry_BTD], dim=-1)).sigmoid()
        return entry_BTD + share.to(state.dtype) * (state - entry_BTD)

    @property
    def flops(self) -> int:
        """FLOPs of the gate."""
        return linear_flops(2 * self.dim, self.dim)

    def spectral_bound(self) -> float | None:
        """One: a mean is no longer than the longer."""
        return 1.0


class ResidualInjection(Injection):
    """The loop keeps a share of its state: `s_r = core(s_{r-1}) + rho s_{r-1}` (LT2, 2605.20670).

    The core reads the state alone. rho is one learned weight for each channel and begins at 0, so
    that the loop begins as one without injection. The first loop adds rho times what the loops
    start from, which is nothing where that is zeros. The paper learns a rho for each loop; one for
    all serves any count.
    """

    def __init__(self, dim: int, from_entry: bool) -> None:
        super().__init__(dim, from_entry)
        self.rho = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Begin without."""
        self.rho.zero_()

    def enter(self, state: Tensor, entry_BTD: Tensor) -> Tensor:
        """Return the state."""
        return state

    def leave(self, state: Tensor, made_BTD: Tensor) -> Tensor:
        """Add a share of the state before the loop."""
        return made_BTD + self.rho.to(state.dtype) * state

    def spectral_bound(self) -> float | None:
        """The largest `|1 + rho|`: around a core that changes nothing, as a new one."""
        return float((1 + self.rho.detach()).abs().max())


class LaneInjection(Injection):
    """Hyper-connections over loops: N states, of which the core reads a mixture.

        x = sum_n alpha_n s_n + e        s_n <- sum_m M_nm s_m + beta_n core(x)

    It begins as `x = s + e` on the first lane, while the others keep what the loops began with
    (hyper-connections, arXiv 2409.19606; over loops, arXiv 2604.21106).
    """

    lanes = 4

    def __init__(self, dim: int, from_entry: bool) -> None:
        super().__init__(dim, from_entry)
        self.read = nn.Parameter(torch.empty(self.lanes))
        self.keep = nn.Parameter(torch.empty(self.lanes, self.lanes))
        self.write = nn.Parameter(torch.empty(self.lanes))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Read and write the first lane, keep the others."""
        first = torch.zeros_like(self.read)
        first[0] = 1
        self.read.copy_(first)
        self.write.copy_(first)
        self.keep.copy_(torch.diag(1 - first))

    def begin(self, hidden_BTD: Tensor) -> Tensor:
        """Copy the hidden state to all lanes, `[B, T, N, D]`."""
        return hidden_BTD[:, :, None].expand(-1, -1, self.lanes, -1)

    def enter(self, state: Tensor, entry_BTD: Tensor) -> Tensor:
        """Mix the lanes, add the input."""
        return self._mixed(state) + entry_BTD

    def leave(self, state: Tensor, made_BTD: Tensor) -> Tensor:
        """Mix the lanes among themselves, write to each its share."""
        kept = torch.einsum("nm,btmd->btnd", self.keep.to(state.dtype), state)
        return kept + self.write.to(state.dtype)[:, None] * made_BTD[:, :, None]

    def finish(self, state: Tensor) -> Tensor:
        """Mix the lanes."""
        return self._mixed(state)

    def _mixed(self, state: Tensor) -> Tensor:
        return (self.read.to(state.dtype)[:, None] * state).sum(dim=-2)

    @property
    def leave_flops(self) -> int:
        """FLOPs of mixing the lanes."""
        return 2 * self.lanes**2 * self.dim

    def spectral_bound(self) -> float | None:
        """The largest singular value of what the lanes do to each other."""
        return float(torch.linalg.matrix_norm(self.keep.detach().to(torch.float32), ord=2))


INJECTIONS: dict[str, type[Injection]] = {
    "none": NoInjection,
    "add": AddedInjection,
    "concat": ConcatInjection,
    "diagonal": DiagonalInjection,
    "gate": GatedInjection,
    "residual": ResidualInjection,
    "lanes": LaneInjection,
}
