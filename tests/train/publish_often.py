"""A process whose hub is a server of the test: publishes several times, then loads.

    python publish_often.py RUN        HF_ENDPOINT and HF_TOKEN say where and as whom

Prints one line of JSON: status and output of each command, and what was loaded.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from train.publish import main

torch.set_num_threads(1)


def said(*arguments: str) -> dict[str, Any]:
    """Run the verb inside this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*arguments, "check=false"])
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def loaded(name: str, **where: str) -> list[int]:
    """Load from the hub, and write a few tokens."""
    model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, **where)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
    prompt = tokenizer("<s3_swaps> L2 <full> a b <think>", return_tensors="pt")
    return model.generate(**prompt, max_new_tokens=5)[0].tolist()


if __name__ == "__main__":
    run = f"run={sys.argv[1]}"
    told: dict[str, Any] = {
        "lost": said(run, "to=me/model", "shard_size=20KB"),
        "first": said(run, "to=me/model", "shard_size=20KB"),
        "second": said(run, "to=me/model"),
        "forced": said(run, "to=me/model", "force=true"),
        "branch": said(run, "to=me/model", "revision=other"),
        "public": said(run, "to=me/shown", "private=false", "licence=mit"),
        "narrowed": said(run, "to=me/shown", "force=true"),
        "opened": said(run, "to=me/model", "force=true", "private=false"),
        "stranger": said(run, "to=me/..model"),
    }
    told["loaded"] = loaded("me/model"), loaded("me/model", revision="other")
    print(json.dumps(told))
