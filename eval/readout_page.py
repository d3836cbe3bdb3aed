"""The looking glass as one HTML file that opens offline: thoughts and words, read out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval import markup
from eval.page import head
from eval.readout import Look, Place, Word

_HERE = Path(__file__).parent
TITLE = "On the way to an answer"
_SHADE = "rgba(11, 92, 173, 0.20)"
_SAYS = (
    "Says: the likeliest words at a place, and their probabilities, if its hidden state is read "
    "out there by the head. A bar as long as its box is 1. Bold: the word that was written."
)
_CARRIES = (
    "Carries: the words whose embeddings are nearest to the vector that is read at a thought's "
    "place, by cosine. Soft thoughts and fillers are made of embeddings; fed-back hidden states "
    "are not, so that even the nearest word can be far."
)
_STEPS = (
    "Loops and passes: the same readout of the state after each of them. The last one may say "
    "something else than is said in the end, where a gate weighs the loops."
)
_UNTRAINED = (
    "Inside thoughts no word was ever asked for (unless objective.thoughts trained that), so "
    "unsure or odd words there are to be expected, and sensible ones may be chance."
)
_PROOF = (
    "Readouts are suggestive, not proof: they tell which words a state lies near, not what the "
    "model uses it for. Whether answers depend on thoughts is measured by eval.faithfulness=true."
)
_FEW = (
    "The questions are the first ones of their levels, picked by no one. A handful shows what can "
    "happen, not how often."
)


def render_looks(looks: Sequence[Look], lead: str, made: Mapping[str, str]) -> str:
    """Write the whole page.

    Args:
        looks: the questions, in the order to show them.
        lead: who was asked, in a sentence.
        made: how the page was made, by name.

    Returns:
        A complete HTML document that needs no other file.
    """
    right = sum(look.correct for look in looks)
    lead = f"{lead} {right} of {len(looks)} questions answered right."
    style = (_HERE / "thoughts.css").read_text(encoding="utf-8")
    facts = "".join(f"<dt>{markup.text(k)}</dt><dd>{markup.text(v)}</dd>" for k, v in made.items())
    body = [
        f'<h1>{TITLE}</h1><p class="lead">{markup.text(lead)}</p>',
        markup.paragraphs(_notes(looks)),
        *map(_question, looks),
        f"<h2>Provenance</h2><dl>{facts}</dl>",
    ]
    return (
        f'<!DOCTYPE html><html lang="en"><head>{head(TITLE, style)}</head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _notes(looks: Sequence[Look]) -> list[str]:
    """What is shown and what it is worth, a sentence or two each."""
    thinks = any(look.thoughts for look in looks)
    steps = any(_step_names(place) for look in looks for place in look.words)
    return [
        _SAYS,
        *([_CARRIES] if thinks else []),
        *([_STEPS] if steps else []),
        _PROOF,
        *([_UNTRAINED] if thinks else []),
        _FEW,
    ]


def _question(look: Look) -> str:
    problem, verdict = look.problem, "right" if look.correct else "wrong"
    kind = " (train-only: may be learned by heart)" if look.train_only else ""
    title = markup.text(f"{problem.task}, level {problem.level}{kind}")
    facts = {"Question": problem.question, "Right answer": problem.answer, "Written": look.text}
    said = "".join(f"<dt>{k}</dt><dd>{markup.text(v)}</dd>" for k, v in facts.items())
    return (
        f'<h2>{title}: <span class="{verdict}">{verdict}</span></h2><dl class="facts">{said}</dl>'
        + _thoughts(look.thoughts)
        + _words(look.words)
    )


def _thoughts(places: Sequence[Place]) -> str:
    """What each thought carries and says; the last one says the first word that is written."""
    rows = [
        [str(number), _list(place.nearest), *_steps(place), _list(place.says)]
        for number, place in enumerate(places, start=1)
    ]
    if not rows:
        return ""
    columns = ["Thought", "Carries (cosine)", *_step_names(places[0]), "Says"]
    return f"<h3>Thoughts</h3>{_table(columns, rows)}"


def _words(places: Sequence[Place]) -> str:
    """What was said before each written word."""
    rows = [
        [markup.text(place.written), *_steps(place), _list(place.says, place.written)]
        for place in places
    ]
    if not rows:
        return ""
    columns = ["Written", *_step_names(places[0]), "Said before it"]
    return f"<h3>Words</h3>{_table(columns, rows)}"


def _step_names(place: Place) -> list[str]:
    return [
        *(f"Pass {number}" for number, _ in enumerate(place.passes, start=1)),
        *(f"Loop {number}" for number, _ in enumerate(place.loops, start=1)),
        *([] if place.ran is None else ["Loops run"]),
    ]


def _steps(place: Place) -> list[str]:
    """The likeliest word after each pass and loop; all shown words are named when pointed at."""
    said = [_one(words, place.written) for words in (*place.passes, *place.loops)]
    return said if place.ran is None else [*said, str(place.ran)]


def _one(words: Sequence[Word], written: str) -> str:
    return _word(words[0], written, ", ".join(f"{w.text} {w.share:.0%}" for w in words))


def _list(words: Sequence[Word], written: str = "") -> str:
    return "".join(_word(word, written) for word in words)


def _word(word: Word, written: str, hint: str = "") -> str:
    filled = f"{100 * min(1.0, max(0.0, word.share)):.0f}%"
    bar = f"background:linear-gradient(to right,{_SHADE} {filled},transparent {filled})"
    same = " same" if word.text == written else ""
    title = f' title="{markup.text(hint)}"' if hint else ""
    return (
        f'<span class="word{same}" style="{bar}"{title}><span>{markup.text(word.text)}</span>'
        f'<span class="share">{word.share:.2f}</span></span>'
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table whose entries are markup already."""
    top = "".join(f'<th scope="col">{markup.text(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{entry}</td>" for entry in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="scroll readout"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
