"""`python -m eval.speed`: speed of backbones, mixers, loops, thoughts, data, and processes."""

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.atomic import write_atomically
from eval.machine import machine_facts, matmul_rate
from eval.speed_backbones import BackboneSpeedConfig, measure_backbones
from eval.speed_data import DataSpeedConfig, measure_data
from eval.speed_depth import DepthSpeedConfig, measure_depths
from eval.speed_latent import LatentSpeedConfig, measure_latents
from eval.speed_mixers import MixerSpeedConfig, measure_mixers
from eval.speed_parallel import ParallelSpeedConfig, measure_parallel
from eval.terminal import console

SpeedConfig = (
    BackboneSpeedConfig
    | MixerSpeedConfig
    | DepthSpeedConfig
    | LatentSpeedConfig
    | DataSpeedConfig
    | ParallelSpeedConfig
)
SUITES: dict[str, type[SpeedConfig]] = {
    "backbones": BackboneSpeedConfig,
    "mixers": MixerSpeedConfig,
    "depth": DepthSpeedConfig,
    "latent": LatentSpeedConfig,
    "data": DataSpeedConfig,
    "parallel": ParallelSpeedConfig,
}
HELP = """\
Measure speed, each backbone or layer beside another: transformers' of the same shape, where that is
installed, or a looped backbone's unlooped twin. They take turns; ratios are of medians of one run.

  python -m eval.speed
  python -m eval.speed precision=bf16 backbones=[transformer,gdn_hybrid] rounds=5
  python -m eval.speed suite=mixers threads=1
  python -m eval.speed suite=mixers mixers=[attn,gdn] lengths=[512,2048] most_seconds=5
  python -m eval.speed suite=depth threads=1
  python -m eval.speed suite=latent threads=1
  python -m eval.speed suite=data threads=1
  python -m eval.speed suite=parallel
  python -m eval.speed suite=parallel device=cuda precision=bf16 dim=768 layers=12 batch=32 steps=40

  suite=backbones       whole models in training and decoding
  suite=mixers          each mixer's layer alone: forward, forward+backward and decoding time and
                        peak memory against sequence length, on CUDA also the cost of going through
                        our dispatch
  suite=depth           training FLOP/s of looped backbones over that of their unlooped twins of as
                        many training FLOPs, and whether a loop count that varies compiles anew
  suite=latent          thoughts made one by one, with states or by whole passes, beside Jacobi
                        rounds, in training; many questions in one batch beside a plain loop
  suite=data            drawing, encoding and packing documents; reading batches, beside a raw
                        memory map and torch's DataLoader; what a training step waits for them
  suite=parallel        training runs of several processes beside one; on a GPU, what FSDP2 of one
                        process adds to a step

Of all suites:
  dim=256 head_dim=64       the shape
  rounds=3                  turns after one to warm up (suite=depth: 5; suite=parallel: 2, and none
                            to warm up)
  precision=32|bf16         of training; decoding is float32
  threads=0                 CPU threads (0: torch's choice; suite=parallel: 1, of each process)
  device=cpu|cuda
  clock=wall|process        process is this program's own CPU time, for machines that are busy with
                            other work; it needs threads=1 (not of suite=parallel)
  output=PATH               runs/speed/speed.json, or mixers.json, depth.json, latent.json,
                            data.json, parallel.json there; tables as .md stand beside mixers,
                            depth, latent and parallel, rows as .csv and a picture as .png beside
                            mixers and depth

Of suite=backbones and suite=mixers:
  peers=true                measure transformers' models too
  peer_chunk=256            chunk size of transformers' Mamba-2: 256 is its own default; on CPUs 64
                            is faster, and what ours uses

Of suite=backbones and suite=depth:
  vocab_size=512            more of the shape
  context=512 batch=8       tokens of a training step (suite=depth: batch=4)

Of suite=backbones:
  backbones=[...]   of transformer, gdn_hybrid, mamba2_hybrid, gdn, looped, mamba2
  layers=4          more of the shape
  prompt=16 new_tokens=64   what is decoded, greedily, at batch 1 and 8: ours in a loop over its
                            state, a peer through its own `generate`, both with the prompt read

Of suite=latent:
  layouts=[...]             of attn and "3*gdn attn"
  thoughts=[2,4,8] jacobi=[1,3]   thoughts before an answer, and rounds beside as many as thoughts
  layers=4 question=96 answer=8   more of the shape, words
  batch=16 questions=64     documents of a training step, questions that are answered

Of suite=data:
  documents=4000 tokens=8000000   that are made, and that are read
  context=1024 batch=32     rows and tokens of a batch
  layers=4                  of the backbone whose step is compared with reading

Of suite=parallel:
  backbones=[...]           of transformer, gdn_hybrid, looped (a quarter of the layers, 4 times)
  processes=0               that train together (0: two on a CPU, all GPUs on CUDA)
  ways=[...]                of single (one process), threads (one, with as many threads as all
                            processes have), fsdp2_alone (one process), ddp and fsdp2. The others
                            are held against the first. Default: all but fsdp2_alone on a CPU, all
                            but threads on CUDA; single and fsdp2_alone where processes=1
  layers=4 context=512 batch=8    more of the shape; rows of a global batch, the same in every way
  optim=adamw               or muon, whose last losses agree less: it computes in bfloat16
  steps=6 warm_up=2         steps of a run, and how many of them are not counted; each run is a
                            `python -m train` of its own, in a temporary folder

Of suite=mixers:
  mixers=[...]              of the registered ones; default all
  lengths=[512,1024,2048,4096,8192,16384]   tokens of a sequence, rising
  batch=1                   sequences
  new_tokens=16             decoded after each length, a turn
  most_seconds=10           a call predicted to take longer is skipped, and the table says so
  most_gigabytes=8          the same for its memory

Of suite=depth:
  cases=[...]               of attn_1x4, attn_2x4, gdn_hybrid_4x4 (layers x loops), window (prelude,
                            core, coda; the gradient of the last two loops of four) and relaxed_1x4
                            (low-rank weights of each loop's own)
  compile=true              also time compiled blocks, and count their graphs over training steps of
                            1, 2, ... loops; needs a C++ compiler and some minutes
  loop_counts=8             how many loop counts
"""


def parse(arguments: Sequence[str]) -> SpeedConfig:
    """Read `key=value` arguments; ValueError names the wrong one in one line."""
    try:
        given = OmegaConf.from_dotlist([str(argument) for argument in arguments])
        suite = str(given.get("suite", "backbones"))
        if suite not in SUITES:
            raise ValueError(f"suite={suite} is not known: choose {' or '.join(SUITES)}")
        schema = OmegaConf.structured(SUITES[suite])
        config = OmegaConf.to_object(OmegaConf.merge(schema, given))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    assert isinstance(config, SpeedConfig)
    config.validate()
    return config


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status, 1 where a mixer, a case or a run failed."""
    if set(arguments) & {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0
    try:
        config = parse(arguments)
    except ValueError as error:
        print(f"eval.speed: {error}", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    if config.threads:
        torch.set_num_threads(config.threads)
    facts = machine_facts(config.device)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    peak = matmul_rate(dtype, config.device)
    to = console()
    device = str(facts["gpu"] or facts["processor"])
    where = f"{device}, {facts['threads']} threads"
    to.print(f"{where}, load {facts['load_average']:.1f}, {peak / 1e9:,.0f} GFLOP/s in products")
    if isinstance(config, MixerSpeedConfig):
        measured = measure_mixers(config, where, to)
    elif isinstance(config, DepthSpeedConfig):
        measured = measure_depths(config, where, to)
    elif isinstance(config, LatentSpeedConfig):
        measured = measure_latents(config, where, to)
    elif isinstance(config, DataSpeedConfig):
        measured = measure_data(config, to)
    elif isinstance(config, ParallelSpeedConfig):
        measured = measure_parallel(config, device, to)
    else:
        measured = measure_backbones(config, peak, to)
    machine = facts | {"matmul_flops_per_second": peak}
    content = {"settings": asdict(config), "machine": machine} | measured
    write_atomically(Path(config.output), (json.dumps(content, indent=1) + "\n").encode())
    print(f"speed: {config.output}")
    return int(bool(measured.get("failures")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
