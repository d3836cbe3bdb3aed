"""The planning verb as people meet it, and the arithmetic of its times."""

import json
from pathlib import Path

import pytest

from tests.train.runs import SMALL
from tests.train.test_plan_memory import BACKBONES
from train.gpus import GPUS, NAMES, find_gpu
from train.parallel_config import ParallelConfig
from train.plan import compose_run, main, read_plan_settings
from train.plan_muon import MuonWork
from train.plan_settings import Layout, PlanSettings, layout_of
from train.plan_shards import UnitSize, unit_sizes
from train.plan_time import Traffic, step_time, traffic_of
from train.plan_tracker import GRADIENTS, OPTIMIZER, WEIGHTS
from train.planning import make_plan

UNITS = [UnitSize("a", 600, 75, 0, 0), UnitSize("root", 200, 25, 0, 0, is_root=True)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["experiment=smoke", *SMALL, *arguments]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("plan: ")
    return line.removeprefix("plan: ")


def test_a_plan_says_all_and_writes_it_down(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment=smoke", *SMALL, "world=2", "price=3", "rows=1"]) == 0
    out, _ = capsys.readouterr()
    path = out.splitlines()[-1].removeprefix("plan: ")
    assert path == "runs/smoke/plans/transformer-2xh100-ddp.json"
    plan = json.loads(Path(path).read_text())
    memory = plan["memory"]
    assert memory.pop("total") == pytest.approx(sum(memory.values()))
    assert memory["weights"] == 4 * plan["parameters"] == memory["gradient buckets"]
    assert plan["tokens"] == plan["steps"] * 4 * 32 and plan["accumulate"] == 2
    assert plan["money"] == pytest.approx(3 * plan["gpu_hours"])
    assert plan["gpu_hours"] == pytest.approx(plan["steps"] * plan["seconds"]["step"] * 2 / 3600)
    assert plan["largest_rows_per_gpu"] > 1 and plan["fits"]
    for word in ("in all", "all-reduce of gradients", "GPU-hours", "peak_fraction=0.35"):
        assert word in out


def test_what_does_not_fit_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    big = ["backbone.dim=8192", "backbone.num_layers=12", "vocab=32768", "gpu=rtx4090", "rows=1"]
    assert main(["experiment=smoke", *SMALL, *big, "world=1"]) == 1
    out, err = capsys.readouterr()
    assert "even one row per GPU doesn't fit" in err and "recompute=blocks" in err
    assert "strategy=fsdp2" in err and "data.context than 32" in err
    assert (
        json.loads(Path(out.splitlines()[-1].removeprefix("plan: ")).read_text())["fits"] is False
    )
    # With more GPUs the same is sharded, unasked.
    assert main(["experiment=smoke", *SMALL, *big, "world=4", "usable=1"]) in (0, 1)
    out, _ = capsys.readouterr()
    assert "fsdp2, 4 shards x 1" in out and "strategy=ddp would hold" in out
    assert "train with parallel.strategy=fsdp2" in out


def test_a_plan_is_of_the_run_as_it_is_set() -> None:
    parallel = ["parallel.strategy=fsdp2", "parallel.devices=2", "parallel.nodes=2"]
    short = ["strategy=fsdp2", "world=4", "gpus_per_node=2"]
    more = ["replicas=2", "recompute=blocks", "parallel.offload=true", "parallel.accelerator=auto"]
    plans = []
    for own in (parallel, short):
        settings, overrides = read_plan_settings([*own, *more, *SMALL, "experiment=smoke"])
        plans.append(make_plan(compose_run(overrides), settings))
    for plan in plans:
        assert plan.layout == Layout("fsdp2", 4, 2, 2, 2) and plan.work.asked.recompute
        assert plan.memory is not None and plan.memory.offloaded > 0
        assert not {WEIGHTS, GRADIENTS, OPTIMIZER} & set(plan.memory.parts)
        assert "the CPU's memory" in " ".join(plan.notes)
    assert plans[0].memory == plans[1].memory and plans[0].traffic == plans[1].traffic


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gpu=tpu"], f"gpu=tpu is not known: choose one of {', '.join(NAMES)}"),
        (
            ["world=3"],
            "trainer.rows_per_step=4 can't be cut into parallel.devices=3 x parallel.nod",
        ),
        (["rows=3"], "trainer.rows_per_step=4 can't be cut into 1 GPUs x rows=3"),
        (["world=0"], "world=0 must be at least 1"),
        (["wrld=2"], "concepts; or of the plan's own: world, gpu, gpus_per_node, rows"),
        (["strategy=zero"], "parallel.strategy=zero is not known: choose auto, single, ddp"),
        (["strategy=single", "world=2"], "parallel.strategy=single is one process"),
        (["strategy=fsdp2", "world=4", "replicas=3"], "parallel.replicas=3 can't be cut from 4"),
        (["replicas=2", "world=2"], "parallel.replicas=2 is for sharded weights"),
        (["peak_fraction=2"], "peak_fraction=2.0 must be above 0 and at most 1"),
        (["backbone.dimm=8"], "dimm"),
        (["world=many"], "world"),
    ],
)
def test_a_wrong_setting_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *arguments)


def test_a_check_without_the_gpu_says_that_it_did_not_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["experiment=smoke", *SMALL, "check=true"]) == 2
    assert "nothing was run" in capsys.readouterr().err
    assert main(["experiment=smoke", *SMALL, "check=true", "gpu=cpu"]) == 0
    out, _ = capsys.readouterr()
    assert "measured: " in out and "peak_fraction=" in out


def test_ddp_sends_every_gradient_twice_around_the_ring() -> None:
    layout = layout_of(ParallelConfig(strategy="ddp", devices=8, nodes=2))
    (part,) = traffic_of(UNITS, layout, 3, MuonWork())
    assert (part.sent, part.group, part.is_in_node) == (2 * 15 / 16 * 4 * 800, 16, False)
    assert traffic_of(UNITS, layout_of(ParallelConfig()), 1, MuonWork()) == []


def test_shards_are_gathered_twice_and_cut_up_in_every_micro_batch() -> None:
    """And the root is gathered once."""
    layout = layout_of(ParallelConfig(strategy="fsdp2", devices=8))
    gather, scatter = traffic_of(UNITS, layout, 3, MuonWork())
    assert (gather.sent, gather.calls) == (3 * 7 / 8 * 4 * (2 * 600 + 200), 9)
    assert (scatter.sent, scatter.calls) == (3 * 7 / 8 * 4 * 800, 6) and scatter.is_in_node


def test_replicas_add_pieces_up_over_nodes() -> None:
    layout = layout_of(ParallelConfig(strategy="fsdp2", devices=8, nodes=8, replicas=8))
    assert layout == Layout("fsdp2", 64, 8, 8, 8)
    gather, *_, over = traffic_of(UNITS, layout, 1, MuonWork())
    assert gather.is_in_node
    assert (over.sent, over.group, over.is_in_node) == (2 * 7 / 8 * 4 * 100, 8, False)


def test_what_computing_hides_costs_no_time() -> None:
    gpu, settings = find_gpu("h100"), PlanSettings(hop_us=0)
    short = Traffic("all-reduce", 450e9 * 0.7 * 0.5, 1, 8, True)  # half a second
    flops = 989e12 * 0.35  # one second
    assert step_time(flops, [short], gpu, settings, True).step == pytest.approx(1.0)
    assert step_time(flops, 2 * [short], gpu, settings, True).step == pytest.approx(1.3)


def test_uneven_shards_are_counted_as_torch_cuts_them() -> None:
    one, many = (unit_sizes(BACKBONES["transformer"], shards) for shards in (1, 48))
    assert [unit.whole for unit in one] == [unit.own for unit in one]
    whole = sum(unit.whole for unit in many)
    assert whole < 48 * sum(unit.own for unit in many) < 2 * whole


def test_figures_of_devices_have_sources() -> None:
    for gpu in GPUS.values():
        assert gpu.source and gpu.bf16 > gpu.fp32 and gpu.node_link > gpu.network


def test_help_is_for_newcomers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out, _ = capsys.readouterr()
    assert "  python -m train.plan" in out and all(name in out for name in NAMES)
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.nightly
def test_the_table_has_the_least_that_fits_or_else_the_fastest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Links are all that something so small waits for: then recomputing and replicas are tried."""
    common = ["experiment=smoke", *SMALL, "trainer.rows_per_step=16", "vocab=64"]
    table = ["table=true", "families=[transformer]", "sizes=[150m]", "worlds=[1,16]"]
    assert main([*common, *table, "output=table.md"]) == 0
    alone, many = json.loads(Path("table.json").read_text())
    assert (alone["layout"]["strategy"], alone["recompute"]) == ("single", "none")
    steps = {}
    for recompute in ("none", "blocks"):
        for strategy, replicas in (("ddp", 1), ("fsdp2", 1), ("fsdp2", 2)):
            ways = [f"strategy={strategy}", f"replicas={replicas}", f"recompute={recompute}"]
            assert main([*common, "size=150m", "world=16", *ways, "output=p.json"]) == 0
            found = json.loads(Path("p.json").read_text())
            steps[strategy, replicas, recompute] = found["seconds"]["step"]
    assert many["seconds"]["step"] == min(steps.values())
    assert many["seconds"]["step"] < max(steps.values())
    assert "| 16 | ddp | none | 1 x 1 |" in Path("table.md").read_text()
    capsys.readouterr()
