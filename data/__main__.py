"""`python -m data`: make a corpus of reasoning problems, packed and ready to train on."""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from data.config import DataConfig
from data.errors import one_line_errors
from data.make import make_corpus
from data.schema import register_schema


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="train")
def main(composed: DictConfig) -> None:
    """Make the corpus of an experiment; prints `corpus: <folder>` last."""
    with one_line_errors("data"):
        config = OmegaConf.to_object(composed.data)
        assert isinstance(config, DataConfig)
        config.validate()
        try:
            folder = make_corpus(config)
        except KeyboardInterrupt:
            print(
                "data: stopped; the same command goes on from the finished shards", file=sys.stderr
            )
            raise SystemExit(130) from None
    print(f"corpus: {folder}")


if __name__ == "__main__":
    register_schema()
    with one_line_errors("data"):
        main()
