"""The checks of a run's thoughts as a file in its folder, kept until other ones are asked for."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.atomic import write_atomically
from eval.config import EvalConfig
from eval.evaluate import Subject
from eval.faithfulness import Check, check_thoughts, thinking_traces

FAITHFULNESS_FILE = "faithfulness.json"


def check_run(folder: Path, subject: Subject, config: EvalConfig, force: bool = False) -> None:
    """Check the thoughts of a run, unless that was done for the same weights and questions.

    Raises:
        ValueError: no trace mode opens a thought.
    """
    asked = what_is_asked(config)
    if force or read_checks(folder, subject.checkpoint, asked) is None:
        write_checks(folder, subject.checkpoint, asked, check_thoughts(subject, config))


def what_is_asked(config: EvalConfig) -> dict[str, Any]:
    """Return what of the settings decides the checks."""
    levels = {task: config.levels(task) for task in config.tasks}
    asked = {"levels": levels, "traces": thinking_traces(config)}
    return asked | {name: getattr(config, name) for name in ("items", "split", "seed")}


def write_checks(
    folder: Path, checkpoint: str, asked: dict[str, Any], checks: Sequence[Check]
) -> None:
    """Write a run's checks beside its ledger."""
    content = {
        "checkpoint": checkpoint,
        "asked": asked,
        "checks": [asdict(check) for check in checks],
    }
    text = json.dumps(content, indent=1, sort_keys=True)
    write_atomically(folder / FAITHFULNESS_FILE, f"{text}\n".encode())


def read_checks(
    folder: Path, checkpoint: str | None = None, asked: dict[str, Any] | None = None
) -> list[Check] | None:
    """Return a run's checks; None where it has none, or those of other weights or questions."""
    path = folder / FAITHFULNESS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        known = {"checkpoint": checkpoint, "asked": asked}
        if any(want is not None and content[name] != want for name, want in known.items()):
            return None
        return [Check(**check) for check in content["checks"]]
    except (ValueError, KeyError, TypeError):
        return None
