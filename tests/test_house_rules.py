"""The rules of the house, read from the syntax trees: who imports what, how large things get."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"models", "data", "train", "eval", "configs", "tests"}
MAY_IMPORT = {
    "models": {"models"},
    "data": {"data"},
    "eval": {"eval", "models", "data"},
    "train": {"train", "eval", "models", "data"},
    "configs": set(),
    "tests": OURS - {"configs"},
}
VERBS = {
    *("__main__", "schema", "inspect", "report", "speed", "study", "plan", "publish"),
    *("sbatch", "thoughts", "chunks", "concepts", "verb"),
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name (after the dots, when relative), where, and how."""

    name: str
    line: int
    level: int = 0
    plain: bool = False
    top: bool = True
    guarded: bool = False

    @property
    def package(self) -> str:
        return "" if self.level else self.name.split(".")[0]


@dataclass
class Module:
    """One source file under `root`."""

    root: Path
    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def name(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @property
    def folder(self) -> str:
        return self.name.split("/")[0]

    @cached_property
    def imports(self) -> list[Import]:
        return list(imports_in(self.tree.body))


def imports_in(body: list[ast.stmt], top: bool = True, guarded: bool = False) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, 0, True, top, guarded)
        elif isinstance(node, ast.ImportFrom):
            yield Import(node.module or "", node.lineno, node.level, False, top, guarded)
        else:
            inside = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            tried = guarded or isinstance(node, ast.Try)
            yield from imports_in(statements_of(node), inside, tried)


def statements_of(node: ast.AST) -> list[ast.stmt]:
    """All statements directly inside a node, its handlers and its match cases."""
    found: list[ast.stmt] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            found.append(child)
        elif isinstance(child, ast.excepthandler | ast.match_case):
            found.extend(statements_of(child))
    return found


Rule = Callable[[Module], Iterator[tuple[int, str]]]
RULES: dict[str, Rule] = {}


def rule(function: Rule) -> Rule:
    RULES[getattr(function, "__name__", "")] = function
    return function


@rule
def imports_run_one_way(module: Module) -> Iterator[tuple[int, str]]:
    for found in module.imports:
        if found.package in OURS - MAY_IMPORT.get(module.folder, OURS):
            yield found.line, f"{module.folder} must not import {found.package}"


@rule
def own_packages_are_imported_with_from(module: Module) -> Iterator[tuple[int, str]]:
    for found in module.imports:
        if found.plain and found.package in OURS:
            yield found.line, f"write `from {found.name} import name`"


@rule
def models_name_their_modules(module: Module) -> Iterator[tuple[int, str]]:
    if module.folder != "models":
        return
    for found in module.imports:
        if found.package in OURS:
            yield found.line, f"write a relative import of {found.name}"
        elif found.level and not names_a_module(module, found):
            yield found.line, "a relative import names a module, never a package"
        elif found.level and found.guarded:
            yield found.line, "a relative import inside try is lost on export"


def names_a_module(module: Module, found: Import) -> bool:
    if not found.name:
        return False
    folder = module.path.parents[found.level - 1]
    return folder.joinpath(*found.name.split(".")).with_suffix(".py").is_file()


@rule
def models_docstrings_hold_no_imports(module: Module) -> Iterator[tuple[int, str]]:
    """transformers collects the files of a checkpoint with a regular expression over the text."""
    if module.folder != "models":
        return
    lines = {found.line for found in module.imports if found.level}
    for number, line in enumerate(module.text.splitlines(), 1):
        if number not in lines and re.match(r"\s*(from\s+\.\S*\s+import|import\s+\.)", line):
            yield number, "text that reads like a relative import breaks the export"


@rule
def models_need_only_torch(module: Module) -> Iterator[tuple[int, str]]:
    if module.folder != "models" or module.name == "models/hf.py":
        return
    allowed = sys.stdlib_module_names | {"torch", ""} | OURS
    for found in module.imports:
        if found.top and found.package not in allowed:
            yield found.line, f"{found.package}: models import torch alone at module level"


def confined(packages: set[str], allowed: Callable[[Module], bool]) -> Rule:
    def check(module: Module) -> Iterator[tuple[int, str]]:
        if module.folder == "tests" or allowed(module):
            return
        for found in module.imports:
            if found.package in packages:
                yield found.line, f"{found.package} has no place in {module.name}"

    return check


RULES["lightning_trains"] = confined(
    {"lightning", "pytorch_lightning"},
    lambda module: module.folder == "train" or module.name == "data/module.py",
)
RULES["hydra_stays_at_the_door"] = confined(
    {"hydra", "omegaconf"},
    lambda module: module.folder != "models" and module.path.stem in VERBS,
)
RULES["transformers_only_adapts"] = confined(
    {"transformers"},
    lambda module: (
        module.name == "models/hf.py"
        or (module.folder == "eval" and re.match(r"speed|.*peers?$|harness", module.path.stem))
        is not None
    ),
)
RULES["wandb_comes_through_lightning"] = confined(
    {"wandb"}, lambda module: module.name == "train/publish.py"
)
RULES["tables_and_figures_are_drawn_in_eval"] = confined(
    {"polars", "plotly", "matplotlib"},
    lambda module: (
        module.folder == "eval" or module.name in ("data/card_figures.py", "data/texts/readers.py")
    ),
)


@rule
def nothing_is_unpickled(module: Module) -> Iterator[tuple[int, str]]:
    for found in module.imports:
        if found.package in {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}:
            yield found.line, f"{found.package} runs code from files"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and unpickles(node):
            yield node.lineno, "load with weights_only=True, and never with allow_pickle=True"


def unpickles(call: ast.Call) -> bool:
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if ast.unparse(call.func) == "torch.load":
        return keywords.get("weights_only") != "True"
    return keywords.get("allow_pickle", "False") != "False"


@rule
def files_stay_small(module: Module) -> Iterator[tuple[int, str]]:
    lines = len(module.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield MAX_FILE_LINES, f"{lines} lines; a file has at most {MAX_FILE_LINES}"


@rule
def functions_stay_small(module: Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"


@rule
def nothing_is_left_open(module: Module) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(module.text.splitlines(), 1):
        if re.search(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", line):
            yield number, "finish it, or open an issue"


@rule
def names_say_something(module: Module) -> Iterator[tuple[int, str]]:
    for part in Path(module.name).with_suffix("").parts:
        if part in {"util", "utils", "common", "helper", "helpers", "misc"}:
            yield 1, f"{part!r} says nothing about what is inside"


def violations(module: Module) -> list[tuple[str, str]]:
    return [
        (name, f"{module.name}:{line}: {message}")
        for name, check in RULES.items()
        for line, message in check(module)
    ]


def source_files() -> list[Path]:
    return sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))


def test_the_house_keeps_its_rules() -> None:
    modules = [Module(ROOT, path, path.read_text(encoding="utf-8")) for path in source_files()]
    assert modules
    assert [message for module in modules for _, message in violations(module)] == []


BAD = [
    ("imports_run_one_way", "models/a.py", "import data.tokenizer"),
    ("imports_run_one_way", "data/a.py", "def f():\n    from models.block import Block"),
    ("imports_run_one_way", "eval/a.py", "from train.module import Module"),
    ("imports_run_one_way", "train/a.py", "from configs import x"),
    ("own_packages_are_imported_with_from", "train/a.py", "import eval.ledger"),
    ("own_packages_are_imported_with_from", "tests/a.py", "import eval"),
    ("models_name_their_modules", "models/a.py", "from models.block import Block"),
    ("models_name_their_modules", "models/a.py", "from . import block"),
    ("models_name_their_modules", "models/a.py", "from .ops import delta"),
    ("models_name_their_modules", "models/ops/a.py", "from ..block.more import x"),
    ("models_name_their_modules", "models/a.py", "try:\n    from .block import x\nfinally: ..."),
    ("models_docstrings_hold_no_imports", "models/a.py", '"""Write\nfrom .x import y\n"""'),
    ("models_need_only_torch", "models/a.py", "import numpy as np"),
    ("models_need_only_torch", "models/a.py", "try:\n    import fla\nexcept ImportError: ..."),
    ("lightning_trains", "eval/a.py", "from lightning.pytorch import Trainer"),
    ("lightning_trains", "data/corpus.py", "import pytorch_lightning"),
    ("hydra_stays_at_the_door", "train/module.py", "import hydra"),
    ("hydra_stays_at_the_door", "eval/config.py", "from omegaconf import MISSING"),
    ("transformers_only_adapts", "eval/ledger.py", "import transformers"),
    ("wandb_comes_through_lightning", "train/module.py", "import wandb"),
    ("tables_and_figures_are_drawn_in_eval", "train/a.py", "import polars as pl"),
    ("nothing_is_unpickled", "data/a.py", "import pickle"),
    ("nothing_is_unpickled", "eval/a.py", "import torch\ntorch.load('x')"),
    ("nothing_is_unpickled", "eval/a.py", "import torch\ntorch.load('x', weights_only=False)"),
    ("nothing_is_unpickled", "data/a.py", "np.load('x', allow_pickle=True)"),
    ("files_stay_small", "data/a.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
    ("functions_stay_small", "data/a.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    ("nothing_is_left_open", "data/a.py", "x = 1  # TO" + "DO"),
    ("names_say_something", "data/utils.py", "x = 1"),
    ("names_say_something", "models/common/a.py", "x = 1"),
]
GOOD = [
    ("models/mixers/a.py", "import math\nimport torch\nfrom ..ops.delta import delta_rule"),
    ("models/a.py", "def f():\n    import flash_attn\nfrom .block import Block"),
    ("models/hf.py", "import transformers\nfrom .block import Block"),
    ("data/module.py", "import lightning\nfrom data.corpus import Corpus"),
    ("eval/a.py", "import torch\ntorch.load('x', weights_only=True)\nimport polars"),
    ("eval/speed.py", "import hydra\nimport transformers\nfrom models.block import Block"),
    ("train/__main__.py", "import hydra\nimport lightning\nfrom eval.ledger import Ledger"),
]


def module_at(root: Path, name: str, text: str) -> Module:
    for path in ("models/block.py", "models/ops/__init__.py", "models/ops/delta.py"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return Module(root, root / name, text)


@pytest.mark.parametrize(("name", "path", "text"), BAD)
def test_each_rule_fires(tmp_path: Path, name: str, path: str, text: str) -> None:
    assert name in {broken for broken, _ in violations(module_at(tmp_path, path, text))}


@pytest.mark.parametrize(("path", "text"), GOOD)
def test_what_the_house_allows_passes(tmp_path: Path, path: str, text: str) -> None:
    assert violations(module_at(tmp_path, path, text)) == []


def test_every_rule_is_shown_to_fire() -> None:
    assert {name for name, _, _ in BAD} == set(RULES)
