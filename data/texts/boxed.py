"""The boxed answer of a worked solution in LaTeX."""


class FieldError(ValueError):
    """A record hasn't what is needed of it; the message says what."""


def boxed(solution: str) -> str:
    """The content of the last `\\boxed{...}` or `\\fbox{...}`, whose braces may be nested.

    Raises:
        FieldError: there is none, or its braces don't close.
    """
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    if start < 0:
        raise FieldError("the solution has no \\boxed answer")
    rest = solution[start:].partition("boxed" if solution[start + 1] == "b" else "fbox")[2].lstrip()
    if not rest.startswith("{"):  # `\boxed 5` stands in a few solutions
        return rest.split("$")[0].split()[0].rstrip(".")
    depth = 0
    for place, sign in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0:
            return rest[1:place].strip()
    raise FieldError("the braces of \\boxed don't close")
