"""`python -m eval.speed`: training and decoding speed of each backbone, beside its peers."""

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Table
from torch import Tensor, nn
from yaml import YAMLError

from data.atomic import write_atomically
from eval.machine import machine_facts, matmul_rate, synchronize
from eval.peers import PEERS, build_peer, matched_mlp, peers_installed
from eval.terminal import console
from models.backbone import Backbone
from models.config import BackboneConfig
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
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
KINDS = ("training", "prefill", "decoding_1", "decoding_8")
HELP = """\
Measure training and decoding speed of each backbone, and of transformers' models of the same shape
where that is installed. Every backbone and its peer take turns; ratios are of medians of one run.

  python -m eval.speed
  python -m eval.speed precision=bf16 backbones=[transformer,gdn_hybrid] rounds=5

  backbones=[...]   of transformer, gdn_hybrid, mamba2_hybrid, gdn, looped, mamba2
  dim=256 layers=4 head_dim=64 vocab_size=512     the shape
  context=512 batch=8       tokens of a training step
  prompt=16 new_tokens=64   what is decoded, greedily, at batch 1 and 8: ours in a loop over its
                            state, a peer through its own `generate`, both with the prompt read
  peer_chunk=256            chunk size of transformers' Mamba-2: 256 is its own default; on CPUs 64
                            is faster, and what ours uses
  rounds=3                  turns after one to warm up
  precision=32|bf16         of training; decoding is float32
  threads=0                 CPU threads (0: torch's choice)
  device=cpu|cuda
  clock=wall|process        process is this program's own CPU time, for machines that are busy with
                            other work; it needs threads=1
  peers=true                measure transformers' models too
  output=runs/speed/speed.json
"""


@dataclass
class SpeedConfig:
    """What is measured; see HELP."""

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
        for name, value in asdict(self).items():
            least = 0 if name == "threads" else 1
            if type(value) is int and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.precision not in ("32", "bf16"):
            raise ValueError(f"precision={self.precision} is not known: choose 32 or bf16")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device} is not known: choose cpu or cuda")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock={self.clock} is not known: choose {' or '.join(CLOCKS)}")
        if self.clock == "process" and (self.threads != 1 or self.device != "cpu"):
            raise ValueError("clock=process adds up all threads: set threads=1 and device=cpu")


def build_ours(name: str, config: SpeedConfig) -> Backbone:
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


def training_step(model: nn.Module, config: SpeedConfig) -> Callable[[], Any]:
    """Return a step: forward, loss, backward, AdamW; the same for ours and a peer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    shape = (config.batch, config.context + 1)
    tokens = torch.randint(0, config.vocab_size, shape, device=config.device)

    def step() -> None:
        with torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bf16"):
            logits = _logits(model, tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    return step


def _logits(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    if isinstance(model, Backbone):
        output = model(tokens_BT)
        return output.readout(output.hidden_BTD)
    return model(input_ids=tokens_BT, use_cache=False).logits


def decoding(model: Any, config: SpeedConfig, batch: int) -> Callable[[], Any]:
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


def prefilling(model: Any, config: SpeedConfig) -> Callable[[], Any]:
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


def take_turns(
    calls: dict[str, Callable[[], Any]], rounds: int, device: str, clock: str = "wall"
) -> dict[str, list[float]]:
    """Time each call in turn, `rounds` times after one to warm up; return the seconds of all."""
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            synchronize(device)
            began = now()
            call()
            synchronize(device)
            if turn:
                seconds[name].append(now() - began)
    return seconds


def measure(name: str, config: SpeedConfig, peak: float) -> dict[str, Any]:
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


def table_of(results: dict[str, Any], config: SpeedConfig) -> Table:
    """Lay the results out, a row each for ours and its peer."""
    training = "bf16" if config.precision == "bf16" else "float32"
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


def parse(arguments: Sequence[str]) -> SpeedConfig:
    """Read `key=value` arguments; ValueError names the wrong one in one line."""
    try:
        given = OmegaConf.from_dotlist([str(argument) for argument in arguments])
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SpeedConfig), given))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    assert isinstance(config, SpeedConfig)
    config.validate()
    return config


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status."""
    if set(arguments) & {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0
    try:
        config = parse(arguments)
    except ValueError as error:
        print(f"eval.speed: {error}", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    if config.threads:
        torch.set_num_threads(config.threads)
    facts = machine_facts(config.device)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    peak = matmul_rate(dtype, config.device)
    to = console()
    where = f"{facts['gpu'] or facts['processor']}, {facts['threads']} threads"
    to.print(f"{where}, load {facts['load_average']:.1f}, {peak / 1e9:,.0f} GFLOP/s in products")
    results: dict[str, Any] = {}
    for name in config.backbones:
        print(f"measuring {name}", file=sys.stderr)
        results[name] = measure(name, config, peak)
    to.print(table_of(results, config))
    machine = facts | {"matmul_flops_per_second": peak}
    content = {"settings": asdict(config), "machine": machine, "results": results}
    write_atomically(Path(config.output), (json.dumps(content, indent=1) + "\n").encode())
    print(f"speed: {config.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
