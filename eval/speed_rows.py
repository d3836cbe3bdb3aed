"""What was measured of mixers: a row for each layer, kind of call and length."""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

KINDS = {"forward": "forward", "training": "forward + backward", "decoding": "decoding"}
"""Kinds of calls, and what tables call them."""


@dataclass
class Row:
    """One layer at one length.

    Attributes:
        mixer: our mixer, also in the row of its peer.
        who: "ours" or "peer".
        layer: what tables call it.
        kind: of `KINDS`.
        length: tokens of the sequence; for decoding, those before the decoded ones.
        tokens: tokens that one call handles, all sequences together.
        seconds: of each call.
        peak_bytes: most memory held during a call, over weights and inputs; None if not measured.
        note: why there is no time: skipped or failed.
    """

    mixer: str
    who: str
    layer: str
    kind: str
    length: int
    tokens: int
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """Median seconds of a call."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def microseconds(self) -> float | None:
        """Median microseconds for a token."""
        return None if self.median is None else 1e6 * self.median / self.tokens


@dataclass(frozen=True)
class Rows:
    """All rows of a run, looked up by what they are of."""

    rows: Sequence[Row]

    def get(self, mixer: str, who: str, kind: str, length: int) -> Row | None:
        """Return one row, or None where nothing was tried."""
        wanted = (mixer, who, kind, length)
        found = (r for r in self.rows if (r.mixer, r.who, r.kind, r.length) == wanted)
        return next(found, None)

    def lines(self) -> list[tuple[str, str, str]]:
        """Return (mixer, who, layer) in the order of measuring."""
        return list(dict.fromkeys((r.mixer, r.who, r.layer) for r in self.rows))

    @property
    def lengths(self) -> list[int]:
        """The lengths, rising."""
        return sorted({row.length for row in self.rows})


def as_csv(rows: Iterable[Row]) -> str:
    """Write rows as CSV, with their medians."""
    text = io.StringIO()
    names = ["mixer", "who", "layer", "kind", "length", "tokens", "median_seconds"]
    names += ["microseconds_per_token", "peak_bytes", "note"]
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        medians = {"median_seconds": row.median, "microseconds_per_token": row.microseconds}
        writer.writerow(asdict(row) | medians)
    return text.getvalue()
