"""The ledger's schema: every column with its unit and its meaning, as one typed list.

Columns may be added, never redefined.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column of the ledger.

    Attributes:
        name: the column's name in the Parquet file.
        kind: "text", "integer", "number" or "truth".
        unit: the unit of its values, empty where it has none.
        meaning: what a value says, in one sentence.
        nullable: whether a value may be absent, because it was not measured or does not apply.
        required: whether a ledger without the column is refused.
    """

    name: str
    kind: str
    unit: str
    meaning: str
    nullable: bool = False
    required: bool = True


COLUMNS: tuple[Column, ...] = (
    Column("run", "text", "", "name of the run folder that was evaluated"),
    Column("backbone", "text", "", "name of the backbone that answered"),
    Column("task", "text", "", "name of the task"),
    Column("level", "integer", "", "the task's difficulty level"),
    Column("split", "text", "", "split that the question comes from: train, validation or test"),
    Column(
        "index",
        "integer",
        "",
        "place of the question in its split; names the same question for every run",
    ),
    Column("budget_trace", "text", "", "trace mode asked for: none, short, full or verbose"),
    Column(
        "budget_forced_end",
        "integer",
        "tokens",
        "thought was ended by force after this many tokens; null: never",
        nullable=True,
    ),
    Column(
        "budget_loops",
        "integer",
        "loops",
        "loop count asked for; null: the backbone's own",
        nullable=True,
    ),
    Column(
        "budget_latent_steps_allowed",
        "integer",
        "steps",
        "latent steps allowed; null: the backbone's own",
        nullable=True,
    ),
    Column("budget_samples", "integer", "samples", "answers drawn, of which the majority counts"),
    Column("correct", "truth", "", "whether the task's verifier accepted the answer"),
    Column("chance", "number", "", "accuracy of the best guesser that knows the level only"),
    Column(
        "visible_tokens",
        "integer",
        "tokens",
        "tokens written: trace, answer and end, truncated ones included, summed over samples",
    ),
    Column(
        "latent_steps",
        "integer",
        "steps",
        "position-steps thought without a visible token, summed over samples",
    ),
    Column(
        "block_calls",
        "integer",
        "calls",
        "block passes times positions run, summed over samples that share one prompt",
    ),
    Column(
        "model_flops", "number", "FLOPs", "model FLOPs, summed over samples that share a prompt"
    ),
    Column(
        "serial_steps",
        "integer",
        "steps",
        "block passes that had to wait for one another; the prompt is one step, samples run "
        "side by side",
    ),
    Column(
        "state_bytes", "integer", "bytes", "bytes of state held at the end, of all samples at once"
    ),
    Column(
        "latency_b1_s",
        "number",
        "s",
        "seconds of an answer alone (batch 1), median over some of the cell; null: not measured",
        nullable=True,
    ),
    Column(
        "batch_s",
        "number",
        "s",
        "this answer's share of the seconds of its batch; null: not measured",
        nullable=True,
    ),
    Column("joules", "number", "J", "energy of the answer; null: no meter", nullable=True),
    Column("seed", "integer", "", "seed of the evaluation's draws"),
    Column("beyond", "truth", "", "whether the level is harder than every level trained on"),
    Column(
        "train_only",
        "truth",
        "",
        "whether the level is too small to be split, so that its questions may occur in training",
    ),
    Column(
        "template",
        "text",
        "",
        "what the question was made from; questions of one template are not independent",
        nullable=True,
        required=False,
    ),
    Column(
        "budget_stop",
        "text",
        "",
        "rule by which tokens stopped looping; null: the backbone's own",
        nullable=True,
        required=False,
    ),
    Column(
        "mean_loops",
        "number",
        "loops",
        "loops that a position ran, a mean over all positions; null: nothing is looped",
        nullable=True,
        required=False,
    ),
    Column(
        "answer_loops",
        "number",
        "loops",
        "the same over the positions that a written token was read out from",
        nullable=True,
        required=False,
    ),
    Column(
        "chunks",
        "integer",
        "chunks",
        "chunks that the depth ran, of samples that share one prompt; null: nothing is chunked",
        nullable=True,
        required=False,
    ),
    Column("prompt_tokens", "integer", "tokens", "tokens of the prompt", required=False),
    Column("question_text", "text", "", "the question", nullable=True, required=False),
    Column("answer_text", "text", "", "the right answer", nullable=True, required=False),
    Column("output_text", "text", "", "what the model wrote", nullable=True, required=False),
)

BUDGET_COLUMNS: tuple[str, ...] = tuple(c.name for c in COLUMNS if c.name.startswith("budget_"))
# Together these name a question, the same one for every run that answered it.
QUESTION_COLUMNS: tuple[str, ...] = ("task", "level", "split", "index")
