"""The card of a corpus as Markdown, for people who read text and for dataset hubs."""

from typing import Any

from .card_facts import Facts
from .card_lines import overlap_lines, repeats, source_row, text_lines, tokenizer_line
from .corpus import Corpus

SHOWN = 2
_HEAD = (
    *("source", "what", "licence", "documents", "tokens"),
    *("share", "epochs", "median", "longest"),
)


def markdown(corpus: Corpus, facts: Facts) -> str:
    """The whole card."""
    manifest = corpus.manifest
    train = manifest["splits"]["train"]
    lines = [
        f"# Corpus {corpus.path.name}",
        "",
        f"{train['documents']:,} training documents, {train['tokens']:,} tokens, in"
        f" {train['rows']:,} rows of {corpus.context:,} ({100 * train['utilisation']:.1f}% filled;"
        f" {train['split_documents']:,} documents longer than a row were cut).",
        "",
        f"Tokenizer: {tokenizer_line(corpus)}. Definition: `{manifest['definition_hash']}`."
        f" Manifest: `{corpus.hash}`.",
        "",
        "## Sources",
        "",
        *_table(corpus, facts),
        "",
        *_texts(manifest),
        "## Overlaps with evaluation",
        "",
        *overlap_lines(facts),
        "",
        "## Examples",
        "",
        *_examples(facts),
    ]
    return "\n".join(lines) + "\n"


def _table(corpus: Corpus, facts: Facts) -> list[str]:
    rows = [source_row(corpus, facts, name) for name in corpus.source_names]
    rule = ["---"] * 3 + ["---:"] * 6
    return [f"| {' | '.join(row)} |" for row in (_HEAD, rule, *rows)]


def _texts(manifest: dict[str, Any]) -> list[str]:
    lines = [
        f"- {name}: {line}"
        for name, source in manifest["sources"].items()
        for line in text_lines(source)
    ]
    lines += [
        f"- {name}: {count['rejected']:,} items left out: their own verifier rejects the answer"
        for name, count in manifest["splits"]["train"]["sources"].items()
        if "rejected" in count
    ]
    return ["## What was left out", "", *lines, ""] if lines else []


def _examples(facts: Facts) -> list[str]:
    lines = []
    for name, sampled in facts.sources.items():
        lines += [f"### {name} ({repeats(sampled)})", ""]
        for example in sampled.examples[:SHOWN]:
            lines += ["```", example.replace("```", "'''"), "```", ""]
    return lines
