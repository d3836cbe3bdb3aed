"""The pieces of the report's HTML. Every text goes through `html.escape` here, and only here."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.palette import INK, Style
from eval.table import Entry, Table


def text(value: object) -> str:
    """Escape a text for use between tags and in quoted attributes."""
    return html.escape(str(value), quote=True)


def script_data(name: str, value: Any) -> str:
    """Embed data for the page's script as JSON that cannot end the script element.

    `<`, `>` and `&` become escapes of JSON itself, so no text in the data can open or close a tag.
    """
    data = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{text(name)}">{data}</script>'


def table(content: Table, css: str = "", heading: bool = True) -> str:
    """Write a table, in a box that scrolls sideways where the screen is narrow."""
    head = "".join(
        f'<th scope="col"{_name_class(place, content)}>{text(column)}</th>'
        for place, column in enumerate(content.columns)
    )
    body, before = [], ""
    for row in content.rows:
        same = ' class="same"' if content.grouped and row[0].text == before else ""
        body.append(f"<tr{same}>{''.join(_entries(row, content))}</tr>")
        before = row[0].text
    title = f"<h3>{text(content.title)}</h3>" if heading else ""
    note = f'<p class="note">{text(content.note)}</p>' if content.note else ""
    return (
        f'{title}<div class="scroll {css}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def _entries(row: Sequence[Entry], content: Table) -> Iterable[str]:
    for place, entry in enumerate(row):
        tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
        column = f' data-column="{text(content.columns[place])}"' if place else ""
        detail = "".join(f'<span class="detail">{text(line)}</span>' for line in entry.detail)
        shown = f'<span class="{entry.tone}">{text(entry.text)}</span>' if entry.tone else ""
        yield (
            f"<{tag}{scope}{column}{_name_class(place, content)}>"
            f"{shown or text(entry.text)}{detail}</{tag}>"
        )


def _name_class(place: int, content: Table) -> str:
    return ' class="name"' if place < content.names else ""


def legend(styles: Mapping[str, Style], other: str = "") -> str:
    """Write a figure's legend: a switch per backbone, and one for a line named `other`."""
    switches = [
        _switch(label, label, f'<path d="{style.path}" fill="{style.colour}"/>')
        for label, style in styles.items()
    ]
    line = f'<path d="M0 8h16" stroke="{INK}" stroke-width="2.5"/>'
    if other:
        switches.append(_switch(other, other, line))
    return f'<div class="legend">{"".join(switches)}</div>'


def _switch(group: str, name: str, mark: str) -> str:
    return (
        f'<button type="button" data-group="{text(group)}" aria-pressed="true">'
        f'<svg viewBox="0 0 16 16" aria-hidden="true">{mark}</svg>{text(name)}</button>'
    )


def choices(label: str, values: Mapping[str, str]) -> str:
    """Write a selector: what is selected by each key, in words."""
    options = "".join(f'<option value="{text(k)}">{text(v)}</option>' for k, v in values.items())
    return f'<div class="controls"><label>{text(label)} <select>{options}</select></label></div>'


def folded(summary: str, content: str, is_open: bool = False) -> str:
    """Write content that can be folded away; closed at first unless `is_open`."""
    return f"<details{' open' * is_open}><summary>{text(summary)}</summary>{content}</details>"


def paragraphs(lines: Sequence[str]) -> str:
    """Write sentences as a list of notes."""
    return f'<ul class="notes">{"".join(f"<li>{text(line)}</li>" for line in lines)}</ul>'
