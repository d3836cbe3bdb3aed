"""What a backbone would say at each step of its thinking: hidden states read out as words.

A question is answered as in an evaluation. Then prompt, thoughts and answer are read once more,
with the states of all loops kept, and each state is given to the head (a logit lens). What a
thought carries is the vector at its place: its nearest words are those of the embedding by cosine.

Legend: B batch, T time, D width, V vocabulary, P places shown, K words shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.roles import Role
from data.split import splittable
from data.task_list import find_task
from data.tasks.task import Problem
from data.tokenizer import Tokenizer
from eval.answers import answer_text
from eval.budget import Budget
from eval.faithfulness import Carried
from eval.generate import Generation, Request, generate, thought_token
from eval.questions import make_request
from models.backbone import Backbone, Output
from models.depth.looped import LoopedDepth
from models.depth.stop import Stop


@dataclass(frozen=True)
class Word:
    """A word of the vocabulary and how near it is.

    Attributes:
        text: the token, made visible.
        share: its probability, or its cosine.
    """

    text: str
    share: float


@dataclass(frozen=True)
class Place:
    """One position, read out.

    Attributes:
        says: likeliest words after it.
        loops: the same of the state after each loop; empty where nothing is looped.
        passes: the same after each pass of a latent scheme that makes several.
        nearest: words whose embeddings are nearest to what is read there; empty but for thoughts.
        ran: loops that it ran, where positions may differ.
        written: the word that was written after it; empty inside thoughts.
    """

    says: Sequence[Word]
    loops: Sequence[Sequence[Word]] = ()
    passes: Sequence[Sequence[Word]] = ()
    nearest: Sequence[Word] = ()
    ran: int | None = None
    written: str = ""


@dataclass(frozen=True)
class Look:
    """One question, answered and looked into.

    Attributes:
        problem: the question.
        text: all that was written.
        correct: whether the answer is right.
        thoughts: the thoughts, in order.
        words: the position before each written word, in order: the last thought stands here too.
        train_only: whether the level is too small for its questions to be held out.
    """

    problem: Problem
    text: str
    correct: bool
    thoughts: Sequence[Place] = ()
    words: Sequence[Place] = ()
    train_only: bool = False


def can_be_looked_into(backbone: Backbone) -> bool:
    """Whether there is anything between a question and its words: thoughts, loops, passes.

    Loops over chunks don't count: a chunk's state is no word before it is decoded.
    """
    latent = backbone.config.latent
    several = backbone.latent.passes_per_position() > 1 or backbone.latent.steps_per_token() > 0
    return latent.thinks or several or (backbone.depth.adjustable and not latent.by_content)


@torch.inference_mode()
def look(
    backbone: Backbone, problem: Problem, index: int, budget: Budget, tokenizer: Tokenizer, top: int
) -> Look:
    """Answer a question and read out what happened on the way.

    Args:
        backbone: in evaluation mode, causal.
        problem: the question.
        index: its place among the questions of its level.
        budget: how it is answered: one sample, the likeliest token.
        tokenizer: the backbone's.
        top: words to show of each state.
    """
    request = make_request(problem, index, budget.trace, tokenizer)
    made = generate(backbone, [request], budget, tokenizer)[0][0]
    answer = answer_text(made.tokens, tokenizer, budget.thinks)
    thoughts, words = _Reader(backbone, tokenizer, top).places(request, made, budget)
    return Look(
        problem,
        tokenizer.decode(made.tokens),
        answer is not None and find_task(problem.task).verify(problem, answer),
        thoughts,
        words,
        not splittable(problem.task, problem.level),
    )


class _Reader:
    """Reads an answered question again and turns its states into words."""

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, top: int) -> None:
        self.backbone, self.tokenizer = backbone, tokenizer
        self.top = min(top, tokenizer.vocab_size)

    def places(
        self, request: Request, made: Generation, budget: Budget
    ) -> tuple[list[Place], list[Place]]:
        """Return the thoughts, and the positions before each written word."""
        carried, begin = Carried(1), len(request.prompt)
        out = self._read(request, made, budget, carried)
        # The last word is never read: nothing follows it.
        first = begin + made.thoughts - 1
        own = self._at(out, slice(begin, begin + made.thoughts))
        before = self._at(out, slice(first, first + len(made.tokens)))
        nearest = [self._nearest(carried.inputs[0][number]) for number in range(made.thoughts)]
        written = [visible(self.tokenizer.decode([token])) for token in made.tokens]
        return (
            [Place(**place, nearest=near) for place, near in zip(own, nearest, strict=True)],
            [Place(**place, written=word) for place, word in zip(before, written, strict=True)],
        )

    def _read(self, request: Request, made: Generation, budget: Budget, carried: Carried) -> Output:
        device = self.backbone.embedding.weight.device
        dots = [thought_token(self.tokenizer)] * made.thoughts
        tokens = [*request.prompt, *dots, *made.tokens[:-1]]
        roles = torch.full((1, len(tokens)), int(Role.ANSWER), device=device)
        roles[:, len(request.prompt) : len(request.prompt) + made.thoughts] = Role.THOUGHT
        return self.backbone(
            torch.tensor([tokens], device=device),
            torch.zeros_like(roles),
            loops=budget.loops,
            roles_BT=roles,
            record=True,
            stop=None if budget.stop is None else Stop.parse(budget.stop),
            alter=carried.look([0]),
        )

    def _at(self, out: Output, where: slice) -> list[dict]:
        """What some positions say, as the arguments of `Place`."""
        states = [out.finish(state_BTD) for state_BTD in self._states(out)]
        says, loops, passes = (
            [self._words(out.readout(hidden_BTD[0, where]).softmax(dim=-1)) for hidden_BTD in each]
            for each in ([out.hidden_BTD], states, out.passes)
        )
        ran = None if out.trajectory.exits_BT is None else out.trajectory.exits_BT[0, where]
        return [
            {
                "says": said,
                "loops": [loop[place] for loop in loops],
                "passes": [each[place] for each in passes],
                "ran": None if ran is None else int(ran[place]),
            }
            for place, said in enumerate(says[0])
        ]

    def _states(self, out: Output) -> Sequence[Tensor]:
        """States after each loop of a whole group, where the head can make words of them.

        It can't where single layers loop. Nor where further positions stand between tokens: what
        follows the loops would not see those.
        """
        depth = self.backbone.depth
        in_sequence = isinstance(depth, LoopedDepth) and depth.config.order == "sequence"
        known = depth.adjustable and not in_sequence and self.backbone.latent.stretch == 1
        return out.trajectory.states if known else ()

    def _nearest(self, input_D: Tensor) -> list[Word]:
        weight_VD = self.backbone.embedding.weight
        cosine_V = F.cosine_similarity(weight_VD.float(), input_D[None].float(), dim=-1)
        return self._words(cosine_V[None])[0]

    def _words(self, shares_PV: Tensor) -> list[list[Word]]:
        """The words with the largest shares at each place."""
        best = shares_PV[:, : self.tokenizer.vocab_size].float().topk(self.top, dim=-1)
        return [
            [
                Word(visible(self.tokenizer.decode([token])), share)
                for token, share in zip(tokens, shares, strict=True)
            ]
            for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def visible(text: str) -> str:
    """Make any token fit to be seen: spaces and control characters have a sign, nothing has too."""
    signs = {" ": "␣", "": "∅"}
    if text in signs:
        return signs[text]
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return shown.strip() or "␣"
