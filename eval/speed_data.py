"""Speed of data: problems drawn and encoded, rows packed, batches read; and what a step waits.

Reading stands beside what a raw memory map gives (the token stream of nanoGPT-like loaders: rows of
ids and the same rows shifted by one, nothing else) and beside torch's DataLoader over our rows, in
one run. A row of ours has five arrays: tokens, targets, segments, roles and loss weights.
"""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from data.batch import Batch
from data.config import DataConfig
from data.corpus import Corpus, PackedRows
from data.generate import Document, build_shard, documents
from data.make import make_corpus
from data.module import StepRows
from data.packing import pack
from data.recipe import open_recipe
from data.source_config import SourceConfig
from data.texts.config import TextConfig
from data.tokenizer import TokenizerConfig
from eval.speed_backbones import training_step
from eval.speed_timing import check_settings, take_turns
from eval.speed_words import write_words
from eval.table import Entry, Table
from eval.terminal import print_table
from models.backbone import Backbone
from models.config import BackboneConfig
from models.mixers.attention import AttentionConfig
from models.sizing import resolve

BATCHES = 100
GENERATED = {
    "s3_swaps": SourceConfig("s3_swaps", "full", [8, 16]),
    "igsm": SourceConfig("igsm", "full", [6, 8]),
    "sudoku_9x9": SourceConfig("sudoku_9x9", "full", [2]),
}


@dataclass
class DataSpeedConfig:
    """Settings of the suite.

    Attributes:
        documents: documents that are drawn, encoded and packed.
        tokens: of the corpus that is read.
        context: tokens of a row.
        batch: rows of a batch.
        dim, layers, head_dim: the backbone whose training step is compared with reading its batch.
        rounds: turns after one to warm up.
        precision: of training, 32 or bf16.
        threads: CPU threads of training; 0 leaves torch's choice.
        device: of training, cpu or cuda.
        clock: wall or process.
        vocab_size: of the backbone; bytes have 320 tokens.
        output: where the figures go.
    """

    suite: str = "data"
    documents: int = 4_000
    tokens: int = 8_000_000
    context: int = 1024
    batch: int = 32
    dim: int = 256
    layers: int = 4
    head_dim: int = 64
    rounds: int = 7
    precision: str = "32"
    threads: int = 0
    device: str = "cpu"
    clock: str = "wall"
    vocab_size: int = 320
    output: str = "runs/speed/data.json"

    def validate(self) -> None:
        """Raise ValueError, naming the key, on what can't be measured."""
        check_settings({k: v for k, v in asdict(self).items() if k not in ("suite", "output")})


def measure_data(config: DataSpeedConfig, to: Console) -> dict[str, Any]:
    """Measure all, print the tables, and return the figures."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        making = _making(config, Path(folder))
        corpus = _text_corpus(config, Path(folder))
        reading = _reading(config, corpus.split("train"))
        waiting = _waiting(config, corpus.split("train"))
    print_table(_rates("Making, one core", making), to)
    print_table(_rates("Reading, one core", reading), to)
    to.print(
        f"A training step of {waiting['parameters']:,} parameters takes"
        f" {1e3 * waiting['step_s']:,.0f} ms, reading its batch {1e3 * waiting['read_s']:.2f} ms:"
        f" {100 * waiting['share']:.2f}% of the step."
    )
    return {"making": making, "reading": reading, "waiting": waiting}


Rates = dict[str, dict[str, float]]


def _making(config: DataSpeedConfig, folder: Path) -> Rates:
    """Documents and tokens a second: drawing and encoding by task, then packing."""
    rates: Rates = {}
    for name, source in GENERATED.items():
        settings = _config(config, folder, {name: source})
        made, seconds = _drawn(config, settings)
        tokens = sum(len(document.encoded) for document in made)
        rates[f"draw and encode {name}"] = _rate(seconds, len(made), tokens)
        lay = partial(build_shard, settings, 512, made)
        took = _seconds(config, {"lay": lay})["lay"]
        rates[f"pack and lay out {name}"] = _rate(took, len(made), tokens)
    lengths = np.random.default_rng(0).lognormal(4.5, 0.8, 400_000).astype(int).clip(1, 1024)
    took = _seconds(config, {"pack": lambda: pack(lengths, 1024)})["pack"]
    rates["pack alone, 400,000 lengths"] = _rate(took, lengths.size, int(lengths.sum()))
    return rates


def _drawn(config: DataSpeedConfig, settings: DataConfig) -> tuple[list[Document], float]:
    """The documents of a shard, and the seconds that drawing and encoding them takes."""
    recipe = open_recipe(settings, progress=False)
    (job, *_) = recipe.jobs()

    def draw() -> list[Document]:
        return [*documents(settings, recipe.tokenizer, job.split, job.part, {})]

    return draw(), _seconds(config, {"draw": draw})["draw"]


def _config(config: DataSpeedConfig, folder: Path, sources: dict[str, SourceConfig]) -> DataConfig:
    return DataConfig(
        root=str(folder),
        context=config.context,
        num_documents=config.documents,
        num_validation_documents=0,
        documents_per_shard=config.documents,
        workers=1,
        sources=sources,
    )


def _text_corpus(config: DataSpeedConfig, folder: Path) -> Corpus:
    """A corpus of bytes in documents of about 2,000, of random words."""
    size = 2_000
    count = -(-config.tokens // size)
    path = folder / "words.txt"
    write_words(path, count, size)
    text = SourceConfig(text=TextConfig(files=[str(path)], document="line", deduplicate=False))
    settings = _config(config, folder, {"words": text})
    settings.num_documents = int(0.94 * count)
    settings.tokenizer = TokenizerConfig("bytes")
    return Corpus.open(make_corpus(settings, progress=False))


def _reading(config: DataSpeedConfig, rows: PackedRows) -> Rates:
    """Tokens a second from warm files, in random order."""
    rng, height = np.random.default_rng(1), config.batch
    batches = [rng.integers(0, rows.num_rows, height) for _ in range(BATCHES)]
    stream = _token_file(rows)
    starts = [rng.integers(0, stream.size - config.context - 1, height) for _ in range(BATCHES)]
    steps = _step_rows(config, rows, BATCHES)

    def ours() -> None:
        for batch in batches:
            Batch.from_rows(rows.read(batch), 1.0)

    def raw() -> None:
        for first in starts:
            where = first[:, None] + np.arange(config.context)
            torch.from_numpy(stream[where].astype(np.int64))
            torch.from_numpy(stream[where + 1].astype(np.int64))

    def loaded(workers: int) -> Callable[[], None]:
        def run() -> None:
            for _ in DataLoader(steps, batch_size=None, num_workers=workers):
                pass

        return run

    calls = {
        "ours: rows to a batch of five arrays": ours,
        "raw memory map: ids and shifted ids": raw,
        "torch DataLoader over ours, in order, 0 workers": loaded(0),
        "torch DataLoader over ours, in order, 1 worker": loaded(1),
    }
    tokens = BATCHES * height * config.context
    return {name: _rate(s, BATCHES, tokens) for name, s in _seconds(config, calls).items()}


def _token_file(rows: PackedRows) -> np.ndarray:
    """The tokens of all rows as one stream of two-byte ids, mapped from a file of its own."""
    path = rows.paths[0].with_suffix(".tokens")
    with open(path, "wb") as file:
        for first in range(0, rows.num_rows, 64):
            some = rows.read(np.arange(first, min(first + 64, rows.num_rows)))
            file.write(some.tokens[some.segments >= 0].astype(np.uint16).tobytes())
    return np.memmap(path, dtype=np.uint16, mode="r")


def _step_rows(config: DataSpeedConfig, rows: PackedRows, steps: int) -> StepRows:
    def place(step: int) -> tuple[int, int, int]:
        return 0, step, steps

    return StepRows(rows, config.batch, 0, place, range(steps), 0, 1, 1)


def _waiting(config: DataSpeedConfig, rows: PackedRows) -> dict[str, float]:
    """Seconds of a training step and of reading its batch."""
    shape = BackboneConfig(
        dim=config.dim,
        num_layers=config.layers,
        head_dim=config.head_dim,
        mixers={"attn": AttentionConfig()},
    )
    backbone = Backbone(resolve(shape, config.vocab_size)).to(config.device)
    step = training_step(backbone, config)
    indices = np.random.default_rng(2).integers(0, rows.num_rows, config.batch)

    def read() -> None:
        Batch.from_rows(rows.read(indices), 1.0).to(config.device)

    took = take_turns({"step": step, "read": read}, 3, config.device, config.clock)
    seconds = {name: median(times) for name, times in took.items()}
    return {
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "step_s": seconds["step"],
        "read_s": seconds["read"],
        "share": seconds["read"] / (seconds["step"] + seconds["read"]),
    }


def _seconds(config: DataSpeedConfig, calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    took = take_turns(calls, config.rounds, "cpu", config.clock)
    return {name: median(times) for name, times in took.items()}


def _rate(seconds: float, items: int, tokens: int) -> dict[str, float]:
    return {"items_per_second": items / seconds, "tokens_per_second": tokens / seconds}


def _rates(title: str, rates: Rates) -> Table:
    what = "batches/s" if title.startswith("Reading") else "documents/s"
    rows = [
        [
            Entry(name),
            Entry(f"{rate['items_per_second']:,.0f}"),
            Entry(f"{rate['tokens_per_second'] / 1e6:,.2f}"),
        ]
        for name, rate in rates.items()
    ]
    return Table(title, ["", what, "million tokens/s"], rows, names=1)
