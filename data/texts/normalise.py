"""From a file's columns to a record: fields by name, a recipe's extraction, limits of length."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .boxed import FieldError
from .config import TextConfig
from .readers import Raw
from .recipes import FIELDS
from .records import Bad, Record, excerpt_of

_LEVEL = re.compile(r"\d+")


def records_of(raw: Raw, config: TextConfig) -> Iterator[Record | Bad]:
    """The record of a raw one; several where a long plain text is cut; or what is wrong with it."""
    try:
        values = _named(raw.values, config)
        recipe = config.known()
        if recipe is not None and recipe.extract is not None:
            values = {**values, **recipe.extract(values)}
        record = _record(values, config, raw.place)
    except FieldError as error:
        yield Bad(str(error), raw.place, excerpt_of(dict(raw.values)))
        return
    if recipe is not None and recipe.check and not recipe.check(record.answer or ""):
        yield Bad("its own verifier rejects the answer", raw.place, excerpt_of(record.answer))
        return
    yield from _fitted(record, config)


def _named(values: Mapping[str, Any], config: TextConfig) -> dict[str, Any]:
    """The values by what they are: the config's columns, the recipe's, or those of that name."""
    recipe = config.known()
    columns = {**(recipe.fields if recipe else {}), **config.fields}
    named = {}
    for name in FIELDS:
        column = columns.get(name)
        if column is not None:
            named[name] = _at(values, column)
        elif recipe is None and name in values:
            named[name] = values[name]
    return named


def _at(values: Mapping[str, Any], column: str) -> Any:
    """A column's value; points lead into objects."""
    if column in values:
        return values[column]
    found: Any = values
    for part in column.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise FieldError(f"no field {column!r}")
        found = found[part]
    return found


def _record(values: Mapping[str, Any], config: TextConfig, place: str) -> Record:
    recipe = config.known()
    licence = config.licence or (recipe.licence if recipe else "unknown")
    source = config.origin or (recipe.source if recipe else "unknown")
    shared = {
        "level": _level(values.get("level")),
        "licence": _string(values, "licence") if values.get("licence") else licence,
        "source": _string(values, "source") if values.get("source") else source,
        "place": place,
    }
    if "text" in values:
        return Record(text=_string(values, "text"), **shared)
    if not {"question", "answer"} <= values.keys():
        raise FieldError("no field 'text', nor 'question' and 'answer'")
    question, answer = _string(values, "question"), _string(values, "answer")
    return Record(question=question, answer=answer, steps=_steps(values.get("trace")), **shared)


def _string(values: Mapping[str, Any], name: str) -> str:
    value = values[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise FieldError(f"field {name!r} is no text but {type(value).__name__}")
    if not value.strip():
        raise FieldError(f"field {name!r} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FieldError(f"field {name!r} holds half a character (a lone surrogate)") from None
    return value.strip() if name != "text" else value


def _steps(trace: Any) -> tuple[str, ...]:
    """A trace's lines: it is text, a list of texts, or missing."""
    if trace is None:
        return ()
    if isinstance(trace, str):
        trace = trace.splitlines()
    if not isinstance(trace, list | tuple) or not all(isinstance(step, str) for step in trace):
        raise FieldError("field 'trace' is neither text nor a list of texts")
    return tuple(step.strip() for step in trace if step.strip())


def _level(level: Any) -> int:
    """A number, or the first in a text such as `Level 5`; 0 where there is none."""
    if isinstance(level, bool) or level is None:
        return 0
    found = _LEVEL.search(str(level))
    return min(int(found[0]), 2**31) if found else 0


def _fitted(record: Record, config: TextConfig) -> Iterator[Record | Bad]:
    limit, size = config.max_bytes, record.num_bytes
    if limit is None or size <= limit:
        yield record
    elif config.too_long == "cut" and record.text is not None:
        for part in _cut(record.text, limit):
            yield Record(**{**record.__dict__, "text": part})
    else:
        about = f"{size:,} bytes: longer than max_bytes={limit:,}"
        begins = excerpt_of(record.text or record.question)
        yield Bad("too long", record.place, f"{about}; {begins}")


def _cut(text: str, limit: int) -> Iterator[str]:
    """Parts of at most so many bytes, cut after white space where there is any."""
    content = text.encode()
    while len(content) > limit:
        end = limit
        while end and content[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        space = max(content.rfind(b" ", 0, end), content.rfind(b"\n", 0, end))
        end = space + 1 if space > limit // 2 else end or limit
        yield content[:end].decode(errors="ignore")
        content = content[end:]
    if content.strip():
        yield content.decode(errors="ignore")
