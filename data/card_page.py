"""The page of a corpus's card: one HTML file that opens offline, pictures inside."""

from html import escape
from pathlib import Path

from .card_facts import Facts
from .card_figures import histograms
from .card_lines import overlap_lines, repeats, source_row, text_lines, tokenizer_line, what
from .corpus import Corpus

_STYLE = Path(__file__).with_name("card.css")
_HEAD = ("Source", "What", "Licence", "Documents", "Tokens", "Share", "Epochs", "Median", "Longest")


def page(corpus: Corpus, facts: Facts) -> str:
    """The whole page."""
    train = corpus.manifest["splits"]["train"]
    rows = [source_row(corpus, facts, name) for name in corpus.source_names]
    parts = [
        f"<h1>Corpus {escape(corpus.path.name)}</h1>",
        f"<p>{train['documents']:,} training documents, {train['tokens']:,} tokens, in"
        f" {train['rows']:,} rows of {corpus.context:,} ({100 * train['utilisation']:.1f}% filled;"
        f" {train['split_documents']:,} documents longer than a row were cut). Tokenizer:"
        f" {escape(tokenizer_line(corpus)).replace('`', '')}.</p>",
        "<h2>Sources</h2>",
        _table(rows),
        "<p class=faint>Median and longest: tokens of a document, of those that were looked at."
        " Epochs: how often the records of a text were read.</p>",
        *(_source(corpus, facts, name) for name in corpus.source_names),
        "<h2>Overlaps with evaluation</h2>",
        *(f"<p>{escape(line)}</p>" for line in overlap_lines(facts)),
        f"<p class=faint>Definition {corpus.manifest['definition_hash']}<br>Manifest"
        f" {corpus.hash}</p>",
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Corpus {escape(corpus.path.name)}</title>"
        f"<style>{_STYLE.read_text()}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _table(rows: list[list[str]]) -> str:
    head = "".join(f"<th>{title}</th>" for title in _HEAD)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(entry)}</td>' for entry in row)}</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _source(corpus: Corpus, facts: Facts, name: str) -> str:
    source, sampled = corpus.manifest["sources"][name], facts.sources[name]
    copies = [] if "origins" in source else [repeats(sampled)]
    said = [what(source), *copies, *text_lines(source)]
    if not sampled.lengths:
        return f"<h2>{escape(name)}</h2><p>{escape('; '.join(said))}</p>"
    first, *more = [f"<pre>{escape(example)}</pre>" for example in sampled.examples]
    folded = f"<details><summary>{len(more)} more</summary>{''.join(more)}</details>"
    return (
        f"<h2>{escape(name)}</h2><p>{escape('; '.join(said))}.</p>"
        f"{histograms(sampled, corpus.context)}<h3>Examples</h3>{first}{folded}"
    )
