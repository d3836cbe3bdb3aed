"""Who is told about a run: W&B, through Lightning's logger."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

KINDS = ("none", "wandb")
MODES = ("offline", "online")


@dataclass
class LoggerConfig:
    """Settings of the logger; metrics.csv is written whatever is chosen.

    Attributes:
        kind: none or wandb.
        mode: offline writes into the run folder (`wandb sync` sends it later); online sends.
        project: W&B project.
        group: W&B group; null is the experiment's name, so that a sweep stands together.
    """

    kind: str = "wandb"
    mode: str = "offline"
    project: str = "pauca"
    group: str | None = None

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        if self.kind not in KINDS:
            raise ValueError(f"logger.kind={self.kind} is not known: choose {' or '.join(KINDS)}")
        if self.mode not in MODES:
            raise ValueError(f"logger.mode={self.mode} is not known: choose {' or '.join(MODES)}")


def build_loggers(
    config: LoggerConfig, folder: Path, experiment: str, hyperparameters: dict[str, Any]
) -> list[Logger]:
    """Return the chosen loggers; a run that goes on keeps its W&B id, the folder's name."""
    if config.kind == "none":
        return []
    return [
        WandbLogger(
            name=folder.name,
            id=folder.name,
            resume="allow",
            project=config.project,
            group=config.group or experiment,
            save_dir=str(folder),
            offline=config.mode == "offline",
            config=hyperparameters,
        )
    ]
