"""A process that can't import this project: loads exports and compares them with what they say.

    python -I load_exports.py FOLDER      each folder in it is an export, with expected.* beside

Prints one line of JSON: for each export, what differed.
"""

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

sys.path[:] = [p for p in sys.path if not (Path(p or ".") / "models" / "backbone.py").exists()]
try:
    importlib.import_module("models")
except ImportError:
    pass
else:
    raise SystemExit("the project can be imported here, so nothing would be shown")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

torch.set_num_threads(1)
CLOSE = 1e-9


def differences(folder: Path) -> dict[str, Any]:
    """What an export does otherwise than the backbone that it was made of."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    tensors = load_file(folder / "expected.safetensors")
    says = json.loads((folder / "expected.json").read_text())
    tokens, mask, real = tensors["tokens"], tensors["mask"], tensors["mask"].bool()
    found: dict[str, Any] = {
        "keys": any(report[name] for name in ("missing_keys", "unexpected_keys")),
        "counters": sum(float(b.abs().sum()) for n, b in model.named_buffers() if "load_E" in n),
        "project": [name for name in sys.modules if name.split(".")[0] == "models"],
    }
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask).logits
    found["logits"] = float((logits - tensors["logits"])[real].abs().max()) > CLOSE
    if not says["greedy"]:
        return found
    asked = {"attention_mask": mask, "max_new_tokens": says["new_tokens"]}
    new = model.generate(tokens, **asked)[:, tokens.shape[1] :].tolist()
    pairs = zip(new, says["greedy"], strict=True)
    found["greedy"] = [(a, b) for a, b in pairs if a[: len(b)] != b]
    torch.manual_seed(says["seed"])
    drawn = model.generate(tokens, do_sample=True, top_k=0, **asked)[:, tokens.shape[1] :].tolist()
    found["sampled"] = drawn != says["sampled"]
    if not says["needs_cache"]:
        found |= without_cache(model, tokens, asked | {"max_new_tokens": 4}, new)
    return found


def without_cache(
    model: Any, tokens: torch.Tensor, asked: dict[str, Any], greedy: list[list[int]]
) -> dict[str, Any]:
    """Beams with and without a cache; and each prompt alone, where no padding is."""
    beams = {"num_beams": 3, "num_return_sequences": 2, **asked}
    cached, anew = (model.generate(tokens, use_cache=use, **beams) for use in (True, False))
    row, mask = 0, asked["attention_mask"][0].bool()
    alone = model.generate(tokens[row : row + 1, mask], max_new_tokens=4)[0, int(mask.sum()) :]
    short = alone.tolist() != greedy[row][: len(alone)]
    return {"beams": cached.tolist() != anew.tolist(), "alone": short}


def main(root: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        name = json.loads((folder / "expected.json").read_text())["name"]
        try:
            found[name] = differences(folder)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    folder = next(path for path in root.iterdir() if path.is_dir())
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    ids = tokenizer("<s3> L2 <full> a b <think>").input_ids
    found["tokenizer"] = {"text": tokenizer.decode(ids) != "<s3> L2 <full> a b <think>"}
    return found


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        result = main(Path(sys.argv[1]))
    print(json.dumps(result))
