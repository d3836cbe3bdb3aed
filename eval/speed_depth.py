"""Training speed of looped backbones, beside the unlooped twin of as many training FLOPs.

A loop runs the same blocks as a stack of layers, so it should train as fast for each FLOP that is
executed; and a loop count that varies should not compile its blocks anew.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from data.atomic import write_atomically
from eval.speed_backbones import training_step
from eval.speed_depth_figure import save_depth_figure
from eval.speed_depth_rows import (
    MODES,
    DepthRow,
    depth_csv,
    depth_tables,
    judge_depth,
)
from eval.speed_graphs import GraphCount, count_graphs
from eval.speed_show import show
from eval.speed_targets import target_lines
from eval.speed_timing import PRECISIONS, check_settings, take_turns
from models.backbone import Backbone
from models.config import BackboneConfig
from models.depth.draws import Draws
from models.depth.looped import LoopedDepthConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.sizing import resolve
from models.twins import training_flops, twin_of


@dataclass(frozen=True)
class Case:
    """A looped backbone: so many layers of a layout, under a depth."""

    num_layers: int
    layout: str
    depth: LoopedDepthConfig


CASES = {
    "attn_1x4": Case(1, "attn", LoopedDepthConfig(loops=4)),
    "attn_2x4": Case(2, "attn", LoopedDepthConfig(loops=4)),
    "gdn_hybrid_4x4": Case(4, "3*gdn attn", LoopedDepthConfig(loops=4)),
    "window": Case(
        4, "attn", LoopedDepthConfig(prelude=1, coda=1, loops=4, start="noise", gradient_loops=2)
    ),
    "relaxed_1x4": Case(1, "attn", LoopedDepthConfig(loops=4, relaxation="lora")),
}
"""(layers x loops): a plain loop over attention, over a hybrid; a core of two layers between two
others, its last two loops of four differentiated; low-rank weights of each loop's own."""


@dataclass
class DepthSpeedConfig:
    """What `suite=depth` measures; see the verb's help."""

    suite: str = "depth"
    cases: list[str] = field(default_factory=lambda: list(CASES))
    dim: int = 256
    head_dim: int = 64
    vocab_size: int = 512
    context: int = 512
    batch: int = 4
    rounds: int = 5
    compile: bool = True
    loop_counts: int = 8
    precision: str = "32"
    threads: int = 0
    device: str = "cpu"
    clock: str = "wall"
    output: str = "runs/speed/depth.json"

    def validate(self) -> None:
        """Raise ValueError, naming the key and what is allowed."""
        for name in self.cases:
            if name not in CASES:
                raise ValueError(f"cases: {name} is not known: choose of {', '.join(CASES)}")
        if not self.cases or len(set(self.cases)) < len(self.cases):
            raise ValueError(f"cases={self.cases} must name at least one case, each once")
        least = 1 + max(_settled(CASES[name].depth) for name in self.cases)
        if self.loop_counts < least:
            raise ValueError(
                f"loop_counts={self.loop_counts} must be at least {least}, to tell kinds of loops "
                "from counts"
            )
        check_settings(asdict(self))


def _settled(depth: LoopedDepthConfig) -> int:
    """The loop count at which every kind of loop runs."""
    return 2 if depth.gradient_loops is None else depth.gradient_loops + 1


def settings_of(name: str, config: DepthSpeedConfig) -> BackboneConfig:
    """Return the resolved settings of a looped backbone."""
    case = CASES[name]
    settings = BackboneConfig(
        name=name,
        dim=config.dim,
        num_layers=case.num_layers,
        head_dim=config.head_dim,
        layout=case.layout,
        mixers={"attn": AttentionConfig(), "gdn": GatedDeltaNetConfig()},
        depth=case.depth,
    )
    return resolve(settings, config.vocab_size)


def build(settings: BackboneConfig, config: DepthSpeedConfig, mode: str) -> Backbone:
    """Build a backbone, its blocks compiled at their first call where that is the mode."""
    backbone = Backbone(settings).to(config.device)
    if mode == "compiled":
        backbone.compile_blocks()
    return backbone


def measure_case(name: str, config: DepthSpeedConfig) -> list[DepthRow]:
    """Time a looped backbone and its twin, in every mode: all take turns."""
    looped = settings_of(name, config)
    settings = {"looped": looped, "twin": twin_of(looped, "flops", config.context)}
    modes = [mode for mode in MODES if mode == "plain" or config.compile]
    keys = [(mode, who) for mode in modes for who in settings]
    models = {key: build(settings[key[1]], config, key[0]) for key in keys}
    torch.compiler.reset()
    calls = {
        " ".join(key): training_step(model, config, _draws(config)) for key, model in models.items()
    }
    seconds = take_turns(calls, config.rounds, config.device, config.clock)
    return [_row(name, *key, models[key], config, seconds[" ".join(key)]) for key in keys]


def _draws(config: DepthSpeedConfig) -> Draws:
    return Draws(seed=0, stage=0, step=0, rows=config.batch)


def _row(
    name: str,
    mode: str,
    who: str,
    backbone: Backbone,
    config: DepthSpeedConfig,
    seconds: list[float],
) -> DepthRow:
    return DepthRow(
        name,
        mode,
        who,
        backbone.depth.default_loops,
        round(backbone.block_calls_per_position()),
        backbone.num_parameters,
        config.batch * training_flops(backbone, config.context),
        seconds,
    )


def measure_graphs(name: str, config: DepthSpeedConfig) -> GraphCount:
    """Count the graphs of a looped backbone's blocks over training steps of 1, 2, ... loops."""
    backbone = build(settings_of(name, config), config, "compiled")
    step = training_step(backbone, config, _draws(config))
    counts = range(1, config.loop_counts + 1)
    return count_graphs(step, counts, _settled(CASES[name].depth))


def measure_depths(config: DepthSpeedConfig, where: str, to: Console) -> dict[str, Any]:
    """Measure every case; print and write tables, picture and targets; return all figures."""
    rows: list[DepthRow] = []
    graphs: dict[str, GraphCount] = {}
    failures: list[str] = []
    for name in config.cases:
        print(f"measuring {name}", file=sys.stderr)
        try:  # one case that fails, such as for its memory, leaves the others
            rows += measure_case(name, config)
            if config.compile:
                graphs[name] = measure_graphs(name, config)
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
            print(f"failed: {failures[-1]}", file=sys.stderr)
    verdicts = judge_depth(rows, graphs)
    _present(config, where, rows, graphs, [*target_lines(verdicts), *failures], to)
    return {
        "rows": [asdict(row) | {"flops_per_second": row.rate} for row in rows],
        "graphs": {name: asdict(found) | {"added": found.added} for name, found in graphs.items()},
        "targets": verdicts,
        "failures": failures,
    }


def _present(
    config: DepthSpeedConfig,
    where: str,
    rows: list[DepthRow],
    graphs: dict[str, GraphCount],
    lines: Sequence[str],
    to: Console,
) -> None:
    """Print the tables; write them, the rows and the picture beside the output."""
    tables, path = depth_tables(rows, graphs), Path(config.output)
    show(tables, lines, path, to)
    write_atomically(path.with_suffix(".csv"), depth_csv(rows).encode())
    if rows:
        shape = f"dim {config.dim}, {config.batch} x {config.context} tokens"
        shape += f", {PRECISIONS[config.precision]}"
        save_depth_figure(rows, graphs, f"{where}; {shape}", path.with_suffix(".png"))
