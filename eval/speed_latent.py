"""Speed of thoughts: made side by side against one after the other, and many questions at once.

Training: a step of `feedback` whose thoughts are made one after the other with states, beside the
same by whole passes (its plain twin), and beside Jacobi rounds. Generation: questions answered in
one batch with states, beside a plain loop over questions.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from data.roles import Role
from data.tokenizer import SymbolicTokenizer
from eval.budget import Budget
from eval.generate import Request, generate
from eval.speed_show import ratio_entries, show
from eval.speed_timing import PRECISIONS, check_settings, take_turns
from eval.table import Entry, Table
from models.backbone import Backbone
from models.config import BackboneConfig
from models.latent.feedback import FeedbackConfig
from models.mixers.attention import AttentionConfig
from models.mixers.gated_delta import GatedDeltaNetConfig
from models.sizing import resolve

LAYOUTS = ("attn", "3*gdn attn")


@dataclass
class LatentSpeedConfig:
    """What `suite=latent` measures; see the verb's help."""

    suite: str = "latent"
    layouts: list[str] = field(default_factory=lambda: list(LAYOUTS))
    thoughts: list[int] = field(default_factory=lambda: [2, 4, 8])
    jacobi: list[int] = field(default_factory=lambda: [1, 3])
    dim: int = 256
    head_dim: int = 64
    layers: int = 4
    question: int = 96
    answer: int = 8
    batch: int = 16
    questions: int = 64
    rounds: int = 3
    precision: str = "32"
    threads: int = 0
    device: str = "cpu"
    clock: str = "wall"
    output: str = "runs/speed/latent.json"

    def validate(self) -> None:
        """Raise ValueError, naming the key and what is allowed."""
        for name, values in (("thoughts", self.thoughts), ("jacobi", self.jacobi)):
            if not values or min(values) < 1 or len(set(values)) < len(values):
                raise ValueError(f"{name}={values} must name numbers of at least 1, each once")
        for layout in self.layouts:
            if set(layout.replace("3*", "").split()) - {"attn", "gdn"}:
                raise ValueError(f"layouts: {layout} may name attn and gdn only")
        if not self.layouts:
            raise ValueError("layouts is empty: name at least one, as in [attn]")
        check_settings(asdict(self))


@dataclass
class LatentRow:
    """One way of doing the same work.

    Attributes:
        layout: of the backbone.
        work: training or generation.
        thoughts: before each answer.
        way: how.
        seconds: of each turn.
    """

    layout: str
    work: str
    thoughts: int
    way: str
    seconds: list[float]

    @property
    def median(self) -> float:
        """Median seconds of a turn."""
        return statistics.median(self.seconds)


def build(layout: str, jacobi: int | None, config: LatentSpeedConfig) -> Backbone:
    """Build a backbone that feeds hidden states back."""
    settings = BackboneConfig(
        dim=config.dim,
        num_layers=config.layers,
        head_dim=config.head_dim,
        layout=layout,
        mixers={"attn": AttentionConfig(), "gdn": GatedDeltaNetConfig()},
        latent=FeedbackConfig(jacobi=jacobi),
    )
    torch.manual_seed(0)
    vocab = SymbolicTokenizer().vocab_size
    return Backbone(resolve(settings, vocab)).to(config.device)


def measure_training(layout: str, thoughts: int, config: LatentSpeedConfig) -> list[LatentRow]:
    """Time training steps: in turn, by whole passes, in rounds; all take turns."""
    rounds = sorted({count for count in config.jacobi if count < thoughts} | {thoughts})
    ways: dict[str, Callable[[], Any]] = {
        "one by one, with states": training(build(layout, None, config), thoughts, config),
        "one by one, whole passes": training(build(layout, None, config), thoughts, config, True),
    }
    for count in rounds:
        name = f"jacobi {count}" + (" (exact)" if count == thoughts else "")
        ways[name] = training(build(layout, count, config), thoughts, config)
    seconds = take_turns(ways, config.rounds, config.device, config.clock)
    return [LatentRow(layout, "training", thoughts, way, found) for way, found in seconds.items()]


def training(
    model: Backbone, thoughts: int, config: LatentSpeedConfig, plain: bool = False
) -> Callable[[], None]:
    """Return a step over documents with so many thoughts: forward, loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens_BT, roles_BT = documents(model.config.vocab_size, thoughts, config)
    answers_BT = roles_BT[:, 1:] == Role.ANSWER

    def step() -> None:
        half = torch.autocast(config.device, torch.bfloat16, enabled=config.precision == "bf16")
        with half:  # what records all states makes thoughts by whole passes
            out = model(tokens_BT[:, :-1], roles_BT=roles_BT[:, :-1], record=plain)
            logits = out.readout(out.hidden_BTD[answers_BT])
        F.cross_entropy(logits.float(), tokens_BT[:, 1:][answers_BT]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    model.train()
    return step


def documents(vocab: int, thoughts: int, config: LatentSpeedConfig) -> tuple[Tensor, Tensor]:
    """Return random documents, one a row: tokens and roles."""
    parts = (
        (Role.QUESTION, config.question),
        (Role.THOUGHT, thoughts),
        (Role.ANSWER, config.answer + 1),
    )
    roles_T = torch.cat([torch.full((count,), int(role)) for role, count in parts])
    roles_BT = roles_T.expand(config.batch, -1).to(config.device)
    tokens_BT = torch.randint(1, vocab, roles_BT.shape, device=config.device)
    return tokens_BT, roles_BT


def measure_generation(layout: str, thoughts: int, config: LatentSpeedConfig) -> list[LatentRow]:
    """Time the same questions in one batch, and one after the other; both take turns."""
    backbone, tokenizer = build(layout, None, config).eval(), SymbolicTokenizer()
    budget = Budget("full", latent_steps=thoughts)
    generator = torch.Generator().manual_seed(0)
    shape = (config.questions, config.question)
    prompts = torch.randint(1, tokenizer.vocab_size, shape, generator=generator).tolist()
    requests = [Request(prompt, n, 0, config.answer) for n, prompt in enumerate(prompts)]

    def batched() -> None:
        generate(backbone, requests, budget, tokenizer, config.questions)

    def alone() -> None:
        for request in requests:
            generate(backbone, [request], budget, tokenizer, 1)

    ways = {"one batch": batched, "one after the other": alone}
    seconds = take_turns(ways, config.rounds, config.device, config.clock)
    return [LatentRow(layout, "generation", thoughts, way, found) for way, found in seconds.items()]


def measure_latents(config: LatentSpeedConfig, where: str, to: Console) -> dict[str, Any]:
    """Measure every layout and number of thoughts; print and write tables; return all figures."""
    rows: list[LatentRow] = []
    for layout in config.layouts:
        for thoughts in config.thoughts:
            print(f"measuring {layout}, {thoughts} thoughts", file=sys.stderr)
            rows += measure_training(layout, thoughts, config)
            rows += measure_generation(layout, thoughts, config)
    tables = [latent_table(rows, work, config, where) for work in ("training", "generation")]
    show(tables, [], Path(config.output), to)
    return {"rows": [asdict(row) | {"median": row.median} for row in rows]}


def latent_table(rows: list[LatentRow], work: str, config: LatentSpeedConfig, where: str) -> Table:
    """Lay the figures of one kind of work out; ratios are over the first way of each group."""
    columns = ["layout", "thoughts", "way", "seconds", "over the first", "over rounds"]
    lines, first = [], None
    for row in rows:
        if row.work != work:
            continue
        if first is None or (first.layout, first.thoughts) != (row.layout, row.thoughts):
            first = row
        each = [mine / theirs for mine, theirs in zip(row.seconds, first.seconds, strict=True)]
        names = (row.layout, str(row.thoughts), row.way, f"{row.median:.3f}")
        ratio, spread = ratio_entries(row.median / first.median, each)
        lines.append([*map(Entry, names), ratio, Entry("") if row is first else spread])
    shape = f"dim {config.dim}, {config.layers} layers, {config.question} words of question"
    done = {
        "training": f"a training step of {config.batch} documents",
        "generation": f"{config.questions} questions answered, {config.answer} words each",
    }[work]
    note = f"{where}; {shape}, {config.answer} of answer, {PRECISIONS[config.precision]}."
    return Table(f"{done}: seconds", columns, lines, note, names=3)
