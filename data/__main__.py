"""`python -m data`: make a corpus of reasoning problems, packed and ready to train on."""

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from data.card import PAGE, write_card
from data.config import DataConfig
from data.errors import one_line_errors
from data.groups import describe_groups
from data.make import make_corpus
from data.schema import register_schema

HELP = """\
Make a corpus of reasoning problems and text, packed and ready to train on; the last line printed is
`corpus: FOLDER`. The folder also gets a card, card.md and card.html, that says what is in it.

  python -m data data=smoke
  python -m data experiment=quickstart                the corpus that an experiment trains on
  python -m data data=s3_swaps data.num_documents=100000 data.name=more_swaps
  python -m data '+data.sources={words: {task: a5, trace: full, levels: [4, 8]}}'
                                                      one source more
  python -m data data=mixed_smoke data.tokenizer.kind=bpe
                                                      tasks, a borrowed one and text, by a BPE
  python -m data data=smoke --cfg job -p data         print the settings, make nothing

A finished corpus is found again; an interrupted one goes on from its finished shards.
`python -m data.inspect` lists the tasks and prints problems.

  data.name=NAME                corpora/NAME-HASH/ holds the corpus
  data.num_documents=N          also data.num_validation_documents=N
  data.context=N                tokens of a packed row
  data.sources.NAME.task=TASK   also .trace=none|short|full|verbose, .levels=[...], .weight=X,
                                .dense=true (a target at every symbol of the question),
                                .schedule=[{until: 0.3, levels: [2]}], .max_epochs=X
  data.sources.NAME.text.files=[PATHS]   text instead of a task; also .recipe, .fields, .document,
                                .on_bad=refuse|skip, .held_out=[gsm8k] (docs/corpora.md)
  data.weigh_by=problems|tokens data.temperature=X
  data.tokenizer.kind=symbolic|bytes|bpe|huggingface   also .path, .vocab_size, .tasks=[...]
  data.workers=N                processes; 0, the default, is all cores

"""


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="train")
def main(composed: DictConfig) -> None:
    """Make the corpus of an experiment; prints `corpus: <folder>` last."""
    with one_line_errors("data"):
        config = OmegaConf.to_object(composed.data)
        assert isinstance(config, DataConfig)
        config.validate()
        try:
            folder = make_corpus(config)
            if not (folder / PAGE).is_file():
                write_card(folder)
        except KeyboardInterrupt:
            print(
                "data: stopped; the same command goes on from the finished shards", file=sys.stderr
            )
            raise SystemExit(130) from None
    print(f"corpus: {folder}")


if __name__ == "__main__":
    if {"-h", "--help", "help"} & set(sys.argv[1:]):
        print(HELP + describe_groups("data", "experiment"))
        sys.exit()
    register_schema()
    with one_line_errors("data"):
        main()
