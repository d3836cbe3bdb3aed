"""Load an export as other people do, in a process of its own, and compare what it says."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from models.backbone import Backbone

LENGTH = 16
_CLOSE = 1e-3
_SCRIPT = """\
import sys
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, asked, answered = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
logits = model(load_file(asked)["tokens"]).logits.detach().contiguous()
save_file({"logits": logits}, answered)
"""


def can_check() -> bool:
    """Whether transformers is installed, which publishing itself does without."""
    return importlib.util.find_spec("transformers") is not None


@torch.no_grad()
def check_export(backbone: Backbone, folder: Path) -> None:
    """Load an export in an isolated process and compare its logits with the backbone's.

    Raises:
        ValueError: it can't be loaded, or says something else.
    """
    size = backbone.config.vocab_size
    tokens_BT = (7 + 13 * torch.arange(LENGTH)[None]) % size
    with tempfile.TemporaryDirectory() as name:
        asked, answered = Path(name) / "asked.safetensors", Path(name) / "answered.safetensors"
        save_file({"tokens": tokens_BT}, asked)
        # Its own cache, so that no earlier copy of the source files can hide a fault.
        variables = {"HF_HOME": name, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        secretless = {k: v for k, v in os.environ.items() if k != "HF_TOKEN"}
        done = subprocess.run(
            [sys.executable, "-I", "-c", _SCRIPT, str(folder.resolve()), str(asked), str(answered)],
            env=secretless | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
            raise ValueError(f"the export can't be loaded: {last}")
        said_BTV = load_file(answered)["logits"]
    out = backbone(tokens_BT)
    own_BTV = out.readout(out.hidden_BTD)
    apart = float((said_BTV - own_BTV).abs().max())
    if not apart <= _CLOSE * max(1.0, float(own_BTV.abs().max())):
        raise ValueError(f"the export says something else than the run: logits differ by {apart}")
