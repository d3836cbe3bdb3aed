"""p-hop induction: depth (Sanford et al. 2024, 2402.09268; set-up of Saunshi et al. 2502.17416).

With positions counted from 0 and i the position where a hop starts,

    find_1(v, i) = max({0} u {j <= i : v_{j-1} = v_i}),    find_p = find_1 iterated p times,

one hop goes to the symbol after the latest earlier copy of the present symbol. The question is v,
the level is p, and the answer is v at find_p(v, last position); log p loops suffice.
"""

import numpy as np

from .task import Problem, Task

ALPHABET = "abcd"


class PHop(Task):
    """The symbol p hops back from the end of a random sequence over 4 letters.

    Every hop is guaranteed: sequences where the p-th hop falls to position 0, which stands for "no
    earlier copy", are drawn again, and neighbours differ, for after `a a` a hop would stay where it
    is. So a level is that many real moves. Length is 8 p (at least 16), which gives the reference's
    256 at p = 32; a hop moves 3 places on average.

    The trace writes the symbol after each hop (`full`), after every second one, the last included
    (`short`, also the minimal trace), or each hop as `from > to` (`verbose`).
    """

    name = "phop"
    capability = "depth"
    levels = (1, 2, 4, 8, 16)
    beyond = (24, 32)
    highest = 32

    def draw(self, rng: np.random.Generator, level: int) -> Problem:
        """Sequences drawn until one has the hops; hardly any is rejected at these lengths."""
        while True:
            sequence = without_repeats(rng, self.length(level))
            hops = hop_values(sequence, level)
            if len(hops) == level:
                break
        return Problem(
            self.name, level, " ".join(sequence), hops[-1], tuple(hops), (level + 1) // 2
        )

    def length(self, level: int) -> int:
        """How many symbols a question of that level has."""
        return max(16, 8 * level)

    def verbose(self, problem: Problem) -> tuple[str, ...]:
        """Each hop with where it came from."""
        rows = zip((problem.symbols[-1], *problem.steps), problem.steps, strict=False)
        return tuple(f"{start} > {end}" for start, end in rows)

    def chance(self, level: int) -> float:
        """One in four: the letters are exchangeable."""
        return 1 / len(ALPHABET)

    def num_problems(self, level: int) -> None:
        """Over a million even at the shortest length."""
        return None

    def symbols(self) -> frozenset[str]:
        """None beyond the letters."""
        return frozenset()


def without_repeats(rng: np.random.Generator, length: int) -> str:
    """A uniform sequence over the alphabet whose neighbours differ."""
    moves = rng.integers(1, len(ALPHABET), size=length)
    moves[0] = rng.integers(len(ALPHABET))
    return "".join(ALPHABET[letter] for letter in (np.cumsum(moves) % len(ALPHABET)).tolist())


def hop_values(sequence: str, hops: int) -> list[str]:
    """The symbols at find_1 ... find_p from the last position; fewer where a hop doesn't exist."""
    values, position = [], len(sequence) - 1
    for _ in range(hops):
        position = sequence.rfind(sequence[position], 0, position) + 1
        if position == 0:
            break
        values.append(sequence[position])
    return values
