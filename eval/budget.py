"""Budgets: how much a model may spend on one question."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product

from data.tasks.task import TRACES
from models.backbone import Backbone
from models.depth.stop import Stop


@dataclass(frozen=True)
class Budget:
    """What one question may cost.

    Attributes:
        trace: trace mode that the prompt announces.
        forced_end: after this many trace tokens `</think>` is written for the model, and counts as
            a written token (budget forcing, arXiv 2501.19393); None lets the model end by itself.
        loops: loop count; None is the backbone's own.
        latent_steps: thoughts before the first token; None is the backbone's own number.
        samples: answers drawn, of which the most frequent counts.
        temperature: 0 takes the likeliest token; above 0 draws tokens.
        stop: the rule by which tokens stop looping, as in kl:0.01, or none; None is the backbone's
            own (see `models.depth.stop`).

    Raises:
        ValueError: on an impossible combination, naming the field and what is allowed.
    """

    trace: str = "none"
    forced_end: int | None = None
    loops: int | None = None
    latent_steps: int | None = None
    samples: int = 1
    temperature: float = 0.0
    stop: str | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be run."""
        if self.trace not in TRACES:
            raise ValueError(f"trace={self.trace} is no trace mode: choose {', '.join(TRACES)}")
        if self.forced_end is not None and not self.thinks:
            raise ValueError(
                f"forced_end={self.forced_end} with trace=none: there is no thought to end; "
                "choose another trace mode, or forced_end=null"
            )
        if self.latent_steps is not None and not self.thinks:
            raise ValueError(
                f"latent_steps={self.latent_steps} with trace=none: thoughts follow <think>, which "
                "such a prompt lacks; choose another trace mode, or latent_steps=null"
            )
        _at_least("forced_end", self.forced_end, 0)
        _at_least("loops", self.loops, 1)
        _at_least("latent_steps", self.latent_steps, 0)
        _at_least("samples", self.samples, 1)
        _at_least("temperature", self.temperature, 0)
        if self.stop is not None:
            Stop.parse(self.stop)
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples={self.samples} with temperature=0 draws the same answer each time: "
                "set a temperature above 0, or samples=1"
            )

    @property
    def thinks(self) -> bool:
        """Whether the prompt opens a thought."""
        return self.trace != "none"

    @property
    def label(self) -> str:
        """The budget in words, for people."""
        parts = [self.trace if self.thinks else "no trace"]
        if self.forced_end is not None:
            parts.append(f"end forced at {self.forced_end}")
        parts += _counted(self.loops, "loop") + _counted(self.latent_steps, "latent step")
        if self.stop is not None:
            parts.append("no stop" if self.stop == "none" else f"stop {self.stop}")
        if self.samples > 1:
            parts += _counted(self.samples, "sample")
        elif self.temperature > 0:
            parts.append(f"temperature {self.temperature:g}")
        return ", ".join(parts)

    def columns(self) -> dict[str, str | int | None]:
        """The budget as columns of the ledger."""
        return {
            "budget_trace": self.trace,
            "budget_forced_end": self.forced_end,
            "budget_loops": self.loops,
            "budget_latent_steps_allowed": self.latent_steps,
            "budget_samples": self.samples,
            "budget_stop": self.stop,
        }


@dataclass
class BudgetConfig:
    """Budgets as a grid: every possible combination of the values listed is run.

    A forced end goes with every mode that has a trace; a loop count with every backbone whose depth
    is adjustable. One sample takes the likeliest tokens; several are drawn at the temperature.

    Attributes:
        traces: trace modes.
        forced_ends: trace tokens after which the thought is ended; null lets the model end it.
        loops: loop counts; null is the backbone's own.
        latent_steps: thoughts before the first token, for backbones that have them and prompts
            that open a thought; null is the backbone's own number.
        samples: answers to draw.
        temperature: temperature of the draws where there are several samples.
        stops: rules by which tokens stop looping, as in kl:0.01, or none; null is the backbone's
            own. A rule goes with the backbone's own loop count, and with every backbone that has
            what it asks for.
    """

    traces: list[str] = field(default_factory=lambda: ["none"])
    forced_ends: list[int | None] = field(default_factory=lambda: [None])
    loops: list[int | None] = field(default_factory=lambda: [None])
    latent_steps: list[int | None] = field(default_factory=lambda: [None])
    samples: list[int] = field(default_factory=lambda: [1])
    temperature: float = 0.7
    stops: list[str | None] = field(default_factory=lambda: [None])

    def validate(self) -> None:
        """Raise ValueError, naming the key, where the grid is empty or has an impossible value."""
        for name in ("traces", "forced_ends", "loops", "latent_steps", "samples", "stops"):
            if not getattr(self, name):
                raise ValueError(f"eval.budgets.{name} is empty: list at least one value")
        try:
            for values in product(self.latent_steps, self.loops, self.samples, self.stops):
                self._budget("full", None, *values)
            for trace in self.traces:
                Budget(trace)
            for end in self.forced_ends:
                Budget("full", end)
        except ValueError as error:
            raise ValueError(f"eval.budgets: {error}") from None
        if not self.budgets():
            raise ValueError(
                f"eval.budgets.forced_ends={self.forced_ends} with eval.budgets.traces="
                f"{self.traces}: no trace has an end to force; add a trace mode, or null"
            )

    def budgets(self, traces: Iterable[str] | None = None) -> list[Budget]:
        """Expand the grid, without combinations that contradict themselves and without repetitions.

        Args:
            traces: trace modes to take instead of the grid's own.
        """
        axes = (self.forced_ends, self.latent_steps, self.loops, self.samples, self.stops)
        grid = product(self.traces if traces is None else traces, *axes)
        possible = (
            self._budget(trace, end, latent, loops, samples, stop)
            for trace, end, latent, loops, samples, stop in grid
            if (trace != "none" or (end is None and latent is None))
            and (loops is None or stop in (None, "none"))
        )
        return list(dict.fromkeys(possible))

    def _budget(
        self,
        trace: str,
        end: int | None,
        latent: int | None,
        loops: int | None,
        samples: int,
        stop: str | None,
    ) -> Budget:
        temperature = self.temperature if samples > 1 else 0.0
        return Budget(trace, end, loops, latent, samples, temperature, stop)


def fitting(budgets: Iterable[Budget], backbone: Backbone) -> list[Budget]:
    """Keep the budgets that a backbone can run.

    A fixed depth takes no loop count and no rule to stop by, a rule may ask for a gate, and only a
    latent scheme with thoughts before an answer takes a number of them. Where the backbone's own
    count or rule is also asked for by name, the named budget alone stays.

    Args:
        budgets: what was asked for.
        backbone: who is asked.
    """
    depth, latent = backbone.depth, backbone.config.latent
    kept = [
        budget
        for budget in budgets
        if (latent.thinks or budget.latent_steps is None)
        and (depth.adjustable or budget.loops is None)
        and _can_stop(backbone, budget.stop)
    ]
    for name, own in (
        ("loops", depth.default_loops),
        ("stop", depth.default_stop.text),
        ("latent_steps", latent.slots()),
    ):
        named = {replace(b, **{name: None}) for b in kept if getattr(b, name) == own}
        kept = [b for b in kept if getattr(b, name) is not None or b not in named]
    return kept


def _can_stop(backbone: Backbone, stop: str | None) -> bool:
    depth = backbone.depth
    if stop is None:
        return True
    if backbone.latent.repeats_passes and stop != "none":
        return False
    try:
        depth.check_stop(Stop.parse(stop))
    except ValueError:
        return False
    return depth.adjustable or stop != "none"


def _at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


def _counted(number: int | None, noun: str) -> list[str]:
    if number is None:
        return []
    return [f"{number} {noun}{'' if number == 1 else 's'}"]
