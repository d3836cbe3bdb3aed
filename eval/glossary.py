"""What the report's words mean, for a reader who has nothing but the page."""

from eval.columns import COLUMNS
from eval.currencies import CURRENCIES

_MEANINGS = {column.name: column.meaning for column in COLUMNS} | {
    "total_steps": "tokens written and latent steps thought, together"
}

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Budget",
        "What a backbone may spend on a question: the trace that its prompt asks for (direct is "
        "none), a forced end of the thought (cut at N tokens), loops over its blocks, samples.",
    ),
    (
        "Held-out level",
        "A difficulty that was trained on and is large enough to be split: its questions here "
        "never occurred in training. Frontiers, efficiencies and prices pool these levels only.",
    ),
    (
        "Accuracy",
        "Right answers divided by questions. In brackets its 95% Wilson interval: luck of the "
        "questions only, not of the training run.",
    ),
    (
        "Frontier",
        "The best accuracy at or below each cost, over all points. A point is dominated if another "
        "costs no more and is at least as accurate, and better in one of the two.",
    ),
    (
        "η",
        "Efficiency: per task, accuracy corrected for chance divided by mean cost, then the mean "
        "over tasks. Without a value where the cost is zero or was not measured. It has no floor: "
        "a poor but very cheap answer can score high, so read it beside the accuracy.",
    ),
    *((c.title, f"{_MEANINGS[c.column].capitalize()}.") for c in CURRENCIES),
)
