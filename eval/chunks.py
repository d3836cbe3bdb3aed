"""`python -m eval.chunks`: show where a trained backbone cuts bytes into chunks."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml

from data.atomic import write_atomically
from data.corpus import Corpus
from data.tokenizer import ByteTokenizer
from eval.checkpoint import Trained, load_trained
from eval.chunk_cuts import cut_documents, some_of_each
from eval.chunk_page import rate_table, render_cuts
from eval.runs import CONFIG_FILE
from eval.terminal import console, print_table
from eval.verb import read_settings, run_verb
from models.latent.chunk import Chunk

CHUNKS_FILE = "chunks.html"
HELP = """\
Show where a backbone with latent=chunk cuts held-out documents: a page with the chunks marked, and
how often a chunk begins at a space, a digit, a letter, a special token.

  python -m eval.chunks run=runs/smoke_bytes/transformer-s0-1a2b3c4d
  python -m eval.chunks run=FOLDER documents=30 output=cuts.html

Nothing is asked: the newest checkpoint reads the validation documents of its corpus.

  run=FOLDER        the folder that `python -m train` named (required)
  output=FILE.html  where to write; default: chunks.html in the run folder
  documents=12      documents to show, evenly over the corpus's sources
  rows=64           rows of the corpus to read, for the counts
  device=auto|cpu|cuda
"""


@dataclass
class ChunksConfig:
    """The switches of the verb.

    Attributes:
        run: run folder.
        output: the HTML file to write; empty for the default place.
        documents: documents to show.
        rows: rows of held-out documents to read.
        device: auto, cpu or cuda.
    """

    run: str = ""
    output: str = ""
    documents: int = 12
    rows: int = 64
    device: str = "auto"

    def validate(self) -> None:
        """Raise ValueError, in one line that names the key and what is allowed."""
        if not self.run:
            raise ValueError("run is not set: give a run folder, as in run=runs/smoke_bytes/NAME")
        if self.output and not self.output.endswith(".html"):
            raise ValueError(f"output={self.output}: must be the name of an .html file")
        for name in ("documents", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device={self.device} is not known: choose auto, cpu or cuda")


def write_chunks(config: ChunksConfig, command: str = "") -> Path:
    """Write the page and print its tables; return where it stands.

    Raises:
        eval.checkpoint.CheckpointError: there is no trained run in the folder.
        data.shards.CorpusError: its corpus is gone, or has no validation documents.
        ValueError: the run chunks nothing.
    """
    folder = Path(config.run)
    trained = load_trained(folder)
    latent, tokenizer = _chunking(trained, config.run)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    corpus = Corpus.open(yaml.safe_load((folder / CONFIG_FILE).read_text())["corpus"], verify=False)
    cuts = cut_documents(trained.backbone.to(device), corpus, config.rows, device)
    shown, levels = some_of_each(cuts, config.documents), len(latent.levels)
    settings = ", ".join(f"{name}={value}" for name, value in asdict(latent.config).items())
    facts = {
        "Run": folder.name,
        "Latent scheme": settings,
        "Trained": f"{trained.step} steps",
        "Command": command or "(called from another program)",
    }
    page = render_cuts(cuts, shown, tokenizer, facts, levels)
    path = Path(config.output) if config.output else folder / CHUNKS_FILE
    write_atomically(path, page.encode("utf-8"))
    for level in range(1, levels + 1):
        print_table(rate_table(cuts, level), console())
    return path


def _chunking(trained: Trained, run: str) -> tuple[Chunk, ByteTokenizer]:
    """The scheme and tokenizer of a backbone that chunks bytes."""
    latent = trained.backbone.latent
    if not isinstance(latent, Chunk):
        raise ValueError(
            f"run={run}: latent={trained.backbone.config.latent.kind} cuts nothing into chunks: "
            "give a run that was trained with latent=chunk"
        )
    if not isinstance(trained.tokenizer, ByteTokenizer):
        raise ValueError(f"run={run}: its corpus isn't of bytes; train on one of kind bytes")
    return latent, trained.tokenizer


def parse(arguments: Sequence[str]) -> ChunksConfig:
    """Read `key=value` arguments.

    Raises:
        ValueError: an unknown key or an impossible value, in one line.
    """
    config = read_settings(ChunksConfig, arguments)
    config.validate()
    return config


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status: 2 for a wrong setting, 1 where it could not be done."""
    return run_verb(
        "eval.chunks",
        HELP,
        arguments,
        parse,
        lambda config, command: f"page: {write_chunks(config, command)}",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
