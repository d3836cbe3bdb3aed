"""Batched generation with states: finished rows leave, waiting questions enter.

Each question is a prompt and `budget.samples` continuations of it. The prompt is read once and its
state forked over the samples. Which rows happen to run side by side changes nothing: rows don't see
each other, and each draws from its own stream, keyed by (seed, question, sample).

Legend: B rows, T time, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.roles import Role
from data.tokenizer import Tokenizer
from eval.budget import Budget
from models.backbone import Backbone, Output
from models.depth.stop import Stop
from models.latent.latent import Alter

PADDING = -1
IDLE = -1
# Rows are replaced, or dropped, when this share of the batch is idle: each time costs a copy.
IDLE_SHARE = 4
NOTE = np.dtype([("exits", np.int64), ("chunks", np.int64)])
"""What is noted of a position: loops that it ran, and levels at which it began a chunk."""


AlterOf = Callable[[Sequence[int]], Alter]
"""What is done to the thoughts of some requests, one a row, given by their places in the list."""


@dataclass(frozen=True)
class Request:
    """One question to continue.

    Attributes:
        prompt: its tokens.
        index: the question's place in its split; keys its draws.
        max_trace: trace tokens after which an unfinished thought is given up (unused where the
            budget forces its end).
        max_answer: answer tokens after which an unfinished answer is given up.
    """

    prompt: Sequence[int]
    index: int
    max_trace: int
    max_answer: int


@dataclass(frozen=True)
class Generation:
    """One continuation.

    Attributes:
        prompt_tokens: length of the prompt.
        tokens: everything written after it, by the model or by force, the ends included; it ends
            with the end of text unless a limit was reached before.
        exits: loops that each position ran, the prompt's first; None where all ran all.
        thoughts: positions between the prompt and the first token, which write nothing.
        chunks: levels at which each position began a chunk, the prompt's first; None where nothing
            is chunked.
    """

    prompt_tokens: int
    tokens: list[int]
    exits: list[int] | None = None
    thoughts: int = 0
    chunks: list[int] | None = None

    @property
    def decode_steps(self) -> int:
        """Positions run after prompt and thoughts: the first token comes from the last of those,
        and the last one is never read.
        """
        return len(self.tokens) - 1

    @property
    def final_context(self) -> int:
        """Positions that the state holds at the end."""
        return self.prompt_tokens + self.thoughts + self.decode_steps


@torch.inference_mode()
def generate(
    backbone: Backbone,
    requests: Sequence[Request],
    budget: Budget,
    tokenizer: Tokenizer,
    batch_size: int = 256,
    seed: int = 0,
    on_finished: Callable[[int], None] | None = None,
    alter: AlterOf | None = None,
) -> list[list[Generation]]:
    """Continue each request `budget.samples` times.

    Args:
        backbone: in evaluation mode, on the device to use.
        requests: the questions.
        budget: how to continue all of them.
        tokenizer: knows the ends.
        batch_size: rows that run side by side (at least one question's samples).
        seed: of the draws, where the temperature is above zero.
        on_finished: told how many continuations have finished since the last time.
        alter: looks at thoughts, or changes them, before they are read.

    Returns:
        A list of samples for each request, in order.
    """
    pool = _Pool(backbone, requests, budget, tokenizer, batch_size, seed, alter)
    while pool.refill():
        finished = pool.write()
        if on_finished is not None and finished:
            on_finished(finished)
    return pool.results()


class _Pool:
    """The rows that run side by side: their state, their next logits, and what each has written."""

    def __init__(
        self,
        backbone: Backbone,
        requests: Sequence[Request],
        budget: Budget,
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int,
        alter: AlterOf | None = None,
    ) -> None:
        self.backbone, self.requests, self.budget = backbone, requests, budget
        self.tokenizer, self.seed, self.alter = tokenizer, seed, alter
        self.stop = None if budget.stop is None else Stop.parse(budget.stop)
        self.varies: list[str] = []
        weight = next(backbone.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.questions_at_once = max(1, batch_size // budget.samples)
        self.waiting = deque(range(len(requests)))
        self.max_new = max((self._max_new(request) for request in requests), default=0)
        longest = max((len(request.prompt) for request in requests), default=0)
        latent = backbone.config.latent
        self.thoughts = latent.slots(budget.latent_steps) if budget.thinks else 0
        self.capacity = longest + self.thoughts + self.max_new
        self.rows = np.zeros(0, dtype=self._row_type())
        self.state: Any = None
        self.logits_BV = torch.empty(0)
        self.finished: dict[tuple[int, int], Generation] = {}

    def results(self) -> list[list[Generation]]:
        """Everything written, by request and sample."""
        return [
            [self.finished[request, sample] for sample in range(self.budget.samples)]
            for request in range(len(self.requests))
        ]

    def refill(self) -> bool:
        """Let waiting questions into idle rows, or drop idle rows; False when all is done."""
        idle = int((self.rows["request"] == IDLE).sum())
        active = len(self.rows) - idle
        room = self.questions_at_once - -(-active // self.budget.samples)
        enough = -(-self.questions_at_once // IDLE_SHARE)
        if self.waiting and room >= min(enough, len(self.waiting)):
            self._admit([self.waiting.popleft() for _ in range(min(room, len(self.waiting)))])
        elif not self.waiting and IDLE_SHARE * idle >= len(self.rows):
            self._keep(np.flatnonzero(self.rows["request"] != IDLE))
        return bool((self.rows["request"] != IDLE).any())

    def write(self) -> int:
        """Write one token in each active row and read it; return how many rows finished."""
        tokens_B = self._choose()
        done = self._record(tokens_B)
        for row in done:
            self._retire(row)
        if (self.rows["request"] != IDLE).any():
            self._read(tokens_B)
        return len(done)

    # Entering and leaving

    def _admit(self, admitted: list[int]) -> None:
        """Read the prompts in one left-padded batch, fork them over the samples, place the rows."""
        samples = self.budget.samples
        state, logits_BV, notes = self._prefill(admitted)
        if samples > 1:
            forked = torch.arange(len(admitted), device=self.device).repeat_interleave(samples)
            state, logits_BV = state.take(forked), logits_BV[forked]
        rows = self._new_rows(admitted)
        for row, own in zip(rows, np.repeat(np.arange(len(admitted)), samples), strict=True):
            row["notes"][: len(notes[own])] = notes[own]
        idle = np.flatnonzero(self.rows["request"] == IDLE)
        if len(idle) == len(self.rows):
            self.rows, self.state, self.logits_BV = rows, state, logits_BV
            return
        places = idle[: len(rows)]
        at = torch.as_tensor(places, device=self.device)
        self.rows[places] = rows
        self.state.put(at, state)
        self.logits_BV[at] = logits_BV

    def _prefill(self, admitted: list[int]) -> tuple[Any, Tensor, list[np.ndarray]]:
        """Read prompts, and think; return state, next logits, and what is noted of positions."""
        prompts = [self.requests[request].prompt for request in admitted]
        longest = max(map(len, prompts))
        shape = (len(prompts), longest + self.thoughts)
        tokens = np.full(shape, thought_token(self.tokenizer) if self.thoughts else 0)
        segments, roles = np.full(shape, PADDING), np.full(shape, Role.QUESTION)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) : longest] = prompt
            segments[row, longest - len(prompt) :] = 0
        roles[:, longest:] = Role.THOUGHT
        state = self._empty_state(len(prompts))
        tokens_BT, segments_BT, roles_BT = (
            torch.as_tensor(x, device=self.device) for x in (tokens, segments, roles)
        )
        given = (tokens_BT, segments_BT, state, self.budget.loops)
        out = self.backbone(*given, **self._thinking(roles_BT, admitted))
        notes_BT = self._notes(out, tokens.shape)
        notes = [
            row[longest - len(prompt) :] for row, prompt in zip(notes_BT, prompts, strict=True)
        ]
        return out.state, out.readout(out.hidden_BTD[:, -1:])[:, 0], notes

    def _thinking(self, roles_BT: Tensor, admitted: list[int]) -> dict[str, Any]:
        """What a pass is told beside the tokens: what each is, and what alters thoughts."""
        if not self.thoughts:
            return {"roles_BT": roles_BT}
        return {"roles_BT": roles_BT, "alter": self.alter and self.alter(admitted)}

    def _notes(self, out: Output, shape: tuple[int, ...]) -> np.ndarray:
        """What each position ran, as far as positions differ in it; zero elsewhere."""
        ran = {"exits": out.trajectory.exits_BT, "chunks": out.trajectory.chunks_BT}
        self.varies = [name for name, found_BT in ran.items() if found_BT is not None]
        notes = np.zeros(shape, NOTE)
        for name, found_BT in ran.items():
            if found_BT is not None:
                notes[name] = found_BT.cpu().numpy()
        return notes

    def _empty_state(self, batch: int) -> Any:
        return self.backbone.init_state(
            batch, self.capacity, self.device, self.dtype, self.budget.loops, self.stop
        )

    def _keep(self, places: np.ndarray) -> None:
        at = torch.as_tensor(places, device=self.device)
        self.rows = self.rows[places]
        if len(places):
            self.state, self.logits_BV = self.state.take(at), self.logits_BV[at]

    def _retire(self, row: int) -> None:
        """Keep what the row wrote; its place is idle."""
        entry = self.rows[row]
        request = int(entry["request"])
        tokens = entry["tokens"][: entry["written"]].tolist()
        prompt = len(self.requests[request].prompt)
        ran = prompt + self.thoughts + len(tokens) - 1
        noted = {name: entry["notes"][:ran][name].tolist() for name in self.varies}
        made = Generation(prompt, tokens, thoughts=self.thoughts, **noted)
        self.finished[request, int(entry["sample"])] = made
        entry["request"] = IDLE

    # One step

    def _choose(self) -> np.ndarray:
        """The next token of each row: the model's, or the end of thought where it is forced."""
        tokens_B = self._pick()
        if self.budget.forced_end is not None:
            spent = self.rows["traced"] >= self.budget.forced_end
            tokens_B[self.rows["thinking"] & spent] = self.tokenizer.end_think_id
        return tokens_B

    def _pick(self) -> np.ndarray:
        if self.budget.temperature == 0:
            return self.logits_BV.argmax(dim=-1).cpu().numpy()
        draws = self.rows["draws"][np.arange(len(self.rows)), self.rows["written"] % self.max_new]
        return draw(self.logits_BV, draws, self.budget.temperature)

    def _record(self, tokens_B: np.ndarray) -> np.ndarray:
        """Note the tokens in the active rows; return the rows that are done."""
        active = np.flatnonzero(self.rows["request"] != IDLE)
        rows, tokens = self.rows[active], tokens_B[active]
        rows["tokens"][np.arange(len(rows)), rows["written"]] = tokens
        rows["written"] += 1
        closing = rows["thinking"] & (tokens == self.tokenizer.end_think_id)
        rows["answered"] += ~rows["thinking"]
        rows["traced"] += rows["thinking"] & ~closing
        rows["thinking"] &= ~closing
        over = (rows["traced"] > rows["max_trace"]) | (rows["answered"] > rows["max_answer"])
        self.rows[active] = rows
        return active[(tokens == self.tokenizer.eos_id) | over]

    def _read(self, tokens_B: np.ndarray) -> None:
        """Run one position in every row; idle rows start over, so that they never outgrow it."""
        fresh = np.flatnonzero((self.rows["request"] == IDLE) & (self.rows["written"] > 0))
        if len(fresh):
            self.state.put(
                torch.as_tensor(fresh, device=self.device), self._empty_state(len(fresh))
            )
            self.rows["written"][fresh] = 0
        tokens_B1 = torch.as_tensor(tokens_B, device=self.device)[:, None]
        out = self.backbone(tokens_B1, None, self.state, self.budget.loops)
        self.state, self.logits_BV = out.state, out.readout(out.hidden_BTD)[:, 0]
        if self.varies:
            places = (np.arange(len(self.rows)), self.rows["read"] + self.rows["written"] - 1)
            self.rows["notes"][places] = self._notes(out, (len(self.rows), 1))[:, 0]

    # Rows

    def _max_new(self, request: Request) -> int:
        """The most tokens that a continuation can have, the two ends included."""
        return self._max_trace(request) + self.budget.thinks + request.max_answer + 1

    def _max_trace(self, request: Request) -> int:
        if not self.budget.thinks:
            return 0
        forced = self.budget.forced_end
        return request.max_trace if forced is None else forced

    def _row_type(self) -> np.dtype:
        counters = (
            *("request", "sample", "read", "written", "traced", "answered"),
            *("max_trace", "max_answer"),
        )
        drawn = self.max_new if self.budget.temperature > 0 else 0
        return np.dtype(
            [(name, np.int64) for name in counters]
            + [("thinking", np.bool_), ("tokens", np.int64, (self.max_new,))]
            + [("notes", NOTE, (self.capacity,))]
            + [("draws", np.float64, (drawn,))]
        )

    def _new_rows(self, admitted: list[int]) -> np.ndarray:
        samples = self.budget.samples
        rows = np.zeros(len(admitted) * samples, dtype=self._row_type())
        rows["request"] = np.repeat(admitted, samples)
        rows["sample"] = np.tile(np.arange(samples), len(admitted))
        rows["thinking"] = self.budget.thinks
        for row in rows:
            request = self.requests[row["request"]]
            row["read"] = len(request.prompt) + self.thoughts
            row["max_trace"] = self._max_trace(request)
            row["max_answer"] = request.max_answer
            if self.budget.temperature > 0:
                stream = item_stream(self.seed, request.index, int(row["sample"]))
                row["draws"] = stream.random(self.max_new)
        return rows


def thought_token(tokenizer: Tokenizer) -> int:
    """The token that stands at a thought's place, for schemes that read it: a dot."""
    return tokenizer.encode(".")[-1]


def item_stream(seed: int, index: int, sample: int) -> np.random.Generator:
    """The draws of one sample of one question, whatever else runs beside it."""
    return np.random.Generator(np.random.Philox(key=[seed, (index << 24) + sample]))


def draw(logits_BV: Tensor, uniform_B: np.ndarray, temperature: float) -> np.ndarray:
    """Sample a token per row by inverting the cumulative distribution at `uniform_B`."""
    cumulative_BV = (logits_BV.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    target_B1 = torch.as_tensor(uniform_B, device=logits_BV.device)[:, None] * cumulative_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    return tokens_B1[:, 0].clamp(max=logits_BV.shape[-1] - 1).cpu().numpy()
