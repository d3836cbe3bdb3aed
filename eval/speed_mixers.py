"""Speed and memory of each mixer's layer alone, against sequence length, beside transformers'.

Forward and forward + backward are from scratch over a whole sequence; decoding goes on from a state
that has read one. Legend: B batch, T time, D width.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from data.atomic import write_atomically
from eval.layer_peers import LAYER_PEERS, LAYERS, build_layer_peer, draw, matched_config
from eval.peers import peers_installed
from eval.speed_figure import save_speed_figure
from eval.speed_guard import Guard
from eval.speed_kernels import compare_kernels, kernel_table
from eval.speed_memory import peak_memory
from eval.speed_rows import KINDS, Row, Rows, as_csv
from eval.speed_show import show
from eval.speed_tables import mixer_tables
from eval.speed_targets import judge, target_lines
from eval.speed_timing import PRECISIONS, check_settings, take_turns
from models.kernels import describe
from models.mixer import Mixer, MixerConfig, Site
from models.mixers.listing import MIXERS


@dataclass
class MixerSpeedConfig:
    """What `suite=mixers` measures; see the verb's help."""

    suite: str = "mixers"
    mixers: list[str] = field(default_factory=lambda: list(MIXERS))
    lengths: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096, 8192, 16384])
    dim: int = 256
    head_dim: int = 64
    batch: int = 1
    new_tokens: int = 16
    rounds: int = 3
    precision: str = "32"
    threads: int = 0
    device: str = "cpu"
    clock: str = "wall"
    peers: bool = True
    peer_chunk: int = 256
    most_seconds: float = 10.0
    most_gigabytes: float = 8.0
    output: str = "runs/speed/mixers.json"

    def validate(self) -> None:
        """Raise ValueError, naming the key and what is allowed."""
        for name in self.mixers:
            if name not in MIXERS:
                raise ValueError(f"mixers: {name} is not known: choose of {', '.join(MIXERS)}")
        if not self.lengths or self.lengths != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise ValueError(f"lengths={self.lengths} must rise, from 1 token up")
        for name in ("most_seconds", "most_gigabytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        check_settings(asdict(self))


Step = Callable[[], Any]


@dataclass(frozen=True)
class Layer:
    """One of the two that take turns.

    Attributes:
        who: "ours" or "peer".
        name: what tables call it.
        module: its weights.
        run: from scratch, `x_BTD -> y_BTD`.
        reader: `(x_BTD, room in tokens) -> step`: read a sequence into a state, return a function
            that decodes one token `[B, 1, D]`; None where it can't.
    """

    who: str
    name: str
    module: nn.Module
    run: Callable[[Tensor], Tensor]
    reader: Callable[[Tensor, int], Callable[[Tensor], Any]] | None


def our_layer(name: str, mixer: Mixer) -> Layer:
    """Wrap one of our mixers."""

    def read(x_BTD: Tensor, room: int) -> Callable[[Tensor], Any]:
        state = mixer.init_state(x_BTD.shape[0], room, x_BTD.device, x_BTD.dtype)
        held = [mixer(x_BTD, None, state)[1]]

        def step(x_B1D: Tensor) -> None:
            held[0] = mixer(x_B1D, None, held[0])[1]

        return step

    return Layer("ours", name, mixer, lambda x: mixer(x)[0], read)


def peer_layer(name: str, ours: MixerConfig, site: Site, chunk: int) -> Layer:
    """Wrap the layer of transformers that stands beside one of our mixers."""
    peer = build_layer_peer(LAYER_PEERS[name], ours, site, chunk)

    def read(x_BTD: Tensor, room: int) -> Callable[[Tensor], Any]:
        assert peer.new_cache is not None
        cache, place = peer.new_cache(), [x_BTD.shape[1]]
        peer.run(x_BTD, cache, 0)

        def step(x_B1D: Tensor) -> None:
            peer.run(x_B1D, cache, place[0])
            place[0] += 1

        return step

    reader = read if peer.new_cache else None
    return Layer("peer", peer.name, peer.module, lambda x: peer.run(x, None, 0), reader)


def build_layers(name: str, config: MixerSpeedConfig) -> tuple[MixerConfig, Mixer, list[Layer]]:
    """Build our mixer at its default settings, and its peer in the same shape if there is one."""
    site = Site(config.dim, config.head_dim, layer=1, num_layers=LAYERS)
    kind = LAYER_PEERS.get(name) if config.peers and peers_installed() else None
    ours = matched_config(MIXERS[name](), kind)
    mixer = ours.build(site)
    draw(mixer)
    layers = [our_layer(name, mixer)]
    if kind is not None:
        layers.append(peer_layer(name, ours, site, config.peer_chunk))
    for layer in layers:
        layer.module.to(config.device)
    return ours, mixer, layers


def call_of(layer: Layer, kind: str, length: int, config: MixerSpeedConfig) -> Step | None:
    """Return a call of one kind at a length, ready to be timed; None where there is no such."""
    shape = (config.batch, length, config.dim)
    generator = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(shape, generator=generator).to(config.device)
    layer.module.train(kind == "training")
    if kind == "training":
        return _training(layer, x_BTD, config)
    if kind == "forward":
        return _without_gradients(layer.run, x_BTD, config)
    return None if layer.reader is None else _decoding(layer, x_BTD, config)


def _half(config: MixerSpeedConfig) -> torch.autocast:
    half = config.precision == "bf16"
    return torch.autocast(config.device, torch.bfloat16, enabled=half)


def _without_gradients(
    run: Callable[[Tensor], Any], x_BTD: Tensor, config: MixerSpeedConfig
) -> Step:
    @torch.no_grad()
    def forward() -> None:
        with _half(config):
            run(x_BTD)

    return forward


def _training(layer: Layer, x_BTD: Tensor, config: MixerSpeedConfig) -> Step:
    x_BTD.requires_grad_()
    direction_BTD = torch.randn_like(x_BTD)

    def forward_backward() -> None:
        with _half(config):
            y_BTD = layer.run(x_BTD)
        y_BTD.backward(direction_BTD.to(y_BTD.dtype))
        layer.module.zero_grad(set_to_none=True)
        x_BTD.grad = None

    return forward_backward


def _decoding(layer: Layer, x_BTD: Tensor, config: MixerSpeedConfig) -> Step:
    """Each call decodes a few tokens more; its context grows by as many, a call."""
    assert layer.reader is not None
    calls = max(config.rounds, _MOST_TURNS) + 2  # the first time and a turn to warm up besides
    room = x_BTD.shape[1] + config.new_tokens * calls
    with torch.no_grad():
        step = layer.reader(x_BTD, room)
    token_B1D = x_BTD[:, :1].clone()

    @torch.no_grad()
    def decode() -> None:
        for _ in range(config.new_tokens):
            step(token_B1D)

    return decode


def measure_length(
    name: str,
    layers: list[Layer],
    kind: str,
    length: int,
    config: MixerSpeedConfig,
    guard: Guard,
) -> list[Row]:
    """Measure one kind of call at one length: memory first, then times in turn."""
    tokens = config.batch * (config.new_tokens if kind == "decoding" else length)
    rows, calls = {}, {}
    for layer in layers:
        row = rows[layer.who] = Row(name, layer.who, layer.name, kind, length, tokens)
        # Decoding begins with reading the sequence, which is a forward pass.
        row.note = guard.refuses(layer.who, kind, length)
        if kind == "decoding":
            row.note = guard.refuses(layer.who, "forward", length)
        if row.note:
            continue
        try:  # a layer that fails is told in its row; the others go on
            call = call_of(layer, kind, length, config)
            if call is None:
                row.note = "has none"
                continue
            if kind == "decoding":
                call()
            else:
                row.peak_bytes = peak_memory(call, config.device)
                guard.saw(layer.who, kind, "GB", length, row.peak_bytes / 1e9)
            calls[layer.who] = call
        except Exception as error:
            row.note = f"failed: {type(error).__name__}: {' '.join(str(error).split())}"
    for who, seconds in _timed(calls, config).items():
        rows[who].seconds = seconds
        guard.saw(who, kind, "s", length, rows[who].median or 0.0)
    return list(rows.values())


_SHORT, _MOST_TURNS = 0.5, 20


def _timed(calls: dict[str, Step], config: MixerSpeedConfig) -> dict[str, list[float]]:
    """Take turns: one to warm up, then `rounds`, and more where calls are short and so noisy."""
    first = take_turns(calls, 1, config.device, config.clock, warm_up=0)
    turn = sum(times[0] for times in first.values())
    turns = min(_MOST_TURNS, int(_SHORT / max(turn, 1e-6)))
    turns = max(config.rounds, turns)
    return take_turns(calls, turns, config.device, config.clock, warm_up=0)


def measure_mixer(name: str, config: MixerSpeedConfig) -> tuple[list[Row], dict[str, Any]]:
    """Measure one mixer and its peer at all lengths; return rows and what the mixer is."""
    ours, mixer, layers = build_layers(name, config)
    guard = Guard({"s": config.most_seconds, "GB": config.most_gigabytes})
    rows: list[Row] = []
    for length in config.lengths:
        began = time.monotonic()
        print(f"measuring {name} at {length} tokens", end=" ", file=sys.stderr, flush=True)
        for kind in KINDS:
            rows += measure_length(name, layers, kind, length, config, guard)
        print(f"took {time.monotonic() - began:.1f} s", file=sys.stderr)
    costs = {length: mixer.cost(length) for length in config.lengths}
    about = {
        "parameters": {y.who: sum(p.numel() for p in y.module.parameters()) for y in layers},
        "peer": layers[1].name if len(layers) > 1 else None,
        "settings": asdict(ours),
        "linear": len({cost.flops for cost in list(costs.values())[-2:]}) == 1,
        "state_bytes": {length: cost.state_bytes for length, cost in costs.items()},
    }
    return rows, about


def measure_mixers(config: MixerSpeedConfig, where: str, to: Console) -> dict[str, Any]:
    """Measure every mixer; print and write tables, picture and targets; return all figures."""
    rows: list[Row] = []
    mixers: dict[str, Any] = {}
    for name in config.mixers:
        try:
            measured, mixers[name] = measure_mixer(name, config)
            rows += measured
            # Kept as it comes: a run of an hour may be cut off.
            write_atomically(Path(config.output).with_suffix(".csv"), as_csv(rows).encode())
        except Exception as error:  # one mixer that can't be built leaves the others
            mixers[name] = {"failed": f"{type(error).__name__}: {error}", "linear": False}
            print(f"{name} failed: {mixers[name]['failed']}", file=sys.stderr)
    found = Rows(rows)
    tables = mixer_tables(found, config.precision)
    kernels = compare_kernels(config) if config.device == "cuda" else {}
    if kernels:
        tables.append(kernel_table(kernels))
    verdicts = judge(found, {n for n, about in mixers.items() if about["linear"]}, kernels)
    show(tables, target_lines(verdicts), Path(config.output), to)
    _write(config, where, found)
    failures = [row.note for row in rows if row.note.startswith("failed")]
    failures += [about["failed"] for about in mixers.values() if "failed" in about]
    return {
        "mixers": mixers,
        "rows": [asdict(row) | {"microseconds_per_token": row.microseconds} for row in rows],
        "kernels": {"compared": kernels, "used": describe()},
        "targets": verdicts,
        "failures": failures,
    }


def _write(config: MixerSpeedConfig, where: str, rows: Rows) -> None:
    path = Path(config.output)
    write_atomically(path.with_suffix(".csv"), as_csv(rows.rows).encode())
    shape = f"dim {config.dim}, heads of {config.head_dim}, batch {config.batch}"
    save_speed_figure(
        rows, f"{where}; {shape}, {PRECISIONS[config.precision]}", path.with_suffix(".png")
    )
