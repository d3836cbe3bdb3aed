"""A run that chunks bytes: trained, cut over micro-batches, evaluated, and shown."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data.source_config import SourceConfig
from data.tokenizer import TokenizerConfig
from eval.chunks import main
from eval.config import EvalConfig, TaskEval
from eval.evaluate_run import evaluate_run
from models.latent.chunk import ChunkConfig
from tests.train.conftest import RunFactory
from tests.train.runs import losses, small_backbone, small_data, train, with_trainer
from train.config import ParallelConfig, RunConfig


def chunked(run_at: RunFactory, corpora: Path, **settings: Any) -> RunConfig:
    config = run_at(
        backbone=small_backbone(latent=ChunkConfig(**settings)),
        data=small_data(
            corpora,
            name="small_bytes",
            context=128,
            tokenizer=TokenizerConfig("bytes"),
            sources={"written": SourceConfig("s3_swaps", "full", [2, 8])},
        ),
        eval=EvalConfig({"s3_swaps": TaskEval([8])}, items=8, latency_items=0),
    )
    return with_trainer(config, max_steps=4, validate_every=0)


def test_it_trains_alike_in_parts_and_shows_where_it_cuts(
    run_at: RunFactory, corpora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = chunked(run_at, corpora, levels=2, ratio=2)
    run = train(config)
    parts = ParallelConfig(accelerator="cpu", accumulate=2)
    cut = train(replace(config, parallel=parts, runs=f"{config.runs}_cut"))
    # Later a chance near one half may fall to its other side, by rounding.
    assert losses(cut)[:2] == pytest.approx(losses(run)[:2], rel=1e-6)
    # Two bytes, then two chunks, to a chunk: two blocks a byte, two more each two, one each four.
    cost = json.loads((run / "cost.json").read_text())
    assert cost["block_calls_per_position"] == 2 + 2 / 2 + 1 / 4

    rows = pl.read_parquet(evaluate_run(run, config.eval, "cpu"))
    assert rows["chunks"].is_between(1, rows["prompt_tokens"] + rows["visible_tokens"]).all()

    capsys.readouterr()
    assert main([f"run={run}", "rows=4", "device=cpu"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"page: {run / 'chunks.html'}"
    page = (run / "chunks.html").read_text()
    assert "Level 2" in page and 'class="outer"' in page and "&lt;s3_swaps&gt;" in page


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["rows=0", "run=x"], 2, "rows=0 must be at least 1"),
        (["documents=3"], 2, "run is not set"),
        (["page=1"], 2, "page is not a setting: choose one of run, output"),
        (["run=nowhere"], 1, "nowhere: no such folder"),
    ],
)
def test_wrong_settings_are_refused(
    arguments: list[str], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    assert capsys.readouterr().err.startswith(f"eval.chunks: {line}")


def test_a_run_that_cuts_nothing_is_refused(
    run_at: RunFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(with_trainer(run_at(), max_steps=1, validate_every=0))
    capsys.readouterr()
    assert main([f"run={run}"]) == 1
    assert "latent=none cuts nothing into chunks" in capsys.readouterr().err
