"""What W&B keeps of a finished run, where it is asked to: the last checkpoint, and what was found.

Offline, the files are copied into W&B's own folder and sent with the run (`python -m train.sync`).
"""

from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

from .checkpoints import latest_checkpoint
from .folder import write_json
from .logging import LoggerConfig, loggers_of

KEPT_FILE = "artifacts.json"
"""Names what was handed to W&B, so that it is done once."""

RECORDS = (
    *("config.yaml", "corpus.json", "cost.json", "environment.json", "metrics.csv"),
    *("ledger.parquet", "report.html", "evaluation.json"),
)
"""Files of a run that are records of it; those that are there are kept."""


def keep_artifacts(config: LoggerConfig, folder: Path, experiment: str) -> None:
    """Hand a finished run's files to W&B, under the run's id; once."""
    if config.artifacts == "none" or (folder / KEPT_FILE).exists():
        return
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None, "a finished run has a checkpoint"
    chosen = {f"checkpoint-{folder.name}": ("model", [checkpoint])}
    if config.artifacts == "all":
        records = [folder / name for name in RECORDS if (folder / name).exists()]
        chosen[f"records-{folder.name}"] = ("records", records)
    told = loggers_of(config, folder, experiment, {"folder": str(folder)})
    with told as loggers:
        for logger in loggers:
            assert isinstance(logger, WandbLogger)
            for name, (kind, paths) in chosen.items():
                _log(logger, name, kind, paths)
    write_json(folder / KEPT_FILE, {name: [p.name for p in ps] for name, (_, ps) in chosen.items()})


def _log(logger: WandbLogger, name: str, kind: str, paths: list[Path]) -> None:
    for path in paths:
        stem = name if len(paths) == 1 else f"{name}-{path.stem}"
        logger.experiment.log_artifact(str(path.resolve()), name=stem, type=kind)
