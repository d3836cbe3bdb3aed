"""`python -m train.publish`: a trained run as a model that transformers loads without us."""

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.atomic import write_atomically
from eval.checkpoint import Trained, corpus_manifest, load_trained
from eval.verb import read_settings, run_verb

from .export import Export, write_export
from .export_check import can_check, check_export
from .export_folder import check_folder, is_hub_name, writing_folder
from .folder import git_revision
from .hub import MAIN, HubRepository
from .model_card import CardFacts, card_files

HELP = """\
Publish a trained run: a folder, or a repository of the Hugging Face hub, from which other people
load it with transformers, without this project. The last line printed is `export: PLACE`.

  python -m train.publish run=runs/smoke/transformer-s0-1a2b3c4d to=./exported
  python -m train.publish run=FOLDER to=owner/name
  python -m train.publish run=FOLDER to=owner/name private=false licence=apache-2.0

The export holds the weights (safetensors), the settings, the source files that this backbone needs,
its tokenizer, and a model card with results, costs, data and licences, and how it was made.

  run=FOLDER       the folder that `python -m train` named (required)
  to=PLACE         a folder, or owner/name of the hub (required). It is a folder where it begins
                   with . / or ~, has no slash or several, or where it, or what stands before its
                   slash, is here already
  force=true       replace an export that is there; nothing else is ever replaced
  licence=NAME     the licence that you give the weights, as the hub spells it, such as apache-2.0
  shard_size=5GB   the largest file of weights
  check=false      don't load the export once before it is put in place (needs transformers)

Of the hub alone, with a token that may write in the variable HF_TOKEN:

  private=false    let everybody see it
  revision=BRANCH  where to commit; default main

An interrupted upload goes on with the same command. docs/publishing.md says more.
"""
_SIZE = re.compile(r"[1-9]\d*(KB|MB|GB)")
_NAME = re.compile(r"[\w.-]*")


@dataclass
class PublishVerb:
    """The switches of the verb.

    Attributes:
        run: run folder.
        to: a folder, or owner/name of the hub.
        force: replace an export that is there.
        licence: licence of the weights, in the hub's spelling; empty for none.
        shard_size: the largest file of weights.
        check: load the export once before it is put in place.
        private: of the hub: whether only its owner sees it.
        revision: of the hub: the branch.
    """

    run: str = ""
    to: str = ""
    force: bool = False
    licence: str = ""
    shard_size: str = "5GB"
    check: bool = True
    private: bool = True
    revision: str = MAIN

    def validate(self) -> None:
        """Raise ValueError, naming the key, where a value can't be."""
        if not self.run:
            raise ValueError("run is not set: give a run folder, as in run=runs/smoke/NAME")
        if not self.to:
            raise ValueError("to is not set: give a folder (./NAME), or owner/name of the hub")
        if not _SIZE.fullmatch(self.shard_size):
            raise ValueError(f"shard_size={self.shard_size} is not possible: write it as in 5GB")
        for name in ("licence", "revision"):
            if not _NAME.fullmatch(value := getattr(self, name)):
                raise ValueError(f"{name}={value} may hold letters, digits, `.`, `_` and `-` alone")
        if not is_hub_name(self.to) and (not self.private or self.revision != MAIN):
            raise ValueError(
                f"to={self.to} is a folder, and private and revision are of the hub alone: leave "
                "them out"
            )


def parse(arguments: Sequence[str]) -> PublishVerb:
    """Read the arguments.

    Raises:
        ValueError: an unknown key or an impossible value; one line.
    """
    verb = read_settings(PublishVerb, arguments)
    verb.validate()
    return verb


def publish(verb: PublishVerb) -> str:
    """Publish a run; return where.

    Raises:
        ValueError: there is nothing to publish, or no place for it; one line.
    """
    if is_hub_name(verb.to):
        repository = HubRepository(verb.to, verb.private, verb.force, verb.revision)
        repository.check()
        trained = load_trained(Path(verb.run))
        with tempfile.TemporaryDirectory(prefix="pauca-") as name:
            _write(verb, trained, Path(name))
            return repository.upload(Path(name), _message(trained))
    folder = Path(verb.to).expanduser()
    check_folder(folder, verb.force)
    trained = load_trained(Path(verb.run))
    with writing_folder(folder) as beside:
        _write(verb, trained, beside)
    return str(folder)


def _write(verb: PublishVerb, trained: Trained, folder: Path) -> None:
    """Write an export and its card, and see whether it loads."""
    run = Path(verb.run)
    context = int(corpus_manifest(run)["context"])
    export = Export(trained.backbone, trained.tokenizer, context, trained.fills)
    name = verb.to if is_hub_name(verb.to) else "FOLDER"
    facts = CardFacts(run, export, trained.step, trained.identity, name, verb.licence)
    for file, content in card_files(facts).items():
        write_atomically(folder / file, content)
    write_export(export, folder, verb.shard_size)
    if not verb.check:
        return
    if can_check():
        check_export(trained.backbone, folder)
    else:
        print("publish: transformers isn't installed, so nothing was checked", file=sys.stderr)


def _message(trained: Trained) -> str:
    name = " ".join(trained.backbone.config.name.split())[:60]
    return f"Publish {name} at step {trained.step} (Pauca {git_revision()})"


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status: 2 for a wrong setting, 1 if nothing was published."""
    return run_verb("train.publish", HELP, arguments, parse, _publish)


def _publish(verb: PublishVerb, _: str) -> str:
    return f"export: {publish(verb)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
