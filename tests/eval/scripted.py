"""Backbones for tests: one that writes what it's told to, and small real ones."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from data.roles import Role
from data.tokenizer import SymbolicTokenizer
from models.backbone import Backbone, Output
from models.config import BackboneConfig
from models.cost import Cost
from models.depth.depth import DepthConfig, Trajectory
from models.depth.fixed import FixedDepth, FixedDepthConfig
from models.depth.looped import LoopedDepthConfig
from models.latent.costs import Fitting, Sizes
from models.latent.latent import LatentConfig
from models.latent.none import NoLatent, NoLatentConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig

TOKENIZER = SymbolicTokenizer()


@dataclass
class ScriptState:
    """What each row has read."""

    read: list[list[int]]
    capacity: int

    def take(self, rows: Tensor) -> "ScriptState":
        return ScriptState([list(self.read[row]) for row in rows.tolist()], self.capacity)

    def put(self, rows: Tensor, other: "ScriptState") -> None:
        assert other.capacity == self.capacity
        for mine, theirs in zip(rows.tolist(), other.read, strict=True):
            self.read[mine] = list(theirs)


class ScriptedDepth(FixedDepth):
    """A depth of nothing that costs two calls a loop; its count is a choice if it is adjustable."""

    def __init__(self, adjustable: bool) -> None:
        super().__init__(nn.ModuleList())
        self.adjustable = adjustable

    def calls(self, loops: int) -> list[int]:
        return [0, 0] * loops

    def cost(self, context: int, loops: int) -> Cost:
        return Cost(serial_steps=2 * loops)


class ScriptedBackbone(nn.Module):
    """Writes a given text after each prompt; two block calls a loop; costs easy to add up by hand.

    `calls` lists (rows, positions, loops) of each forward pass.
    """

    def __init__(self, scripts: dict[str, str], adjustable: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.scripts = {
            tuple(TOKENIZER.encode(prompt)): TOKENIZER.encode(script)
            for prompt, script in scripts.items()
        }
        self.depth = ScriptedDepth(adjustable)
        self.config = SimpleNamespace(vocab_size=TOKENIZER.vocab_size, latent=NoLatentConfig())
        self.latent, self.sizes = NoLatent(), Sizes(1, TOKENIZER.vocab_size)
        self.readout_flops = 0
        self.calls: list[tuple[int, int, int | None]] = []
        self.causal = True

    def init_state(self, batch: int, max_len: int, *_: Any) -> ScriptState:
        return ScriptState([[] for _ in range(batch)], max_len)

    def forward(
        self,
        tokens_BT: Tensor,
        segments_BT: Tensor | None,
        state: ScriptState,
        loops: int | None,
        roles_BT: Tensor | None = None,
    ) -> Output:
        assert not self.training and (roles_BT is None or bool((roles_BT == Role.QUESTION).all()))
        self.calls.append((*tokens_BT.shape, loops))
        logits_BTV = torch.zeros(*tokens_BT.shape, TOKENIZER.vocab_size)
        for row, tokens in enumerate(tokens_BT.tolist()):
            for place, token in enumerate(tokens):
                if segments_BT is None or segments_BT[row, place] >= 0:
                    state.read[row].append(token)
                    assert len(state.read[row]) <= state.capacity, "a row outgrew its state"
            logits_BTV[row, -1, self._next(state.read[row])] = 50.0
        ran = Trajectory(loops or 1, 2 * (loops or 1))
        return Output(logits_BTV, state, ran, lambda hidden: hidden)  # type: ignore[arg-type]

    def _next(self, read: list[int]) -> int:
        for prompt, script in self.scripts.items():
            if tuple(read[: len(prompt)]) == prompt and len(read) - len(prompt) < len(script):
                return script[len(read) - len(prompt)]
        return TOKENIZER.encode("?")[0]

    def cost(self, context: int, loops: int | None = None) -> Cost:
        passes = 2 * (loops or 1)
        return Cost(flops=passes * context, state_bytes=passes * 8 * context, serial_steps=passes)

    def prefill_cost(self, length: int, loops: int | None = None) -> Cost:
        return Cost(flops=1000.0 * length * (loops or 1), serial_steps=2 * (loops or 1))

    def fitting(self, length: int, loops: int | None = None) -> Fitting:
        return Fitting()

    def block_calls_per_position(self, loops: int | None = None) -> int:
        return 2 * (loops or 1)


def real_backbone(
    layout: str,
    looped: bool = False,
    seed: int = 0,
    latent: LatentConfig | None = None,
    depth: DepthConfig | None = None,
) -> Backbone:
    """A small real backbone in float64 that writes varied texts, ends among them."""
    config = BackboneConfig(
        dim=16,
        num_layers=2,
        layout=layout,
        mixers={
            "attn": AttentionConfig(num_heads=2, conv_width=3),
            "gdn": GatedDeltaNetConfig(num_heads=2, chunk_size=8),
        },
        depth=depth or (LoopedDepthConfig(loops=2) if looped else FixedDepthConfig()),
        latent=latent or NoLatentConfig(),
        mlp_hidden=24,
        vocab_size=TOKENIZER.vocab_size,
    )
    torch.manual_seed(seed)
    backbone = Backbone(config).double().eval()
    for weight in backbone.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.5)
    return backbone
