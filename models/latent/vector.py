"""Latent thought vectors of a document, inferred by gradient steps (LTM, arXiv 2502.01567).

Each document has vectors z ~ N(0, I), and its tokens are read given them. A Gaussian posterior is
fitted to every document by a few fast gradient steps (`posterior.fit`); the weights then learn, by
one slow step, from the document given a sample of it. The posterior is a constant to the slow step:
its KL is reported (`posterior_kl`), and no gradient of it reaches the weights.

A deviation: the paper's decoder attends to the vectors in every layer, by cross-attention. Here
they stand in front of their document as a prefix, `place_p + W z_p`, so that every mixer can read
them, with attention or with a recurrent state. And a document's first token is not predicted from
the vectors, since no batch asks for it.

What a posterior is fitted on:

    training    the whole document, as in the paper, or its question alone (`fit_on`)
    otherwise   the question alone (the tokens of role QUESTION that a document begins with), be it
                scored or continued, and the mean is used; without a question, or roles, the prior's

A fit on the whole document would tell its answer, so validation never does that. Within a
question, though, every token is read given vectors that saw all of it: `sees_ahead`. A document
that a state reads in several calls is fitted in the first of them.

Legend: B batch, T time, D width, N documents, P vectors of a document, W width of a vector, S inner
steps.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..cost import Cost, linear_flops
from ..depth.draws import key_of
from ..processes import in_any_process
from .costs import CostAt, Fitting, Sizes
from .documents import first_positions, leading, mean_over_rows, number_documents
from .fronts import Fronted, joined_in_rows
from .latent import Latent, LatentConfig, LatentSite, Reading, Thought
from .posterior import Posterior, fit, summed_nats
from .vector_memory import VectorMemory

QUESTION = 1
"""The role of a question's tokens, as in a corpus (`data.roles.Role`)."""
FIT_ON = ("document", "question")


@dataclass
class VectorConfig(LatentConfig):
    """Settings of latent thought vectors.

    Attributes:
        vectors: of each document.
        width: of a vector; null is the model's.
        inner_steps: fast steps that fit a posterior (the paper takes 16); 0 leaves it the prior.
        inner_lr: Adam's learning rate in these.
        fit_on: what training fits on: document, or question, which is all that evaluation has.
    """

    kind: str = "vector"
    vectors: int = 4
    width: int | None = None
    inner_steps: int = 4
    inner_lr: float = 0.3
    fit_on: str = "document"

    def build(self, site: LatentSite) -> "Vector":
        """Make the module; ValueError on impossible settings."""
        width = site.dim if self.width is None else self.width
        for name, value, least in (
            ("vectors", self.vectors, 1),
            ("width", width, 1),
            ("inner_steps", self.inner_steps, 0),
        ):
            if value < least:
                raise ValueError(f"latent.{name}={value} must be at least {least}")
        if not 0 < self.inner_lr < math.inf:
            raise ValueError(f"latent.inner_lr={self.inner_lr} must be a finite number above 0")
        if self.fit_on not in FIT_ON:
            raise ValueError(
                f"latent.fit_on={self.fit_on} is not known: choose document or question"
            )
        return Vector(site.dim, width, self)


class Vector(Latent):
    """Infers vectors, and puts them in front of their documents."""

    repeats_passes = True

    def __init__(self, dim: int, width: int, config: VectorConfig) -> None:
        super().__init__()
        self.config, self.prefix, self.width = config, config.vectors, width
        self.sees_ahead = self.repeats_depth = config.inner_steps > 0
        self.fits_questions = config.fit_on == "question"
        self.places_PD = nn.Parameter(torch.empty(self.prefix, dim))
        self.into = nn.Linear(width, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw so that both parts of a prefix are as large as an embedding."""
        nn.init.normal_(self.places_PD, std=0.02)
        nn.init.normal_(self.into.weight, std=0.02 * self.width**-0.5)

    def init_memory(
        self, batch: int, max_len: int, device: torch.device | str, dtype: torch.dtype
    ) -> VectorMemory:
        """Return that no row has read anything."""
        return VectorMemory.empty(batch, device)

    def forward(self, given: Reading) -> Thought:
        """Infer the vectors of the documents that begin here, and read all."""
        x_BTD, memory = given.embed(given.tokens_BT), given.memory
        if memory is None:
            return self._read(given, x_BTD, None)
        if given.segments_BT is None and memory.least:
            thought = given.run(x_BTD, None, given.calls)
        else:
            thought = self._read(given, x_BTD, memory.goes_on(given.segments_BT))
        memory.read(given.segments_BT, x_BTD.shape[1])
        return thought

    def prefixes(self, z_NPW: Tensor) -> Tensor:
        """Return the inputs that stand for vectors, `[N, P, D]`."""
        return self.places_PD + self.into(z_NPW.to(self.places_PD.dtype))

    # Reading

    def _read(self, given: Reading, x_BTD: Tensor, goes_on_B: Tensor | None) -> Thought:
        """Read; rows that go on have no vectors before their first document."""
        number_BT, documents = _numbered(given, goes_on_B)
        z_NPW, measures = self._infer(given, x_BTD, number_BT, documents)
        vectors_NPD = self.prefixes(z_NPW)
        if given.calls is None:
            laid = self._laid(given.segments_BT, number_BT, documents)
            thought = laid.back(given.run(laid.inputs(x_BTD, vectors_NPD), laid.segments_BL))
            return replace(thought, measures=measures)
        if goes_on_B is None and given.segments_BT is None:
            every_B = torch.arange(len(x_BTD), device=x_BTD.device)
            return self._read_rows(given, x_BTD, number_BT, vectors_NPD, every_B, True)
        begun_B, parts = first_positions(number_BT).sum(dim=1), []
        for begun in begun_B.unique().tolist():  # rows in a call must be of one length
            rows_G = (begun_B == begun).nonzero()[:, 0]
            own = (given, x_BTD, number_BT, vectors_NPD, rows_G, bool(begun))
            parts.append((rows_G, self._read_rows(*own)))
        return joined_in_rows(parts) if len(parts) > 1 else parts[0][1]

    def _read_rows(
        self,
        given: Reading,
        x_BTD: Tensor,
        number_BT: Tensor,
        vectors_NPD: Tensor,
        rows_G: Tensor,
        begins: bool,
    ) -> Thought:
        """Read some rows with their memories; `begins` says whether a document begins in them."""
        assert given.calls is not None
        whole = len(rows_G) == len(x_BTD)
        calls = given.calls if whole else [call.take(rows_G) for call in given.calls]
        segments_GT = None if given.segments_BT is None else given.segments_BT[rows_G]
        if begins:
            laid = self._laid(segments_GT, number_BT[rows_G], len(vectors_NPD))
            inputs_GLD = laid.inputs(x_BTD[rows_G], vectors_NPD)
            thought = laid.back(given.run(inputs_GLD, laid.segments_BL, calls))
        else:
            thought = given.run(x_BTD[rows_G], segments_GT, calls)
        if not whole:
            for mine, theirs in zip(given.calls, calls, strict=True):
                mine.put(rows_G, theirs)
        return thought

    def _laid(self, segments_BT: Tensor | None, number_BT: Tensor, documents: int) -> Fronted:
        """Put vectors before every document that has a number, all tokens kept."""
        if segments_BT is None:
            return Fronted.whole_rows(number_BT[:, 0], number_BT.shape[1], self.prefix)
        kept_BT = torch.ones_like(number_BT, dtype=torch.bool)
        return Fronted.of(segments_BT, number_BT, kept_BT, documents, self.prefix)

    # Inferring

    def _infer(
        self, given: Reading, x_BTD: Tensor, number_BT: Tensor, documents: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the vectors that documents are read with, and what a training step is told."""
        posterior = Posterior.prior((documents, self.prefix, self.width), x_BTD)
        noise_SNPW = self._noise(given, number_BT, posterior.mean_NPW)
        predicts_BT = self._predicting(given, number_BT)
        if predicts_BT is not None:
            # Inference mode is left: what it made can't be differentiated, so that is copied.
            with torch.inference_mode(False), torch.enable_grad():
                own = (x_BTD.detach().clone(), number_BT.clone(), predicts_BT.clone())
                steps = noise_SNPW[: self.config.inner_steps].clone()
                posterior = self._fit(given, *own, posterior, steps)
        if given.draws is None:
            return posterior.mean_NPW, {}
        kl = mean_over_rows(posterior.divergence(), number_BT)
        return posterior.sample(noise_SNPW[-1]), {"posterior_kl": kl}

    def _predicting(self, given: Reading, number_BT: Tensor) -> Tensor | None:
        """Where the tokens stand whose next ones are fitted, `[B, T]`; None where nothing is."""
        learns = given.draws is not None
        if not self.config.inner_steps:
            return None
        known_BT = number_BT >= 0
        if not (learns and self.config.fit_on == "document"):
            if given.roles_BT is None:
                return None
            known_BT = known_BT & leading(given.roles_BT == QUESTION, number_BT)
        predicts_BT = torch.zeros_like(known_BT)
        same_BT = number_BT[:, 1:] == number_BT[:, :-1]
        predicts_BT[:, :-1] = known_BT[:, 1:] & known_BT[:, :-1] & same_BT
        fits = in_any_process(predicts_BT.any()) if learns else bool(predicts_BT.any())
        return predicts_BT if fits else None

    def _fit(
        self,
        given: Reading,
        x_BTD: Tensor,
        number_BT: Tensor,
        predicts_BT: Tensor,
        prior: Posterior,
        noise_SNPW: Tensor,
    ) -> Posterior:
        """Fit posteriors to the tokens that follow some places; only these places are run."""
        targets_M = given.tokens_BT.roll(-1, dims=1)[predicts_BT]
        documents = len(prior.mean_NPW)
        laid = Fronted.of(number_BT, number_BT, predicts_BT, documents, self.prefix)

        def nats(z_NPW: Tensor) -> Tensor:
            inputs_BLD = laid.inputs(x_BTD, self.prefixes(z_NPW))
            hidden_BTD = laid.tokens_of(given.run(inputs_BLD, laid.segments_BL).hidden_BTD)
            return summed_nats(hidden_BTD[predicts_BT], given.readout, targets_M)

        return fit(prior, nats, noise_SNPW, self.config.inner_lr)

    def _noise(self, given: Reading, number_BT: Tensor, like: Tensor) -> Tensor:
        """Normal numbers of every inner step, and of the sample that is read in training.

        In training each document of a row has its own, however rows are put together. Otherwise
        all have the same: what an answer is must depend on no other question.
        """
        shape = (self.config.inner_steps + 1, self.prefix, self.width)
        if given.draws is None:
            return _normal(key_of("vectors"), shape)[:, None].to(like)
        row_of_N = first_positions(number_BT).nonzero()[:, 0].tolist()
        if not row_of_N:
            return like.new_zeros(shape)[:, None]
        own, draws = given.draws.own(), given.draws
        keys = [
            draws.row_key(f"vectors {number - row_of_N.index(row)}", own[row])
            for number, row in enumerate(row_of_N)
        ]
        return torch.stack([_normal(key, shape) for key in keys], dim=1).to(like)

    # What it costs

    def cost(self, at: CostAt, context: int, sizes: Sizes) -> Cost:
        """A position's, which sees the vectors too; a document's first token brings them along."""
        if context > 1:
            return at(context + self.prefix)
        before = sum(at(number).flops for number in range(1, self.prefix + 1))
        return at(self.prefix + 1) + Cost(flops=before) + self._prefix_cost(sizes)

    def prefill_cost(self, at: CostAt, length: int, sizes: Sizes) -> Cost:
        """Cost of reading the vectors and so many tokens at once."""
        return at(length + self.prefix) + self._prefix_cost(sizes)

    def fitting(self, at: CostAt, length: int, sizes: Sizes) -> Fitting:
        """Cost of inferring vectors from so many tokens, all but the last of which predict.

        A step counts as three forward passes over the vectors and those tokens, read out, as a
        step of training does. It is an upper bound: no gradient by the weights is taken. Its passes
        through blocks are three as well; one forward and one backward must wait for one another.
        """
        steps = self.config.inner_steps
        if length < 2 or not steps:
            return Fitting()
        positions = self.prefix + length - 1
        once = at(positions)
        flops = once.flops + self._prefix_cost(sizes).flops + (length - 1) * sizes.readout_flops
        cost = Cost(flops=3 * steps * flops, serial_steps=2 * steps * once.serial_steps)
        return Fitting(cost, 3 * steps * positions, steps * self.prefix)

    def _prefix_cost(self, sizes: Sizes) -> Cost:
        """Cost of making the vectors' inputs."""
        weights = sum(weight.numel() for weight in self.parameters())
        return Cost(self.prefix * linear_flops(self.width, sizes.dim), 4 * weights)


def _numbered(given: Reading, goes_on_B: Tensor | None) -> tuple[Tensor, int]:
    """The number of each position's document, -1 where none begins; and how many begin."""
    rows, length = given.tokens_BT.shape
    if given.segments_BT is not None:
        return number_documents(given.segments_BT, goes_on_B)
    row_BT = torch.arange(rows, device=given.tokens_BT.device)[:, None].expand(rows, length)
    if goes_on_B is None:
        return row_BT, rows
    return number_documents(row_BT, goes_on_B)


def _normal(key: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(key))
