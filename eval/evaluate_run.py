"""Evaluate a run folder: its newest checkpoint, its ledger, and a note of what was asked."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from data.atomic import write_atomically
from data.corpus import Corpus
from data.shards import CorpusError
from eval.checkpoint import Trained, checkpoints, corpus_manifest, load_trained
from eval.config import EvalConfig
from eval.evaluate import Row, Subject, evaluate
from eval.faithfulness import thinking_traces
from eval.faithfulness_files import check_run
from eval.ledger import LEDGER_FILE, Ledger, read_ledger
from eval.runs import CONFIG_FILE
from eval.texts import read_scores, score_texts, text_sources, write_scores

EVALUATION_FILE = "evaluation.json"


def evaluate_run(
    folder: Path, config: EvalConfig, device: str = "auto", force: bool = False
) -> Path:
    """Ask a run's backbone all that the settings say, and write its ledger after each cell.

    Cells that the ledger answers for the same checkpoint are kept.

    Args:
        folder: the run's folder.
        config: what is asked.
        device: auto, cpu or cuda.
        force: ask again what the ledger already answers.

    Returns:
        The ledger's path.

    Raises:
        eval.checkpoint.CheckpointError: there is nothing to evaluate.
        ValueError: on impossible settings, naming the key.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trained = load_trained(folder)
    checks = config.faithfulness and _has_thoughts(trained)
    if checks:
        thinking_traces(config)
    path = folder / LEDGER_FILE
    existing = [] if force or not path.exists() else read_ledger(path).to_dicts()
    subject = Subject(
        trained.backbone.to(device),
        trained.tokenizer,
        folder.name,
        trained.backbone.config.name,
        trained.identity,
        trained.levels,
        trained.fills,
    )

    def save(rows: list[Row]) -> None:
        ledger = Ledger()
        ledger.extend(rows)
        ledger.write(path)

    save(evaluate(subject, config, existing, on_cell=save))
    if not subject.fills:
        _score_texts(folder, trained, device, force)
    if checks:
        check_run(folder, subject, config, force)
    note = json.dumps(_note(folder, config), indent=2, sort_keys=True)
    write_atomically(folder / EVALUATION_FILE, f"{note}\n".encode())
    return path


def _has_thoughts(trained: Trained) -> bool:
    """Say so where there is nothing to check."""
    latent = trained.backbone.config.latent
    if latent.slots() and not trained.fills:
        return True
    print(
        "eval: eval.faithfulness=true is left out: this backbone has no thoughts before an answer",
        file=sys.stderr,
    )
    return False


def _score_texts(folder: Path, trained: Trained, device: str, force: bool) -> None:
    """Predict the corpus's held-out text, unless that is known for these weights."""
    if not text_sources(corpus_manifest(folder)):
        return
    if not force and read_scores(folder, trained.identity) is not None:
        return
    path = yaml.safe_load((folder / CONFIG_FILE).read_text())["corpus"]
    try:
        corpus = Corpus.open(path, verify=False)
    except CorpusError as error:
        print(f"eval: bits per byte are left out: {error}", file=sys.stderr)
        return
    backbone = trained.backbone.to(device)
    write_scores(folder, trained.identity, score_texts(backbone, corpus, device))


def is_evaluated(folder: Path, config: EvalConfig) -> bool:
    """Return whether the ledger answers all that the settings ask, for the newest checkpoint."""
    path = folder / EVALUATION_FILE
    if not path.is_file() or not (folder / LEDGER_FILE).is_file():
        return False
    try:
        return json.loads(path.read_text()) == _note(folder, config)
    except ValueError:
        return False


def _note(folder: Path, config: EvalConfig) -> dict[str, Any]:
    """What was asked, of which checkpoint; how many rows ran side by side changes no answer."""
    asked = asdict(config)
    for name in ("after_training", "batch_size"):
        asked.pop(name)
    found = checkpoints(folder)
    return {"asked": asked, "checkpoint": found[-1].name if found else None}
