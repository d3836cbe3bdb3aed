"""A dropless mixture of experts with a shared expert, balanced without an auxiliary loss.

    y = shared(x) + sum over the top k experts e of  w_e expert_e(x)

Every position keeps its k experts, whatever the others choose: no capacity, nothing dropped, so a
position's result depends on that position alone. Sources: DeepSeekMoE (arXiv 2401.06066, equation
9), sigmoid scores normalised over the chosen (arXiv 2412.19437, section 2.1.2), and balancing by a
selecting bias (arXiv 2408.15664).

Legend: B batch, T time, D width, F hidden width, E experts, K chosen, N positions.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..layers import parameter_bytes
from ..ops.twin import runs_step_by_step
from ..routing import Router
from .mlp import MLP, Inner, MLPConfig
from .swiglu import SwiGLU


@dataclass
class MoEConfig(MLPConfig):
    """Settings of a mixture of experts.

    Attributes:
        num_experts: routed experts.
        top_k: experts that each position goes through.
        shared_experts: experts that every position goes through, beside the routed ones.
        expert_hidden: hidden width of an expert; null is the backbone's mlp_hidden.
        balance_rate: step of the bias that evens out the load; 0 is none.
    """

    kind: str = "moe"
    num_experts: int = 8
    top_k: int = 2
    shared_experts: int = 1
    expert_hidden: int | None = None
    balance_rate: float = 1e-3

    def build(self, dim: int, hidden: int) -> "MoE":
        """Make the module; raises ValueError on impossible numbers of experts or widths."""
        width = hidden if self.expert_hidden is None else self.expert_hidden
        if width < 1 or self.shared_experts < 0:
            raise ValueError(
                f"expert_hidden={self.expert_hidden} must be at least 1 (or null), and "
                f"shared_experts={self.shared_experts} at least 0"
            )
        return MoE(self, dim, width)


class MoE(MLP):
    """Top-k of several SwiGLU experts for each position, and a shared one for all."""

    folded = ("experts",)

    def __init__(self, config: MoEConfig, dim: int, hidden: int) -> None:
        super().__init__()
        self.config, self.dim, self.hidden = config, dim, hidden
        self.router = Router(dim, config.num_experts, config.top_k, config.balance_rate)
        self.experts = nn.ModuleList(SwiGLU(dim, hidden) for _ in range(config.num_experts))
        shared = config.shared_experts
        self.shared = SwiGLU(dim, shared * hidden) if shared else None

    def reset_parameters(self) -> None:
        """Draw the weights of router and experts; every output starts at zero."""
        self.router.reset_parameters()
        for expert in [*self.experts, *([self.shared] if self.shared else [])]:
            assert isinstance(expert, SwiGLU)
            expert.reset_parameters()

    def forward(
        self, x_BTD: Tensor, segments_BT: Tensor | None = None, inner: Inner | None = None
    ) -> Tensor:
        """Apply to each position alone; `inner` is not for experts."""
        assert inner is None, "a block refuses a convolution inside experts when it is built"
        weights_BTK, chosen_BTK = self.router(x_BTD, segments_BT)
        x_ND = x_BTD.flatten(0, 1)
        routed = self._gathered if runs_step_by_step() else self._grouped
        y_ND = routed(x_ND, weights_BTK.flatten(0, 1).to(x_ND.dtype), chosen_BTK.flatten(0, 1))
        y_BTD = y_ND.view_as(x_BTD)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD)

    def _grouped(self, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """One pass through each expert, over the positions that chose it.

        An expert that nobody chose still runs, over no position, so that its gradient is zero
        rather than missing (processes that train together expect one).
        """
        order = chosen_NK.flatten().argsort(stable=True)
        sizes = chosen_NK.flatten().bincount(minlength=len(self.experts)).tolist()
        position = order // self.config.top_k
        parts = x_ND[position].split(sizes)
        outputs = torch.cat([e(part) for e, part in zip(self.experts, parts, strict=True)])
        weighted = outputs * weights_NK.flatten()[order, None]
        return torch.zeros_like(x_ND, dtype=weighted.dtype).index_add(0, position, weighted)

    def _gathered(self, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """Plain twin of `_grouped`: each position through its own experts' weights."""
        experts = [expert for expert in self.experts if isinstance(expert, SwiGLU)]
        inward = torch.stack([expert.gate_up.weight for expert in experts])[chosen_NK]
        outward = torch.stack([expert.output.weight for expert in experts])[chosen_NK]
        gate, up = (inward.to(x_ND.dtype) @ x_ND[:, None, :, None])[..., 0].chunk(2, dim=-1)
        y_NKD = (outward.to(x_ND.dtype) @ (F.silu(gate) * up)[..., None])[..., 0]
        return (y_NKD * weights_NK[..., None]).sum(dim=1)

    def cost(self) -> Cost:
        """Cost of one token: the router, its experts and the shared one; all their weights."""
        expert = linear_flops(self.dim, 2 * self.hidden) + linear_flops(self.hidden, self.dim)
        active = self.config.top_k + self.config.shared_experts
        flops = linear_flops(self.dim, self.config.num_experts) + active * expert
        return Cost(flops=flops, weight_bytes=parameter_bytes(self))
