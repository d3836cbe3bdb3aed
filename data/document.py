"""One problem as a document: its text, tokens, targets, roles and loss weights.

The layout is the same for every task, so that one model learns all trace modes:

    <task> Ln <mode> question ... [ <think> steps ... </think> ] answer ... <eos>

(without `Ln` where the question comes from a text). Everything up to the question, and `<think>`
where there is a trace, is the prompt (role QUESTION). Plain text is `<eos> text <eos>` (role TEXT):
after the first `<eos>` each of its tokens is predicted, so that its bits per byte are those of the
whole text.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from .roles import Role
from .split import split_of, splittable
from .step_borders import step_borders
from .task_list import find_task
from .tasks.task import Problem
from .tokenizer import Tokenizer
from .vocabulary import END_THINK, EOS, MODES, SPECIALS, THINK, task_token


@dataclass
class LossWeights:
    """The weight of a target token by its role; `question=1` is the loss on all tokens.

    `label` weighs the answers so far that a dense document has after each symbol but the last;
    `text` weighs the tokens of plain text.
    """

    question: float = 0.0
    trace: float = 1.0
    answer: float = 1.0
    label: float = 1.0
    text: float = 1.0

    def by_role(self) -> np.ndarray:
        """[roles] float32: the weight at the index of each role; padding and thoughts have none."""
        weights = np.zeros(len(Role), dtype=np.float32)
        weights[Role.QUESTION], weights[Role.TRACE] = self.question, self.trace
        weights[Role.ANSWER], weights[Role.TEXT] = self.answer, self.text
        return weights


@dataclass(frozen=True)
class EncodedDocument:
    """Arrays of equal length T: `targets[t]` is to be predicted at t with weight `loss[t]`.

    `tokens` and `targets` are int32, `roles` (of the tokens) uint8, `loss` float32. The last target
    is padding with no weight. `begins` (bool) is true where a written step begins, and where what
    ends the trace does.
    """

    tokens: np.ndarray
    targets: np.ndarray
    roles: np.ndarray
    loss: np.ndarray
    begins: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def prompt_text(problem: Problem, trace: str) -> str:
    """The document through the question, and `<think>` where a trace follows."""
    return "".join(each.text for each in fragments(problem, trace) if each.role is Role.QUESTION)


def document_text(problem: Problem, trace: str) -> str:
    """The whole document."""
    return "".join(fragment.text for fragment in fragments(problem, trace))


@dataclass(frozen=True)
class Fragment:
    """A run of text of one role; `quoted` text may hold what looks like a special token."""

    text: str
    role: Role
    quoted: bool = False


def fragments(problem: Problem, trace: str) -> list[Fragment]:
    """The document, cut where roles change and where quoted text begins or ends."""
    # The level of a text says how long its solution is, which a prompt mustn't tell.
    level = "" if problem.is_text else f"L{problem.level} "
    header = f"{task_token(problem.task)} {level}{mode_token(trace)} "
    result = [
        Fragment(header, Role.QUESTION),
        Fragment(problem.question, Role.QUESTION, quoted=True),
    ]
    if trace != "none":
        steps = " ".join(written_steps(problem, trace))
        result += [
            Fragment(f" {THINK}", Role.QUESTION),
            Fragment(f" {steps} ", Role.TRACE, quoted=True),
            Fragment(END_THINK, Role.TRACE),
        ]
    answer = Fragment(f" {problem.answer} ", Role.ANSWER, quoted=True)
    return [*result, answer, Fragment(EOS, Role.ANSWER)]


def written_steps(problem: Problem, trace: str) -> tuple[str, ...]:
    """The steps that a trace mode writes; a problem of a text has them all, or none."""
    return problem.steps if problem.is_text else find_task(problem.task).trace(problem, trace)


def mode_token(trace: str) -> str:
    """The token that announces a trace mode; ValueError names the modes."""
    if trace not in MODES:
        raise ValueError(f"trace={trace} is not a trace mode: use one of {', '.join(MODES)}")
    return MODES[trace]


def encode_document(
    problem: Problem, trace: str, tokenizer: Tokenizer, weights: LossWeights, dense: bool = False
) -> EncodedDocument:
    """The document's arrays; `dense` asks for the answer so far after each question symbol.

    Dense documents exist without a trace, for tasks with labels and tokenizers with one token a
    symbol; ValueError otherwise.
    """
    tokens, roles = encode_pieces(problem, trace, tokenizer)
    targets = np.append(tokens[1:], np.int32(tokenizer.pad_id))
    loss = np.append(weights.by_role()[roles[1:]], np.float32(0))
    if dense:
        first, labels = dense_targets(problem, trace, tokenizer)
        place = slice(first, first + len(labels))
        targets[place] = labels
        loss[place] = np.where(held_out_prefixes(problem), 0, np.float32(weights.label))
        loss[place.stop - 1] = weights.answer
    texts, ids = _trace_pieces(problem, trace, tokenizer)
    begins = step_borders(tokens, roles, texts, ids, tokenizer)
    return EncodedDocument(tokens, targets, roles, loss, begins)


def _trace_pieces(
    problem: Problem, trace: str, tokenizer: Tokenizer
) -> tuple[list[str], list[list[int]]]:
    """The steps of a trace and what ends it, as texts and each encoded alone."""
    if trace == "none":
        return [], []
    pieces = [
        [Fragment(f" {step}", Role.TRACE, quoted=True)] for step in written_steps(problem, trace)
    ]
    pieces.append([Fragment(" ", Role.TRACE, quoted=True), Fragment(END_THINK, Role.TRACE)])
    texts = ["".join(fragment.text for fragment in piece) for piece in pieces]
    return texts, [encode_group(piece, tokenizer) for piece in pieces]


def encode_pieces(
    problem: Problem, trace: str, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and roles; what has one role is encoded alone, as the evaluator encodes a prompt."""
    tokens: list[int] = []
    roles: list[int] = []
    for role, group in groupby(fragments(problem, trace), key=lambda fragment: fragment.role):
        ids = encode_group(list(group), tokenizer)
        tokens += ids
        roles += [int(role)] * len(ids)
    return np.array(tokens, dtype=np.int32), np.array(roles, dtype=np.uint8)


def encode_group(group: list[Fragment], tokenizer: Tokenizer) -> list[int]:
    """The ids of fragments of one role.

    They are encoded as one text. Only where quoted text holds a special token's name, which must
    not become the token itself, is each fragment encoded alone.
    """
    if not any(each.quoted and holds_special(each.text) for each in group):
        return tokenizer.encode("".join(each.text for each in group))
    ids: list[int] = []
    for each in group:
        if each.quoted:
            ids += tokenizer.encode_plain(each.text).tolist()
        else:
            ids += tokenizer.encode(each.text)
    return ids


def holds_special(text: str) -> bool:
    """Whether the name of a special token stands in a text."""
    return "<" in text and any(special in text for special in SPECIALS)


def encode_text(text: str, tokenizer: Tokenizer, weights: LossWeights) -> EncodedDocument:
    """The arrays of plain text; names of special tokens inside it stay text."""
    edge = np.array([tokenizer.eos_id], dtype=np.int32)
    tokens = np.concatenate([edge, tokenizer.encode_plain(text), edge], dtype=np.int32)
    targets = np.append(tokens[1:], np.int32(tokenizer.pad_id))
    loss = np.full(len(tokens), weights.text, dtype=np.float32)
    loss[-1] = 0
    roles, begins = np.full(len(tokens), Role.TEXT, np.uint8), np.zeros(len(tokens), dtype=bool)
    return EncodedDocument(tokens, targets, roles, loss, begins)


def dense_targets(problem: Problem, trace: str, tokenizer: Tokenizer) -> tuple[int, np.ndarray]:
    """Where the question starts in the tokens, and the labels of its symbols."""
    if problem.labels is None:
        raise ValueError(f"dense=true needs a task with labels, which {problem.task} has not")
    if trace != "none":
        raise ValueError(
            f"dense=true needs trace=none, not trace={trace}: labels replace the trace"
        )
    labels = [tokenizer.encode(label) for label in problem.labels]
    header = tokenizer.encode(prompt_text(problem, trace).removesuffix(problem.question))
    symbols = [tokenizer.encode(symbol) for symbol in problem.symbols]
    one_each = len(tokenizer.encode(problem.question)) == len(symbols)  # no token for the spaces
    if not one_each or any(len(ids) != 1 for ids in (*labels, *symbols)):
        raise ValueError("dense=true needs one token a symbol: use tokenizer.kind=symbolic")
    return len(header), np.array(labels, dtype=np.int32)[:, 0]


def held_out_prefixes(problem: Problem) -> np.ndarray:
    """[symbols] bool: where the question so far is itself a held-out problem of its length.

    A label there would teach its answer. The whole question is judged by its own split, not here:
    a validation document keeps its last label.
    """
    last = len(problem.symbols) - 1
    return np.array([i < last and is_held_out(problem, i) for i in range(last + 1)])


def is_held_out(problem: Problem, index: int) -> bool:
    """Whether the question through symbol `index` belongs to validation or test."""
    level = index + 1
    if not splittable(problem.task, level):
        return False
    return split_of(problem.task, problem.prefix(index)) != "train"
