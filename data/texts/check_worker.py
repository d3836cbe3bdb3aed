"""The process in which formulas are compared: whatever a model wrote, it can only end itself.

`2^{99999999999}` is a short answer that fills any memory, and some formulas take a parser minutes.
So math-verify runs here, with a limit on memory; who asks sets the time and ends the process.
Questions come as JSON lines `[gold, answer]`, or `[gold, null]` for whether the gold can be parsed.
"""

import json
import logging
import resource
import sys

MEMORY = 2 << 30


def main() -> None:
    """Answer each line of standard input with `true` or `false`."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        print(json.dumps(_judge(parse, verify, gold, answer)), flush=True)


def _judge(parse, verify, gold: str, answer: str | None) -> bool:
    """Whether both are parsed to the same thing; parsers raise whatever they meet."""
    try:
        left = parse(f"${gold}$", parsing_timeout=None)
        if answer is None:
            return bool(left)
        right = parse(f"${answer}$", parsing_timeout=None)
        return bool(left and right and verify(left, right, timeout_seconds=None))
    except Exception:
        return False


if __name__ == "__main__":
    main()
