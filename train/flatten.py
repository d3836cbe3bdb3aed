"""The source files of one backbone, as a checkpoint carries them: flat, and no more than it needs.

transformers loads only flat folders whose files import each other as `from .name import x`, so
`models/ops/delta.py` becomes `ops_delta.py`, and its imports are rewritten. The lists of mixers,
MLPs, depths and latents are cut to the kinds that the backbone uses; what is left is followed from
import to import. So a new mixer is published without a word about it here.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

MODELS = Path(__file__).parents[1] / "models"
ENTRY = "hf.py"
LISTING = "listing.py"
_IMPORT = re.compile(r"from\s+\.[\w.]*\s+import")


def flattened(kinds: Mapping[str, set[str]], root: Path = MODELS) -> dict[str, str]:
    """Return the text of every file that a backbone needs, by its name in the flat folder.

    Args:
        kinds: for each folder with a list, the kinds to keep in it; other lists stay whole.
        root: the folder of the models.
    """
    files: dict[str, str] = {}
    todo = [root / ENTRY]
    while todo:
        path = todo.pop()
        name = flat_name(path, root)
        if name in files:
            continue
        text = path.read_text(encoding="utf-8")
        if path.name == LISTING and path.parent.name in kinds:
            text = cut_listing(text, kinds[path.parent.name])
        files[name] = _rewritten(text, path, root)
        todo += [target for _, target in _imports(text, path)]
    return dict(sorted(files.items()))


def flat_name(path: Path, root: Path) -> str:
    """Return what a file is called in the flat folder: its folders before its name."""
    return "_".join(path.relative_to(root).parts)


def cut_listing(text: str, kinds: set[str]) -> str:
    """Leave only some entries in a listing's dictionary, and the imports that these need."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            entries = zip(node.keys, node.values, strict=True)
            kept = [e for e in entries if isinstance(e[0], ast.Constant) and e[0].value in kinds]
            node.keys, node.values = [key for key, _ in kept], [value for _, value in kept]
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    rest = [node for node in tree.body if node not in imports]
    used = {n.id for part in rest for n in ast.walk(part) if isinstance(n, ast.Name)}
    for node in imports:
        node.names = [alias for alias in node.names if (alias.asname or alias.name) in used]
    tree.body = [node for node in tree.body if node not in imports or getattr(node, "names", ())]
    return ast.unparse(tree) + "\n"


def _imports(text: str, path: Path) -> Iterator[tuple[ast.ImportFrom, Path]]:
    """Relative imports of a file, with the file that each names."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.module is not None, f"{path}:{node.lineno}: the import names no module"
            target = path.parents[node.level - 1].joinpath(*node.module.split("."))
            yield node, target.with_suffix(".py")


def _rewritten(text: str, path: Path, root: Path) -> str:
    """Let relative imports name files of the flat folder."""
    lines = text.splitlines(keepends=True)
    for node, target in _imports(text, path):
        flat = flat_name(target, root).removesuffix(".py")
        line = lines[node.lineno - 1]
        changed, count = _IMPORT.subn(f"from .{flat} import", line, count=1)
        assert count == 1, f"{path}:{node.lineno}: {line!r} is no import that can be rewritten"
        lines[node.lineno - 1] = changed
    return "".join(lines)
