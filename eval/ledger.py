"""The ledger: one row per answered question, right or wrong, and everything that it cost."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from data.atomic import write_atomically
from eval.columns import BUDGET_COLUMNS, COLUMNS, QUESTION_COLUMNS, Column

LEDGER_FILE = "ledger.parquet"


class LedgerError(ValueError):
    """A ledger that cannot be trusted; the message is one line: where, what, what to do."""


_KEY = ("run", *QUESTION_COLUMNS, *BUDGET_COLUMNS, "seed")
_TYPES: dict[str, pl.DataType] = {
    "text": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "truth": pl.Boolean(),
}


class Ledger:
    """Collects rows and writes them as one Parquet file, complete or not at all."""

    def __init__(self, frame: pl.DataFrame | None = None) -> None:
        """Start empty, or go on from the rows of an earlier ledger."""
        self._rows: list[dict[str, object]] = [] if frame is None else frame.to_dicts()

    def __len__(self) -> int:
        """Return the number of rows so far."""
        return len(self._rows)

    def append(self, row: Mapping[str, object]) -> None:
        """Add one answered question: a value per required column, others as they come.

        Raises:
            LedgerError: a required column is missing; the message names it.
        """
        missing = [c.name for c in COLUMNS if c.required and c.name not in row]
        if missing:
            raise LedgerError(f"ledger row without {', '.join(missing)}: each row needs them all")
        self._rows.append(dict(row))

    def extend(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Add several rows."""
        for row in rows:
            self.append(row)

    def frame(self) -> pl.DataFrame:
        """Return the rows as a validated table, known columns first and in their order."""
        if not self._rows:
            raise LedgerError("the ledger has no rows: nothing was answered")
        try:
            table = pl.DataFrame(self._rows, infer_schema_length=None)
        except (pl.exceptions.PolarsError, TypeError) as error:
            raise LedgerError(
                f"ledger rows disagree in a column's type: {_one_line(error)}"
            ) from error
        return validate(table, "ledger")

    def write(self, path: Path) -> None:
        """Write the rows to `path` (see `write_ledger`)."""
        write_ledger(self.frame(), path)


def write_ledger(frame: pl.DataFrame, path: Path) -> None:
    """Validate a ledger and write it as Parquet at `path`, beside first and then renamed.

    Raises:
        LedgerError: the table is not a ledger.
        data.atomic.WriteError: the disk is full or refuses; nothing half-written is left.
    """
    buffer = io.BytesIO()
    validate(frame, str(path)).write_parquet(buffer)
    write_atomically(path, buffer.getbuffer())


def read_ledger(path: Path) -> pl.DataFrame:
    """Read and validate the ledger at `path`.

    Raises:
        LedgerError: no such file, not Parquet, or not a ledger; one line that says which.
    """
    if not path.is_file():
        raise LedgerError(f"{path}: no such ledger; make it with: python -m eval run={path.parent}")
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _refusal(str(path), f"not readable as Parquet ({_one_line(error)})") from error
    return validate(frame, str(path))


def validate(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Check a table against the schema; return it with the columns ordered and typed.

    Args:
        frame: the table.
        source: what the messages call it, usually its path.

    Raises:
        LedgerError: a column is missing, of another type, null, NaN or negative where it must
            not be, there are no rows, or an answer is counted twice.
    """
    missing = [c.name for c in COLUMNS if c.required and c.name not in frame.columns]
    if missing:
        raise _refusal(source, f"no column {', '.join(missing)}")
    if frame.is_empty():
        raise _refusal(source, "no rows")
    frame = frame.with_columns(  # older ledgers have fewer kinds of budget
        pl.lit(None).alias(name) for name in BUDGET_COLUMNS if name not in frame.columns
    )
    known = [c for c in COLUMNS if c.name in frame.columns]
    for column in known:
        frame = _typed(frame, column, source)
        _check_values(frame[column.name], column, source)
    _check_once(frame, source)
    names = [c.name for c in known]
    return frame.select(*names, *(name for name in frame.columns if name not in names))


def _typed(frame: pl.DataFrame, column: Column, source: str) -> pl.DataFrame:
    found, wanted = frame.schema[column.name], _TYPES[column.kind]
    fits = found == wanted or (found == pl.Null and column.nullable)
    if column.kind in ("integer", "number"):
        fits = fits or found.is_integer()
    if found.is_float():
        # Counts that come out of arithmetic are often whole numbers in a float.
        whole = (frame[column.name].drop_nulls() % 1 == 0).all()
        fits = fits or column.kind == "number" or (column.kind == "integer" and whole)
    if not fits:
        raise _refusal(source, f"column {column.name} holds {found}, must hold {wanted}")
    return frame.with_columns(pl.col(column.name).cast(wanted))


def _check_values(values: pl.Series, column: Column, source: str) -> None:
    if values.null_count() and not column.nullable:
        lacking = f"{values.null_count()} of {len(values)} values"
        raise _refusal(source, f"column {column.name} lacks {lacking}")
    if column.kind == "number" and not values.drop_nulls().is_finite().all():
        raise _refusal(source, f"column {column.name} holds NaN or infinity")
    smallest = values.min() if column.unit else None
    if isinstance(smallest, (int, float)) and smallest < 0:
        raise _refusal(source, f"column {column.name} holds {smallest} {column.unit}, below zero")
    if column.name == "chance" and not values.is_between(0, 1, closed="left").all():
        raise _refusal(source, "column chance holds a value outside [0, 1)")


def _check_once(frame: pl.DataFrame, source: str) -> None:
    twice = frame.height - frame.select(_KEY).n_unique()
    if twice:
        raise _refusal(source, f"{twice} answers are counted twice (equal {', '.join(_KEY)})")


def _refusal(source: str, what: str) -> LedgerError:
    path = Path(source)
    folder = path.parent if path.suffix == ".parquet" else "FOLDER"
    return LedgerError(f"{source}: {what}; evaluate again: python -m eval run={folder}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
