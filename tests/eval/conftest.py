"""A synthetic experiment: made-up answers with the shape of real ones, for the report's tests."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from eval.ledger import write_ledger
from tests.eval.thinking import train_run

LEVELS = {2: "train_only", 8: "held_out", 16: "held_out", 24: "beyond"}
CHANCE = {"swaps": 1 / 3, "parity": 1 / 2}
# backbone: (parameters, FLOPs a token, state bytes at a position, bytes more a position, blocks,
#            accuracy without a trace, accuracy with one, loop counts)
BACKBONES = {
    "transformer": (210_112, 4.2e5, 0, 2048, 4, 0.36, 0.99, (1,)),
    "looped_transformer": (209_800, 4.2e5, 0, 2048, 4, 0.42, 0.98, (1, 2, 3)),
    "gated_deltanet": (212_330, 4.6e5, 33_792, 0, 4, 0.985, 0.35, (1,)),
    "deltanet_hybrid": (211_004, 4.5e5, 25_344, 512, 4, 0.97, 0.985, (1,)),
    "mamba2_hybrid": (213_500, 4.3e5, 29_000, 512, 4, 0.40, 0.91, (1,)),
}


def synthetic_answers(
    backbone: str, task: str = "swaps", items: int = 500, seed: int = 0, run: str | None = None
) -> pl.DataFrame:
    """Return a made-up ledger of one backbone on one task over levels and budgets."""
    loops = BACKBONES[backbone][-1]
    budgets = [
        (trace, end, loop)
        for loop in loops
        for trace, end in (("none", None), ("full", None), ("full", 8))
    ]
    rng = np.random.Generator(np.random.Philox([seed, sum(map(ord, backbone + task))]))
    parts = [
        _cell(backbone, task, level, budget, items, rng) for level in LEVELS for budget in budgets
    ]
    return pl.concat(parts).with_columns(run=pl.lit(run or f"{backbone}-0a1b2c"))


def _cell(
    backbone: str,
    task: str,
    level: int,
    budget: tuple[str, int | None, int],
    items: int,
    rng: np.random.Generator,
) -> pl.DataFrame:
    _, flops, state, state_slope, blocks, direct, traced, _ = BACKBONES[backbone]
    trace, end, loops = budget
    status, chance = LEVELS[level], CHANCE[task]
    skill = direct + 0.05 * (loops - 1) if trace == "none" else traced
    if trace == "full" and end is not None and end < level:
        skill = chance
    if status == "train_only":
        skill = 1.0
    if status == "beyond":
        skill = skill * 0.97 if trace == "none" else chance
    correct = rng.random(items) < skill
    thought = 0 if trace == "none" else (min(level, end or level) + 1)
    visible = np.full(items, 2 + thought)
    position = 4 + level + visible
    text = [f"{task} question {i} <at level {level}>" for i in range(items)]
    return pl.DataFrame(
        {
            "run": "",
            "backbone": backbone,
            "task": task,
            "level": level,
            "split": "train" if status == "train_only" else "test",
            "index": np.arange(items),
            "budget_trace": trace,
            "budget_forced_end": pl.Series([end] * items, dtype=pl.Int64),
            "budget_loops": loops,
            "budget_latent_steps_allowed": 0,
            "budget_samples": 1,
            "budget_stop": None,
            "correct": correct,
            "chance": chance,
            "visible_tokens": visible,
            "latent_steps": 0,
            "block_calls": position * blocks * loops,
            "model_flops": position * flops * loops,
            "serial_steps": visible * blocks * loops,
            "state_bytes": state + state_slope * position * loops,
            "latency_b1_s": visible * 7e-4 * loops * rng.uniform(0.9, 1.1, items),
            "batch_s": visible * 1e-4 * loops,
            "joules": pl.Series([None] * items, dtype=pl.Float64),
            "seed": 0,
            "beyond": status == "beyond",
            "train_only": status == "train_only",
            "question_text": text,
            "answer_text": "e",
            "output_text": ["e" if right else "</script><b>wrong</b>" for right in correct],
        }
    )


def write_run(folder: Path, answers: pl.DataFrame, **cost: object) -> Path:
    """Write a run folder around made-up answers; `cost` overrides what cost.json says."""
    backbone = answers["backbone"][0]
    parameters, flops, *_ = BACKBONES[backbone]
    facts = {
        "backbone": backbone,
        "parameters": parameters,
        "non_embedding_parameters": parameters - 8192,
        "train_tokens": 1_048_576,
        "train_flops": 3.0 * flops * 1_048_576,
        "model_flops_per_token": flops,
        "weight_bytes": 4 * parameters,
        "loops": list(BACKBONES[backbone][-1]),
        "layout": "4*attn",
        "seed": 0,
        "peak_lr": 0.02,
    }
    folder.mkdir(parents=True)
    write_ledger(answers, folder / "ledger.parquet")
    (folder / "cost.json").write_text(json.dumps(facts | cost))
    (folder / "config.yaml").write_text(f"name: {backbone}\nseed: 0\n")
    environment = {
        "command": "python -m train experiment=synthetic",
        "git_revision": "0" * 40,
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "device": "made-up CPU",
        "date": "2026-11-23T12:00:00+00:00",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


@pytest.fixture(scope="session")
def answers() -> Callable[..., pl.DataFrame]:
    """Give the function that makes up the answers of one backbone."""
    return synthetic_answers


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """Give the function that writes a run folder around made-up answers."""
    return write_run


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an experiment folder: five backbones, two tasks, four levels, 500 items a cell."""
    folder = tmp_path_factory.mktemp("runs") / "synthetic"
    for backbone in BACKBONES:
        ledger = pl.concat([synthetic_answers(backbone, task) for task in CHANCE])
        write_run(folder / ledger["run"][0], ledger)
    return folder


@pytest.fixture(scope="session")
def thinking_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run of a few steps, with thoughts and loops."""
    return train_run(tmp_path_factory.mktemp("thinking"), thinks=True)


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the same without both."""
    return train_run(tmp_path_factory.mktemp("plain"), thinks=False)
