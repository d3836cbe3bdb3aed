"""Which of its loops' memories a looped layer keeps between calls.

    per_loop   each loop its own: R states, exact
    carry      the same, and loop r also reads loop r-1's recurrent memory at the same position:
               o_r(t) = read(q_r(t), S_r(t)) + rho read(q_r(t), S_{r-1}(t)), rho learned for each
               head, zero at first; exact, and it never sees the future
    last       one state, the last loop's, which all loops read (Ouro at decoding, arXiv 2510.25741)
    first      one state, the first loop's: the known bad control
    budget     k states, loop r uses number r mod k (Huginn's, arXiv 2502.05171, section 6)

The last three are approximations of a trained model at decoding: within one call each loop sees
its own, exactly; what was read in earlier calls is seen as a later (or the first) loop left it.

Legend: R recurrences.
"""

MEMORIES = ("per_loop", "carry", "last", "first", "budget")
EXACT = ("per_loop", "carry")


def kept_states(memory: str, budget: int, loops: int) -> int:
    """States that a looped layer keeps."""
    if memory in EXACT:
        return loops
    return 1 if memory in ("last", "first") else min(budget, loops)


def state_of(memory: str, budget: int, loop: int, loops: int) -> tuple[int, bool]:
    """Return which state a loop reads, and whether what it leaves is kept."""
    if memory in EXACT:
        return loop, True
    if memory == "first":
        return 0, loop == 0
    kept = kept_states(memory, budget, loops)
    return loop % kept, loop + kept >= loops
