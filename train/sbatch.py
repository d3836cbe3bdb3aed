"""`python -m train.sbatch`: print what a sweep would hand to SLURM, and submit nothing."""

import sys
from collections.abc import Sequence
from math import prod
from typing import Any, cast

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from data.errors import one_line_errors

from .schema import register_schemas, to_config

HELP = """\
Print the script that a sweep would hand to sbatch. Nothing is submitted, no SLURM is needed.

  python -m train.sbatch launcher=slurm experiment=smoke seed=0,1,2
  python -m train.sbatch launcher=slurm hydra.launcher.partition=gpu parallel=fsdp2 parallel.nodes=4

The same arguments after `python -m train` submit it: a job for each run of the sweep, as one array.
"""
_RENAMED = {
    "name": "job_name",
    "timeout_min": "time",
    "mem_gb": "mem",
    "tasks_per_node": "ntasks_per_node",
}
"""What Hydra's launcher calls otherwise than sbatch."""

_NOT_SBATCH = ("_target_", "submitit_folder", "max_num_timeout")


def script(overrides: Sequence[str]) -> str:
    """Return the script; its array has a job for each run.

    Raises:
        ValueError: another launcher is chosen, or a setting can't be.
    """
    with initialize_config_module(config_module="configs", version_base="1.3"):
        first, jobs = _first_of_each(overrides)
        swept = compose("train", first, return_hydra_config=True).hydra.sweeper.get("params") or {}
        own, more = _first_of_each([f"{key}={value}" for key, value in swept.items()])
        composed = compose("train", [*own, *first], return_hydra_config=True)
        to_config(compose("train", [*own, *first]))
    if not str(composed.hydra.launcher._target_).endswith(".SlurmLauncher"):
        raise ValueError("this is for SLURM: add launcher=slurm")
    return _script(composed, jobs * more)


def _first_of_each(overrides: Sequence[str]) -> tuple[list[str], int]:
    """Return one run of a sweep, and how many runs there are."""
    parser, first, jobs = OverridesParser.create(), [], []
    for text, override in zip(overrides, parser.parse_overrides([*overrides]), strict=True):
        values = list(override.sweep_string_iterator()) if override.is_sweep_override() else []
        first.append(f"{override.get_key_element()}={values[0]}" if values else text)
        jobs.append(max(1, len(values)))
    return first, prod(jobs)


def _script(composed: DictConfig, jobs: int) -> str:
    """Write the script as submitit does, which Hydra's launcher hands its settings to."""
    from submitit.slurm.slurm import _convert_mem, _make_sbatch_string

    settings = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
    launcher = cast(dict[str, Any], settings)
    given = {_RENAMED.get(k, k): v for k, v in launcher.items() if k not in _NOT_SBATCH}
    if given["mem"] is not None:
        given["mem"] = _convert_mem(given["mem"])
    folder = launcher["submitit_folder"]
    command = f"{sys.executable} -u -m submitit.core._submit {folder}"
    return _make_sbatch_string(command, folder, map_count=jobs if jobs > 1 else None, **given)


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status."""
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0 if arguments else 2
    register_schemas()
    with one_line_errors("sbatch"):
        print(script([argument for argument in arguments if argument not in ("-m", "--multirun")]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
