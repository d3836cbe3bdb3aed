"""Training and decoding speed of each backbone, beside transformers' model of the same shape."""

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from eval.peers import PEERS, build_peer, matched_mlp, peers_installed
from eval.speed_timing import PRECISIONS, check_settings, take_turns
from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.draws import Draws
from models.depth.looped import LoopedDepthConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.mixers.mamba2 import Mamba2Config
from models.sizing import resolve

LAYOUTS = {
    "transformer": "attn",
    "gdn_hybrid": "3*gdn attn",
    "mamba2_hybrid": "3*mamba2 attn",
    "gdn": "gdn",
    "looped": "attn",
    "mamba2": "mamba2",
}
KINDS = ("training", "prefill", "decoding_1", "decoding_8")


@dataclass
class BackboneSpeedConfig:
    """What `suite=backbones` measures; see the verb's help."""

    suite: str = "backbones"
    backbones: list[str] = field(default_factory=lambda: list(LAYOUTS))
    dim: int = 256
    layers: int = 4
    head_dim: int = 64
    vocab_size: int = 512
    context: int = 512
    batch: int = 8
    prompt: int = 16
    new_tokens: int = 64
    rounds: int = 3
    precision: str = "32"
    threads: int = 0
    device: str = "cpu"
    clock: str = "wall"
    peers: bool = True
    peer_chunk: int = 256
    output: str = "runs/speed/speed.json"

    def validate(self) -> None:
        """Raise ValueError, naming the key and what is allowed."""
        for name in self.backbones:
            if name not in LAYOUTS:
                raise ValueError(f"backbones: {name} is not known: choose of {', '.join(LAYOUTS)}")
        check_settings(asdict(self))


def build_ours(name: str, config: BackboneSpeedConfig) -> Backbone:
    """Build one of our backbones; Mamba-2 alone has no feed-forward network to speak of."""
    mixers = {
        "attn": AttentionConfig(qk_norm=name != "transformer"),  # Llama has none
        "gdn": GatedDeltaNetConfig(),
        "mamba2": Mamba2Config(),
    }
    settings = BackboneConfig(
        name=name,
        dim=config.dim,
        num_layers=2 * config.layers if name == "mamba2" else config.layers,
        head_dim=config.head_dim,
        layout=LAYOUTS[name],
        mixers=mixers,  # pyright: ignore[reportArgumentType]
        mlp_hidden=1 if name == "mamba2" else None,
    )
    if name == "looped":
        settings.depth = LoopedDepthConfig(loops=4)
    return Backbone(resolve(settings, config.vocab_size)).to(config.device)


class StepSettings(Protocol):
    """What a training step needs of a suite's settings."""

    vocab_size: int
    context: int
    batch: int
    precision: str
    device: str


def training_step(
    model: nn.Module, config: StepSettings, draws: Draws | None = None
) -> Callable[..., None]:
    """Return a step: forward, loss, backward, AdamW; the same for ours and a peer.

    The step may be called with a loop count. With `draws` it differentiates what the depth says, as
    the trainer's steps do; without, every loop.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    shape = (config.batch, config.context + 1)
    tokens = torch.randint(0, config.vocab_size, shape, device=config.device)

    def step(loops: int | None = None) -> None:
        with torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = _logits(model, tokens[:, :-1], draws, loops)
        F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    return step


def _logits(model: nn.Module, tokens_BT: Tensor, draws: Draws | None, loops: int | None) -> Tensor:
    if isinstance(model, Backbone):
        output = model(tokens_BT, loops=loops, draws=draws)
        return output.readout(output.hidden_BTD)
    return model(input_ids=tokens_BT, use_cache=False).logits


def decoding(model: Any, config: BackboneSpeedConfig, batch: int) -> Callable[[], Any]:
    """Return a greedy decode with state; a peer decodes through its own `generate`."""
    prompt = torch.randint(1, config.vocab_size, (batch, config.prompt), device=config.device)
    model.eval()
    if not isinstance(model, Backbone):
        new = {"max_new_tokens": config.new_tokens, "min_new_tokens": config.new_tokens}
        ones = torch.ones_like(prompt)
        return lambda: model.generate(prompt, attention_mask=ones, do_sample=False, **new)

    @torch.inference_mode()
    def decode() -> None:
        length = config.prompt + config.new_tokens
        state, tokens = model.init_state(batch, length, device=config.device), prompt
        for _ in range(config.new_tokens):
            output = model(tokens, state=state)
            tokens = output.readout(output.hidden_BTD[:, -1:]).argmax(dim=-1)

    return decode


def prefilling(model: Any, config: BackboneSpeedConfig) -> Callable[[], Any]:
    """Return the reading of a batch of prompts into a state, the last position read out."""
    shape = (config.batch, config.context)
    tokens = torch.randint(1, config.vocab_size, shape, device=config.device)

    @torch.inference_mode()
    def prefill() -> None:
        model.eval()
        if not isinstance(model, Backbone):
            model(input_ids=tokens, use_cache=True, logits_to_keep=1)
            return
        output = model(tokens, state=model.init_state(*shape, device=config.device))
        output.readout(output.hidden_BTD[:, -1:])

    return prefill


def measure_backbone(name: str, config: BackboneSpeedConfig, peak: float) -> dict[str, Any]:
    """Measure one backbone, and its peer if there is one."""
    ours = build_ours(name, config)
    models: dict[str, Any] = {"ours": ours}
    if config.peers and name in PEERS and peers_installed():
        mlp = ours.config.mlp_hidden or 1
        layers = ours.config.num_layers
        shape = (config.dim, layers, config.head_dim, config.vocab_size)
        mlp = matched_mlp(name, shape, mlp, config.peer_chunk, ours.num_parameters)
        peer = build_peer(name, *shape, mlp, config.peer_chunk)
        models["peer"] = peer.to(config.device)
    result: dict[str, Any] = {
        "parameters": {k: sum(p.numel() for p in m.parameters()) for k, m in models.items()},
        "peer": PEERS.get(name),
    }
    kinds: dict[str, tuple[int, Callable[[Any], Callable[[], Any]]]] = {
        "training": (config.batch * config.context, lambda m: training_step(m, config)),
        "prefill": (config.batch * config.context, lambda m: prefilling(m, config)),
        "decoding_1": (config.new_tokens, lambda m: decoding(m, config, 1)),
        "decoding_8": (8 * config.new_tokens, lambda m: decoding(m, config, 8)),
    }
    for kind, (tokens, make) in kinds.items():
        calls = {who: make(model) for who, model in models.items()}
        seconds = take_turns(calls, config.rounds, config.device, config.clock)
        rates = {k: tokens / statistics.median(times) for k, times in seconds.items()}
        result[kind] = {"tokens_per_second": rates, "seconds": seconds}
        if "peer" in rates:
            result[kind]["ratio"] = rates["ours"] / rates["peer"]
    length = config.context
    flops = 3 * ours.prefill_cost(length, readouts=length).flops / length
    rate = result["training"]["tokens_per_second"]["ours"]
    result["share_of_matmul_rate"] = flops * rate / peak
    return result


def table_of(results: dict[str, Any], config: BackboneSpeedConfig) -> Table:
    """Lay the results out, a row each for ours and its peer."""
    training = PRECISIONS[config.precision]
    table = Table(title=f"tokens per second: {training} training, float32 prefill and decoding")
    columns = ("parameters", "training", "of peak", "prefill", "decode x1", "decode x8")
    table.add_column("backbone")
    for column in columns:
        table.add_column(column, justify="right")
    for name, result in results.items():
        for who in result["parameters"]:
            rates = [f"{result[kind]['tokens_per_second'][who]:,.0f}" for kind in KINDS]
            peak = f"{result['share_of_matmul_rate']:.0%}" if who == "ours" else ""
            label = name if who == "ours" else f"  {result['peer']}"
            table.add_row(label, f"{result['parameters'][who]:,}", rates[0], peak, *rates[1:])
        if "peer" in result["parameters"]:
            ratios = [f"x{result[kind]['ratio']:.2f}" for kind in KINDS]
            table.add_row("  ours over peer", "", ratios[0], "", *ratios[1:], style="bold")
    return table


def measure_backbones(config: BackboneSpeedConfig, peak: float, to: Console) -> dict[str, Any]:
    """Measure every backbone, print the table, return the results."""
    results: dict[str, Any] = {}
    for name in config.backbones:
        print(f"measuring {name}", file=sys.stderr)
        results[name] = measure_backbone(name, config, peak)
    to.print(table_of(results, config))
    return {"results": results}
