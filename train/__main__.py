"""`python -m train`: pretrain one backbone, or sweep over several with -m."""

import sys

import hydra
from omegaconf import DictConfig

from data.errors import one_line_errors
from train.interrupts import Interrupted
from train.pretrain import pretrain
from train.schema import check_command_line, register_schemas, to_config


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="train")
def main(composed: DictConfig) -> None:
    """Train one run; prints `run: <folder>` last."""
    with one_line_errors("train"):
        try:
            folder = pretrain(*to_config(composed))
        except Interrupted as stop:
            print(f"train: {stop}", file=sys.stderr)
            raise SystemExit(128 + stop.signum) from None
    print(f"run: {folder}")


if __name__ == "__main__":
    register_schemas()
    with one_line_errors("train"):
        check_command_line(sys.argv[1:])
        main()
