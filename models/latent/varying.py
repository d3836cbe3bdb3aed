"""Depths in which tokens run different numbers of loops, where a scheme can't count them."""

from ..depth.depth import Depth
from ..depth.loop_costs import LoopCosts


def refuse_varying(depth: Depth, why: str) -> None:
    """Refuse a depth whose tokens stop early or are left behind.

    Raises:
        ValueError: naming the key; `why` says who can't count what they run.
    """
    routed = isinstance(depth, LoopCosts) and depth.route is not None
    if routed or depth.default_stop:
        key = "depth.route" if routed else f"depth.stop={depth.default_stop.text}"
        raise ValueError(
            f"{why}, and {key} lets some of them run fewer loops: set depth.stop=none and "
            "depth.route=none, or latent=none"
        )
