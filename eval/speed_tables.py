"""The tables of `suite=mixers`."""

from collections.abc import Callable, Sequence

from eval.speed_rows import KINDS, Row, Rows
from eval.speed_timing import PRECISIONS
from eval.table import Entry, Table

_MEMORY = {"forward": "forward", "training": "forward + backward"}


def mixer_tables(rows: Rows, precision: str) -> list[Table]:
    """Lay the figures out: a table for each kind of call and for memory, a column per length."""
    half = PRECISIONS[precision]
    tables = [
        _table(rows, kind, f"{title}: microseconds for a token, {half}", _time, 1)
        for kind, title in KINDS.items()
        if kind != "decoding"
    ]
    tables.append(
        _table(
            rows, "decoding", "decoding after so many tokens: microseconds for a token", _time, 1
        )
    )
    tables += [
        _table(rows, kind, f"peak memory of {title}, over weights and inputs: MB", _memory, -1)
        for kind, title in _MEMORY.items()
    ]
    return tables


def _time(row: Row) -> float | None:
    return row.microseconds


def _memory(row: Row) -> float | None:
    return None if row.peak_bytes is None else row.peak_bytes / 1e6


def _table(
    rows: Rows, kind: str, title: str, figure: Callable[[Row], float | None], power: int
) -> Table:
    """`power` is 1 where peer over ours is said, as of time, and -1 for ours over peer."""
    lengths = rows.lengths
    lines: list[list[Entry]] = []
    for mixer, who, layer in rows.lines():
        found = [rows.get(mixer, who, kind, length) for length in lengths]
        if all(row is None or row.note == "has none" for row in found):
            continue
        label = layer if who == "ours" else f"  {layer}"
        lines.append([Entry(label), *(_entry(row, figure) for row in found)])
        if who == "peer":
            pairs = [
                (rows.get(mixer, "ours", kind, n), r) for n, r in zip(lengths, found, strict=True)
            ]
            lines.append(_ratios(pairs, figure, power))
    notes = _notes(rows, kind)
    return Table(title, ["layer", *(str(n) for n in lengths)], lines, " ".join(notes), names=1)


def _entry(row: Row | None, figure: Callable[[Row], float | None]) -> Entry:
    value = None if row is None else figure(row)
    if value is not None:
        return Entry(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    note = "" if row is None else row.note
    return Entry(note.split(":")[0], "faint")


def _ratios(
    pairs: Sequence[tuple[Row | None, Row | None]],
    figure: Callable[[Row], float | None],
    power: int,
) -> list[Entry]:
    label = "  times faster" if power == 1 else "  ours over peer"
    entries = [Entry(label, "strong")]
    for ours, peer in pairs:
        mine = None if ours is None else figure(ours)
        theirs = None if peer is None else figure(peer)
        text = f"x{(theirs / mine) ** power:.2f}" if mine and theirs else ""
        entries.append(Entry(text, "strong"))
    return entries


def _notes(rows: Rows, kind: str) -> list[str]:
    """Say what was skipped or failed, once for a layer."""
    notes: dict[str, str] = {}
    for row in rows.rows:
        if row.kind == kind and row.note not in ("", "has none"):
            notes.setdefault(row.layer, f"{row.layer} at {row.length}: {row.note}.")
    return list(notes.values())
