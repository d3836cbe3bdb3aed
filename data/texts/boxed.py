"""The boxed answer of a worked solution in LaTeX."""

import re

_COMMAND = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is a sign like any other


class FieldError(ValueError):
    """A record hasn't what is needed of it; the message says what, in the same words each time."""


def boxed(solution: str) -> str:
    """The content of the last `\\boxed{...}` or `\\fbox{...}`, whose braces may be nested.

    Raises:
        FieldError: there is none, it is empty, or its braces don't close.
    """
    commands = list(_COMMAND.finditer(solution))
    if not commands:
        raise FieldError("the solution has no \\boxed answer")
    rest = solution[commands[-1].end() :]
    # `\boxed 5` stands in a few solutions.
    content = _braced(rest) if rest.startswith("{") else re.split(r"[\s$]", rest)[0].rstrip(".")
    if not content.strip():
        raise FieldError("the \\boxed answer is empty")
    return content.strip()


def _braced(text: str) -> str:
    """What stands between the brace that the text begins with and its partner."""
    depth = 0
    for brace in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[1 : brace.start()]
    raise FieldError("the braces of \\boxed don't close")
