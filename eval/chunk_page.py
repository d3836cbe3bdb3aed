"""The page that shows where chunks begin: a table by kinds of bytes, and documents with marks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.tokenizer import ByteTokenizer
from eval import markup
from eval.chunk_cuts import Cut, mean_length, pieces, rates
from eval.table import Entry, Table

_CSS = Path(__file__).parent / "page.css"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
.cut { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .875rem;
  white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; max-width: none; }
.cut span { padding: .15em 0; border-left: 1px solid #0b5cad; }
.cut span:nth-child(odd) { background: #e8f0f8; }
.cut span:nth-child(even) { background: #f6f0e4; }
.cut span.outer { border-left: 4px solid #b3471d; }
"""


def render_cuts(
    cuts: Sequence[Cut],
    shown: Sequence[Cut],
    tokenizer: ByteTokenizer,
    facts: Mapping[str, str],
    levels: int,
) -> str:
    """Write the page.

    Args:
        cuts: all documents that were read, for the counts.
        shown: those to print.
        tokenizer: the corpus's.
        facts: about the run, for the head of the page.
        levels: levels of chunks.

    Returns:
        A complete HTML document that needs no other file.
    """
    parts = [
        "<h1>Where chunks begin</h1>",
        f'<p class="lead">{markup.text(_lead(cuts, levels))}</p>',
        markup.paragraphs([f"{name}: {value}" for name, value in facts.items()]),
        *(markup.table(rate_table(cuts, level)) for level in range(1, levels + 1)),
        "<section><h2>Held-out documents</h2>",
        f'<p class="note">{markup.text(_legend(levels))}</p>',
        *(_document(cut, tokenizer) for cut in shown),
        "</section>",
    ]
    style = _CSS.read_text(encoding="utf-8") + _STYLE
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Where chunks begin</title><style>{style}</style>"
    )
    body = "".join(parts)
    return f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def rate_table(cuts: Sequence[Cut], level: int) -> Table:
    """How often chunks of a level begin at each kind of byte, and their share of all."""
    found = rates(cuts, level)
    every = found[0].begins
    rows = [
        [
            Entry(rate.kind),
            Entry(f"{rate.bytes:,}"),
            Entry(_share(rate.begins, rate.bytes)),
            Entry(_share(rate.begins, every)),
        ]
        for rate in found
    ]
    return Table(
        title=f"Level {level}: {mean_length(cuts, level):.2f} bytes a chunk",
        columns=["Kind of byte", "Bytes", "Begin a chunk (%)", "Of all beginnings (%)"],
        rows=rows,
        names=1,
        note="The first byte of a document always begins a chunk and is left out. The last row "
        "crosses the others: where words begin.",
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "–"


def _lead(cuts: Sequence[Cut], levels: int) -> str:
    sizes = ", ".join(f"{mean_length(cuts, level):.2f}" for level in range(1, levels + 1))
    total = sum(len(cut.tokens) for cut in cuts)
    return f"{len(cuts):,} held-out documents of {total:,} bytes; bytes of a chunk: {sizes}."


def _legend(levels: int) -> str:
    outer = " A broad line: a chunk of the second level begins." * (levels > 1)
    return "Each chunk has a shade of its own, and a line where it begins." + outer


def _document(cut: Cut, tokenizer: ByteTokenizer) -> str:
    marks = {1: "<span>", 2: '<span class="outer">'}
    marked = "".join(
        f"{marks[level]}{markup.text(piece)}</span>" for piece, level in pieces(cut, tokenizer)
    )
    return f'<h3>{markup.text(cut.source)}</h3><p class="cut">{marked}</p>'
