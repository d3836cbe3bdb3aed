"""`python -m train.sync`: send offline W&B runs, all of a folder's with one command."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.verb import read_settings, run_verb

HELP = """\
Send runs that were recorded offline (logger.mode=offline) to W&B; the last line printed is
`synced: FOLDER`. W&B's own `wandb sync` does it, with the key that `wandb login` keeps.

  python -m train.sync runs=runs                all runs below a folder that were not sent yet
  python -m train.sync runs=runs dry=true       only say which, send nothing

The parts of a run that was stopped and went on are sent one after the other, under one id.

  runs=FOLDER                   a run's folder, an experiment's, or that of all experiments
  dry=true                      print the command, and do nothing
"""


@dataclass
class SyncConfig:
    """Settings of the verb.

    Attributes:
        runs: folder that runs stand below.
        dry: only print what would be done.
    """

    runs: str = ""
    dry: bool = False

    def validate(self) -> None:
        """Raise ValueError where there is no such folder."""
        if not Path(self.runs or "nowhere").is_dir():
            raise ValueError(f"runs={self.runs} is no folder: give one that runs stand below")


def offline_runs(folder: Path) -> list[Path]:
    """Return the offline runs below a folder that W&B hasn't marked as sent, oldest first."""
    found = folder.resolve().rglob("wandb/offline-run-*/run-*.wandb")
    unsent = [path.parent for path in found if not path.with_name(f"{path.name}.synced").exists()]
    return sorted(unsent, key=lambda path: (path.name, path))


def sync(settings: SyncConfig) -> None:
    """Let W&B send them.

    Raises:
        ValueError: W&B could not; its own words stand above.
    """
    runs = offline_runs(Path(settings.runs))
    if not runs:
        print("there is nothing to send")
        return
    for run in runs:
        print(f"{'would send' if settings.dry else 'sending'} {run}", flush=True)
    if settings.dry:
        return
    status = subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, runs)]).returncode
    if status:
        raise ValueError(
            f"wandb sync ended with status {status}: see above; `wandb login` gives it a key"
        )


def _settings(arguments: Sequence[str]) -> SyncConfig:
    settings = read_settings(SyncConfig, arguments)
    settings.validate()
    return settings


def _make(settings: SyncConfig, command: str) -> str:
    sync(settings)
    return f"synced: {settings.runs}" if not settings.dry else f"not synced: {settings.runs}"


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status."""
    return run_verb("train.sync", HELP, arguments, _settings, _make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
