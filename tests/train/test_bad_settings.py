"""Whatever can't be run is refused in one line, before any work, by the name of its key."""

import re

import pytest
from hydra import compose, initialize_config_module

from tests.train.runs import refusal
from train.schema import register_schemas, to_config

TRAINER = "choose one of max_steps, rows_per_step, gradient_clip"
MISSPELT = [
    (["trainr.max_steps=3"], "trainr is not a setting: choose one of .*, trainer, parallel"),
    (["trainer.max_step=3"], f"trainer.max_step is not a setting: {TRAINER}"),
    (["+trainer.max_step=3"], f"trainer.max_step is not a setting: {TRAINER}"),
    (["+max_steps=3"], "max_steps is not a setting: choose one of experiment_name, runs"),
    (["depth.loops=3"], "depth is not a setting: choose one of .*, backbone"),
    (["backbone.depth.lops=3"], "backbone.depth.lops is not a setting: choose one of kind"),
    (
        ["backbone.mixers.attn.num_head=2"],
        "backbone.mixers.attn.num_head is not a setting: choose one of kind, num_heads",
    ),
    (
        ["+backbone.mixers.attn.num_head=2"],
        "backbone.mixers.attn.num_head is not a setting: choose one of kind, num_heads",
    ),
    (["+stages.0.objective.zloss=1"], r"stages.0.objective.zloss is not a setting"),
    (
        ["data.sources.direct.levls=[2]"],
        "data.sources.direct.levls is not a setting: choose one of task, trace, levels",
    ),
    (
        ["data.sources.words.task=a5"],
        r"data.sources.words is not there .*: add it with '\+data.sources=\{words: \{...\}\}'",
    ),
    (
        ["eval.tasks.s3_swaps.levels=[8]"],
        r"eval.tasks.s3_swaps is not there .*: add it with '\+eval.tasks=\{s3_swaps: ",
    ),
]
WRONG_TYPE = [
    (["trainer.max_steps=many"], "trainer.max_steps: Value 'many' .* converted to Integer"),
    (["trainer.max_steps=1.5"], "trainer.max_steps: Value '1.5' .* converted to Integer"),
    (["seed="], "seed: Value '' .* converted to Integer"),
    (["deterministic=perhaps"], "deterministic: Value 'perhaps' is not a valid bool"),
    (["optim.betas=0.9"], "optim.betas: Invalid value assigned: float is not a ListConfig"),
    (["optim.betas=[a,b]"], r"optim.betas\[0\]: Value 'a' .* converted to Float"),
    (["backbone.depth=null"], "backbone.depth' is not Optional"),
    (["seed=1,2"], "Ambiguous value for argument 'seed=1,2'.* add --multirun"),
    (["trainer"], "Error parsing override 'trainer' missing EQUAL"),
]
UNKNOWN_CHOICE = [
    (["backbone=gru"], "Could not find 'backbone/gru' .* gdn gdn_hybrid .*looped"),
    (["experiment=smok"], "Could not find 'experiment/smok' .* smoke"),
    (["mixer@backbone.mixers.attn=gdm"], "Could not find 'mixer/gdm' .* attn .*gdn .*mamba2"),
    (["backbone.depth.kind=looped"], "backbone.depth.kind=looped can't be set by itself: .*depth="),
    (
        ["backbone.mixers.attn.kind=gdn"],
        "backbone.mixers.attn.kind=gdn can't be set by itself: choose mixer@backbone.mixers.attn=",
    ),
    (["optim.kind=sgd"], "optim.kind=sgd is not known: choose muon or adamw"),
    (["logger.kind=tensorboard"], "logger.kind=tensorboard is not known: choose none or wandb"),
    (["logger.mode=on"], "logger.mode=on is not known: choose offline or online"),
    (["trainer.precision=16"], "trainer.precision=16 is not known: choose auto, 32, bf16"),
    (["parallel.accelerator=tpu"], "parallel.accelerator=tpu is not known"),
    (["data.sources.direct.task=s3_swap"], "data.sources.direct.task='s3_swap' .* s3_swaps"),
    (["data.sources.direct.trace=long"], "data.sources.direct.trace='long' .* none"),
    (["eval.budgets.traces=[long]"], "eval.budgets.*trace=long is no trace mode"),
    (["eval.split=train"], "eval.split=train is not known: choose validation or test"),
]
IMPOSSIBLE = [
    (
        ["backbone.mixers.attn.window=129"],
        "backbone.mixers.attn.window=129 is larger than data.context=128",
    ),
    (
        ["data.context=64", "backbone.mixers.attn.window=65"],
        "backbone.mixers.attn.window=65 is larger than data.context=64",
    ),
    (["backbone.head_dim=24"], "backbone.mixers.attn: head_dim=24 doesn't divide dim=64"),
    (
        ["backbone.mixers.attn.num_heads=5"],
        "backbone.mixers.attn: num_heads=5 doesn't divide dim=64",
    ),
    (
        ["backbone.mixers.attn.num_heads=4", "backbone.mixers.attn.num_kv_heads=3"],
        "backbone.mixers.attn: num_kv_heads=3 doesn't divide num_heads=4",
    ),
    (
        ["backbone=looped", "backbone.depth.prelude=4"],
        "depth.prelude=4 and depth.coda=0 leave nothing to loop over 4 layers",
    ),
    (
        ["depth=mor", "backbone.depth.route=token", "backbone.depth.capacity=[0.5,0.5]"],
        r"depth.capacity=\[0.5, 0.5\] .* depth.route=token .*: set route=expert, or capacity=null",
    ),
    (["backbone.layout="], "backbone.layout is empty"),
    (['backbone.layout="gdn attn"'], 'backbone.layout="gdn attn": no mixer is called "gdn" here'),
    (["backbone.num_layers=0"], "backbone.num_layers=0 must be at least 1"),
    (["backbone.target_parameters=10"], "backbone.target_parameters=10 can't be met within 3%"),
    (["backbone.vocab_size=7"], "backbone.vocab_size=7, but the corpus's tokenizer has"),
    (
        ["parallel.accumulate=3"],
        "trainer.rows_per_step=8 can't be cut into parallel.devices=1 .* parallel.accumulate=3",
    ),
    (
        ["parallel.devices=4", "parallel.accumulate=4"],
        "trainer.rows_per_step=8 can't be cut into .* choose a multiple of 16",
    ),
    (["parallel.devices=0"], "parallel.devices=0 must be at least 1"),
    (["trainer.max_steps=0"], "trainer.max_steps=0 must be at least 1"),
    (["trainer.gradient_clip=nan"], "trainer.gradient_clip=nan must be at least 0"),
    (["stages=[]"], "stages is empty: a run needs at least one stage"),
    (["stages.0.steps=2000"], "stages ask for 2000 steps, trainer.max_steps=1000"),
    (["stages.0.schedule.decay=1.5"], r"stages\[0\].schedule.warmup=.* add up to at most 1"),
    (["stages.0.objective.chunk_size=0"], r"stages\[0\].objective.chunk_size=0"),
    (
        ["stages.0.objective.over=expected"],
        r"stages\[0\].objective.over=expected goes by a gate's chances",
    ),
    (
        ["depth=mor", "stages.0.objective.jacobian=0.1"],
        r"stages\[0\].objective.jacobian=0.1 follows every token .* depth.route=expert",
    ),
    (["stages.0.trainable=[heads]"], r"stages\[0\].trainable: the backbone has no part heads"),
    (
        ["backbone.mixers.attn.causal=false"],
        r"stages\[0\].objective.fill=false: the backbone transformer is non-causal",
    ),
    (
        ["backbone=trm", "backbone.mixers.attn.window=4"],
        "backbone.mixers.attn: causal=false sees the whole document, but window=4",
    ),
    (["backbone=trm", "data.loss.question=1"], "data.loss.question=1.0: the backbone trm is non"),
    (
        ["backbone=hrm", "experiment=smoke"],
        r"eval.budgets.traces=\[none, full\]: the backbone hrm is non-causal and fills answers in",
    ),
    (["optim.lr=nan"], "optim.lr=nan must be a number above 0"),
    (["data.context=8"], "data.context=8 .* at least 16"),
    (["data.sources.direct.levels=[]"], r"data.sources.direct.levels=\[\]"),
    (["+eval.tasks={s3_swaps: {levels: [900]}}"], "eval.tasks.s3_swaps: .*900"),
    (
        ["+eval.tasks={s4: {levels: [2]}}"],
        "eval.tasks.s4: task=s4 is not a task: use one of",
    ),
    (["eval.items=0"], "eval.items=0 must be at least 1"),
    (["study.jobs=0"], "study.jobs=0 must be at least 1"),
    (["experiment_name=../x"], "experiment_name=../x must be a folder name"),
    (["runs="], "runs is empty"),
    (
        ["latent=chunk"],
        "latent=chunk cuts bytes into chunks, and data.tokenizer.kind=symbolic has tokens of "
        "several already: set data.tokenizer.kind=bytes",
    ),
    (
        ["latent=chunk", "data=smoke_bytes", "data.tokenizer.kind=bpe"],
        "latent=chunk cuts bytes into chunks, and data.tokenizer.kind=bpe",
    ),
    (
        ["latent=chunk", "data=smoke_bytes", "backbone=mor"],
        "latent=chunk counts what each byte ran by its chunks, and depth.route lets some",
    ),
    (
        ["latent=chunk", "data=smoke_bytes", "backbone=ouro"],
        "latent=chunk counts what each byte ran by its chunks, and depth.stop=gate:0.9 lets some",
    ),
    (
        ["latent=chunk", "data=smoke_bytes", "depth=looped", "stages.0.objective.over=uniform"],
        r"stages\[0\].objective.over=uniform reads every token after every loop, and latent=chunk",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "message"), [*MISSPELT, *WRONG_TYPE, *UNKNOWN_CHOICE, *IMPOSSIBLE]
)
def test_it_is_refused_by_name(
    overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register_schemas()

    def act() -> None:
        with initialize_config_module(config_module="configs", version_base="1.3"):
            to_config(compose("train", overrides))

    line = refusal(capsys, "train", act)
    assert re.search(message, line), line
    assert "object_type" not in line and "full_key" not in line


def test_what_plus_adds_where_it_belongs_is_taken() -> None:
    """A new source, a new task to ask."""
    register_schemas()
    added = "+data.sources={words: {task: a5, levels: [4]}}"
    with initialize_config_module(config_module="configs", version_base="1.3"):
        config, plain = to_config(compose("train", [added, "+eval.tasks={a5: {levels: [4]}}"]))
    assert sorted(config.data.sources) == ["direct", "words"]
    assert config.data.sources["words"].levels == [4]
    assert plain["eval"]["tasks"].keys() == {"a5"}
