"""Run folders as the report reads them: the ledger and what is known about who answered."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from eval.ledger import LEDGER_FILE, read_ledger

COST_FILE = "cost.json"
CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
# What makes a folder a run. Not config.yaml: loggers write files of that name too.
_MARKS = (COST_FILE, LEDGER_FILE)


class RunError(ValueError):
    """A run folder that cannot be reported; the message is one line with the way out."""


@dataclass(frozen=True)
class Run:
    """One evaluated backbone.

    Attributes:
        folder: where it lies.
        name: what the report and the `run` column of its ledger call it; unique in a report.
        backbone: the backbone's name.
        label: how figures call it: the backbone's name, told apart where several runs share it.
        cost: `cost.json` as it is; at least `parameters` is there.
        config: the text of `config.yaml`, empty if absent.
        environment: `environment.json` as it is, empty if absent.
        ledger: its validated ledger.
    """

    folder: Path
    name: str
    backbone: str
    label: str
    cost: dict[str, Any]
    config: str
    environment: dict[str, Any]
    ledger: pl.DataFrame


def find_runs(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Find the run folders at or under the given folders.

    Returns:
        The folders that hold a ledger, and the run folders that do not (trained but not
        evaluated), each sorted within its argument and named once.

    Raises:
        RunError: a folder does not exist, holds no run, or no run in it has a ledger; the message
            names the folder and the command that makes what is missing.
    """
    with_ledger: list[Path] = []
    without: list[Path] = []
    for folder in folders:
        runs = _runs_under(folder)
        evaluated = [run for run in runs if (run / LEDGER_FILE).is_file()]
        if not evaluated:
            raise RunError(
                f"{folder}: no run in it has a {LEDGER_FILE}; make one with: "
                f"python -m eval run={runs[0]}"
            )
        with_ledger += [run for run in evaluated if run not in with_ledger]
        without += [run for run in runs if run not in evaluated and run not in without]
    return with_ledger, without


def _runs_under(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise RunError(
            f"{folder}: no such folder; give a run folder, or an experiment folder with runs in it"
        )
    runs = list(_walk(folder))
    if not runs:
        raise RunError(
            f"{folder}: holds no run (no {' or '.join(_MARKS)} in it); train one with: "
            f"python -m train, then evaluate it with: python -m eval run=FOLDER"
        )
    return runs


def _walk(folder: Path) -> Iterator[Path]:
    """The run folders at or under a folder, in order; what lies inside a run is not searched."""
    if any((folder / mark).is_file() for mark in _MARKS):
        yield folder
        return
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and not inner.is_symlink() and not inner.name.startswith("."):
            yield from _walk(inner)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders and give each a unique name and label.

    Raises:
        RunError: `cost.json` is missing, damaged, or lacks the parameter count.
        eval.ledger.LedgerError: a ledger cannot be trusted.
    """
    runs = [read_run(folder) for folder in folders]
    names = Counter(run.name for run in runs)
    backbones = Counter(run.backbone for run in runs)
    return [_told_apart(run, names[run.name] > 1, backbones[run.backbone] > 1) for run in runs]


def read_run(folder: Path) -> Run:
    """Read one run folder (see `read_runs` for several, which may need telling apart)."""
    ledger = read_ledger(folder / LEDGER_FILE)
    cost = _read_json(folder / COST_FILE)
    if not isinstance(cost.get("parameters"), int):
        raise RunError(
            f"{folder / COST_FILE}: no whole number `parameters`; a cost without the size of what "
            "spends it cannot be reported: train the run again, or write the number in"
        )
    config, environment = folder / CONFIG_FILE, folder / ENVIRONMENT_FILE
    backbone = _only_value(ledger, "backbone", folder)
    return Run(
        folder=folder,
        name=_only_value(ledger, "run", folder),
        backbone=backbone,
        label=backbone,
        cost=cost,
        config=config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        environment=_read_json(environment) if environment.is_file() else {},
        ledger=ledger,
    )


def _told_apart(run: Run, name_shared: bool, backbone_shared: bool) -> Run:
    name = f"{run.folder.parent.name}/{run.name}" if name_shared else run.name
    label = f"{run.backbone} ({name})" if backbone_shared else run.backbone
    ledger = run.ledger.with_columns(run=pl.lit(name))
    return Run(**{**run.__dict__, "name": name, "label": label, "ledger": ledger})


def _only_value(ledger: pl.DataFrame, column: str, folder: Path) -> str:
    values = ledger[column].unique().sort().to_list()
    if len(values) != 1:
        raise RunError(
            f"{folder / LEDGER_FILE}: column {column} holds {', '.join(values)}, but a run's own "
            f"ledger has one value; evaluate again: python -m eval run={folder}"
        )
    return values[0]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RunError(f"{path}: missing; the folder is no finished run: train it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not JSON ({error}); train the run again") from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: must hold an object, holds {type(content).__name__}")
    return content


def combined_ledger(runs: Sequence[Run]) -> pl.DataFrame:
    """Stack the ledgers of several runs, with the figures' `label` as one more column."""
    parts = [run.ledger.with_columns(label=pl.lit(run.label)) for run in runs]
    return pl.concat(parts, how="diagonal_relaxed")
