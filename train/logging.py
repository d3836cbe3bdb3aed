"""Who is told about a run: W&B, through Lightning's logger."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

KINDS = ("none", "wandb")
MODES = ("offline", "online")
ARTIFACTS = ("none", "final", "all")
Alert = Callable[[str, str], None]
"""Tells people, by a title and a line, that something happened that they may have to look at."""


@dataclass
class LoggerConfig:
    """Settings of the logger; metrics.csv is written whatever is chosen.

    Attributes:
        kind: none or wandb.
        mode: offline writes into the run folder (`wandb sync` sends it later); online sends.
        project: W&B project.
        group: W&B group; null is the experiment's name, so that a sweep stands together.
        artifacts: what W&B keeps of a finished run: none, final (the last checkpoint), or all (also
            its settings, costs and ledger).
    """

    kind: str = "wandb"
    mode: str = "offline"
    project: str = "pauca"
    group: str | None = None
    artifacts: str = "none"

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        if self.kind not in KINDS:
            raise ValueError(f"logger.kind={self.kind} is not known: choose {' or '.join(KINDS)}")
        if self.mode not in MODES:
            raise ValueError(f"logger.mode={self.mode} is not known: choose {' or '.join(MODES)}")
        if self.artifacts not in ARTIFACTS:
            raise ValueError(
                f"logger.artifacts={self.artifacts} is not known: choose {', '.join(ARTIFACTS)}"
            )
        if self.artifacts != "none" and self.kind != "wandb":
            raise ValueError(
                f"logger.artifacts={self.artifacts} is kept by W&B, but logger.kind={self.kind}: "
                "choose logger=wandb, or logger.artifacts=none"
            )


@contextmanager
def loggers_of(
    config: LoggerConfig, folder: Path, experiment: str, hyperparameters: dict[str, Any]
) -> Iterator[list[Logger]]:
    """Give the chosen loggers, and close W&B's run after: the next of a sweep gets its own.

    A run that goes on keeps its W&B id, the folder's name.
    """
    loggers = [] if config.kind == "none" else [_wandb(config, folder, experiment, hyperparameters)]
    try:
        yield [*loggers]
    except BaseException:
        _finish(loggers, exit_code=1)
        raise
    _finish(loggers, exit_code=0)


def alert_of(loggers: list[Logger]) -> Alert:
    """Return what sends an alert to whoever is told of the run; it never fails the run.

    Only the first process tells. Offline, the alert is sent when the run is.
    """

    def alert(title: str, text: str) -> None:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                with contextlib.suppress(Exception):
                    logger.experiment.alert(title=title, text=text, level="ERROR")

    return alert


def _finish(loggers: list[WandbLogger], exit_code: int) -> None:
    for logger in loggers:
        if logger._experiment is not None:  # the public property would begin a run to end it
            logger._experiment.finish(exit_code=exit_code)


def _wandb(
    config: LoggerConfig, folder: Path, experiment: str, hyperparameters: dict[str, Any]
) -> WandbLogger:
    return WandbLogger(
        name=folder.name,
        id=folder.name,
        resume="allow",
        project=config.project,
        group=config.group or experiment,
        save_dir=str(folder.resolve()),
        mode=config.mode,  # not Lightning's `offline`, which sets WANDB_MODE for all that follows
        config=hyperparameters,
        settings={"quiet": True},  # metrics.csv has what it would print at the end
    )
