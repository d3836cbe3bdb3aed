"""Keep a quadratic mixer from taking minutes: predict a call from the shorter ones before it."""

import math
from collections import defaultdict

_STEEPEST, _FLATTEST = 2.0, 1.0


class Guard:
    """Predicts time and memory at the next length, and refuses what is too much.

    A figure grows as its last two lengths say, by a power between 1 and 2; after a single length it
    is taken to be quadratic.
    """

    def __init__(self, most: dict[str, float]) -> None:
        """Take the most that is allowed of each unit, such as {"s": 10, "GB": 8}."""
        self.most = most
        self._seen: dict[tuple[str, str, str], list[tuple[int, float]]] = defaultdict(list)

    def saw(self, who: str, kind: str, unit: str, length: int, figure: float) -> None:
        """Remember a figure."""
        self._seen[who, kind, unit].append((length, max(figure, 1e-12)))

    def predict(self, who: str, kind: str, unit: str, length: int) -> float:
        """Return the figure to expect at a length; 0 where nothing is known."""
        seen = self._seen[who, kind, unit]
        if not seen:
            return 0.0
        last_length, last = seen[-1]
        power = _STEEPEST
        if len(seen) > 1:
            before_length, before = seen[-2]
            power = math.log(last / before) / math.log(last_length / before_length)
        power = min(_STEEPEST, max(_FLATTEST, power))
        return last * (length / last_length) ** power

    def refuses(self, who: str, kind: str, length: int) -> str:
        """Return why a call should be skipped, or nothing."""
        for unit, most in self.most.items():
            expected = self.predict(who, kind, unit, length)
            if expected > most:
                return f"skipped: about {expected:.3g} {unit} expected, at most {most:g} allowed"
        return ""
