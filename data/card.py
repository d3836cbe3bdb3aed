"""`python -m data.card`: the card of a corpus, as `card.md` and as a page with histograms.

Both lie in the corpus's folder and are read off it: they can be drawn again at any time.
"""

import sys
from pathlib import Path

from .atomic import write_atomically
from .card_facts import LOOKED_AT, facts_of
from .card_markdown import markdown
from .card_page import page
from .corpus import Corpus
from .errors import one_line_errors

MARKDOWN, PAGE = "card.md", "card.html"
HELP = f"""\
Draw the card of a corpus: what it was made from and what is in it, with histograms of lengths,
levels and answers, ten examples of each source, licences, and overlaps with evaluation.

  python -m data.card corpus=corpora/quickstart-0123456789ab
  python -m data.card corpus=FOLDER limit=0

It writes {MARKDOWN} and {PAGE} into the corpus's folder.

  corpus=FOLDER   what `python -m data` named (required)
  limit=N         how many documents to look at (default {LOOKED_AT:,}); 0 is all of them
"""


def write_card(folder: Path, limit: int = LOOKED_AT) -> Path:
    """Write both; returns the page.

    Raises:
        CorpusError: the corpus can't be read.
        WriteError: the folder can't be written.
    """
    corpus = Corpus.open(folder, verify=False)
    facts = facts_of(corpus, limit)
    write_atomically(folder / MARKDOWN, markdown(corpus, facts).encode())
    write_atomically(folder / PAGE, page(corpus, facts).encode())
    return folder / PAGE


def main(arguments: list[str]) -> None:
    """Run the verb."""
    settings: dict[str, str] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        settings[key] = value
    if unknown := settings.keys() - {"corpus", "limit"}:
        raise ValueError(
            f"{min(unknown)} is not a setting: choose corpus or limit (--help says more)"
        )
    if not settings.get("corpus"):
        raise ValueError("corpus=FOLDER is missing: name what `python -m data` has made")
    limit = settings.get("limit", str(LOOKED_AT))
    if not limit.isdecimal():
        raise ValueError(f"limit={limit} is not possible: use a whole number, 0 for all documents")
    print(f"card: {write_card(Path(settings['corpus']), int(limit))}")


if __name__ == "__main__":
    if {"-h", "--help", "help"} & set(sys.argv[1:]):
        print(HELP, end="")
        sys.exit()
    with one_line_errors("data.card"):
        main(sys.argv[1:])
