from typing import Any

import pytest
from omegaconf import OmegaConf

from eval.answers import answer_text, majority
from eval.budget import Budget, BudgetConfig, fitting
from eval.config import EvalConfig, TaskEval
from models.backbone import Backbone
from models.depth.looped import LoopedDepthConfig
from tests.eval.scripted import TOKENIZER
from tests.models.cases import backbone_config, build_backbone


@pytest.mark.parametrize(
    ("budget", "label"),
    [
        (Budget(), "no trace"),
        (Budget("short", loops=1), "short, 1 loop"),
        (
            Budget("full", 8, 3, None, 5, 0.7),
            "full, end forced at 8, 3 loops, 5 samples",
        ),
        (Budget("full", latent_steps=4), "full, 4 latent steps"),
        (Budget(temperature=0.5), "no trace, temperature 0.5"),
    ],
)
def test_labels_read_well(budget: Budget, label: str) -> None:
    assert budget.label == label


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trace": "long"}, "trace=long is no trace mode: choose none, short, full, verbose"),
        ({"forced_end": 3}, "forced_end=3 with trace=none"),
        ({"trace": "full", "forced_end": -1}, "forced_end=-1 must be at least 0"),
        ({"loops": 0}, "loops=0 must be at least 1"),
        ({"samples": 0}, "samples=0 must be at least 1"),
        ({"samples": 2}, "samples=2 with temperature=0"),
        ({"temperature": -1.0}, "temperature=-1.0 must be at least 0"),
    ],
)
def test_impossible_budgets_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**settings)


def test_a_grid_is_expanded_without_contradictions() -> None:
    grid = BudgetConfig(["none", "full"], [None, 4], [None], [None], [1, 3], 0.5)
    grid.validate()
    assert grid.budgets() == [
        Budget(),
        Budget(samples=3, temperature=0.5),
        Budget("full"),
        Budget("full", samples=3, temperature=0.5),
        Budget("full", 4),
        Budget("full", 4, samples=3, temperature=0.5),
    ]
    assert grid.budgets(["none"]) == [Budget(), Budget(samples=3, temperature=0.5)]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (BudgetConfig(forced_ends=[2]), "no trace has an end to force"),
        (BudgetConfig(samples=[]), "eval.budgets.samples is empty"),
        (BudgetConfig(loops=[0]), "eval.budgets: loops=0"),
        (BudgetConfig(stops=["kl"]), "eval.budgets: stop=kl: the number of kl must be above 0"),
        (BudgetConfig(stops=["k:1"]), "eval.budgets: stop=k:1 is no rule: choose none"),
        (BudgetConfig(traces=["all"]), "eval.budgets: trace=all"),
        (BudgetConfig(samples=[4], temperature=0), "samples=4 with temperature=0"),
        (BudgetConfig(traces=["full"], forced_ends=[-2]), "forced_end=-2"),
    ],
)
def test_impossible_grids_are_refused(grid: BudgetConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid.validate()


def backbone(**settings: Any) -> Backbone:
    """A backbone of two layers; of fixed depth where no settings are given."""
    own = {"depth": LoopedDepthConfig(**settings)} if settings else {}
    return build_backbone(backbone_config(**own))


def test_a_fixed_depth_leaves_out_loop_counts_and_rules() -> None:
    asked = BudgetConfig(loops=[None, 1, 2], stops=[None, "none", "kl:0.1"]).budgets()
    assert fitting(asked, backbone()) == [Budget()]
    assert fitting([Budget(loops=1)], backbone()) == []
    assert fitting([Budget("full", latent_steps=2)], backbone(loops=1)) == []


def test_the_same_loop_count_or_rule_is_not_run_twice() -> None:
    asked = BudgetConfig(loops=[None, 1, 2]).budgets()
    assert fitting(asked, backbone(loops=2)) == [Budget(loops=1), Budget(loops=2)]
    assert fitting(asked, backbone(loops=4)) == asked
    rules = BudgetConfig(stops=[None, "none", "kl:0.1", "gate:0.5"]).budgets()
    assert fitting(rules, backbone(loops=2)) == [Budget(stop="none"), Budget(stop="kl:0.1")]
    both = BudgetConfig(loops=[None, 2], stops=["none", "kl:0.1"]).budgets()
    assert [(b.loops, b.stop) for b in both] == [(None, "none"), (None, "kl:0.1"), (2, "none")]
    gated = backbone(loops=2, halting="gate", stop="gate:0.5")
    assert [b.stop for b in fitting(rules, gated)] == ["none", "kl:0.1", "gate:0.5"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EvalConfig(), "eval.tasks is empty"),
        (
            EvalConfig({"sums": TaskEval()}),
            "eval.tasks.sums: task=sums is not a task: use one of ",
        ),
        (EvalConfig({"parity": TaskEval([99])}), "eval.tasks.parity: level=99"),
        (EvalConfig({"parity": TaskEval(traces=["long"])}), "eval.tasks.parity: trace=long"),
        (
            EvalConfig(
                {"parity": TaskEval(traces=["none"])},
                budgets=BudgetConfig(["full"], forced_ends=[2]),
            ),
            "eval.tasks.parity.traces=.* leaves no budget",
        ),
        (EvalConfig({"parity": TaskEval()}, items=0), "eval.items=0 must be at least 1"),
        (EvalConfig({"parity": TaskEval()}, split="train"), "choose validation or test"),
    ],
)
def test_bad_settings_are_named(config: EvalConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_hydra_can_read_and_override_the_settings() -> None:
    schema = OmegaConf.structured(EvalConfig)
    overrides = OmegaConf.from_dotlist(
        ["tasks.parity.levels=[4,8]", "budgets.loops=[null,2]", "budgets.traces=[none,full]"]
    )
    config = OmegaConf.to_object(OmegaConf.merge(schema, overrides))
    assert isinstance(config, EvalConfig)
    config.validate()
    assert config.levels("parity") == [4, 8]
    assert config.budgets.loops == [None, 2]
    with pytest.raises(Exception, match="bogus"):
        OmegaConf.merge(schema, {"budgets": {"bogus": 1}})


@pytest.mark.parametrize(
    ("written", "thinks", "answer"),
    [
        ("1 2 <eos>", False, "1 2"),
        ("<eos>", False, ""),
        ("1 2", False, None),
        ("5 6 </think> 1 2 <eos>", True, "1 2"),
        ("5 </think> 1 </think> 2 <eos>", True, "1 </think> 2"),
        ("5 6 <eos>", True, None),
        ("5 6 </think> 1 2", True, None),
        ("</think> <eos>", True, ""),
    ],
)
def test_the_answer_is_read_after_the_thought(
    written: str, thinks: bool, answer: str | None
) -> None:
    assert answer_text(TOKENIZER.encode(written), TOKENIZER, thinks) == answer


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["1", "2", "2"], "2"),
        (["2", "1", "1", "2"], "2"),
        ([None, None, "1"], "1"),
        ([None, None], None),
        ([], None),
    ],
)
def test_the_majority_wins_and_ties_go_to_the_earliest(
    answers: list[str | None], winner: str | None
) -> None:
    assert majority(answers) == winner
