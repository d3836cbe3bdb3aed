"""Which parts of a backbone are sharded, gathered and freed as one."""

from collections import Counter

from torch import nn

from models.backbone import Backbone


def shard_units(backbone: Backbone) -> list[nn.Module]:
    """Return the modules to shard, the root last; each holds what no unit inside it holds.

    A block that runs once is a unit. Blocks that run again and again would be gathered every time,
    so they belong to the depth, whose forward does the looping: one gather serves all loops.
    """
    depth = backbone.depth
    runs = Counter(depth.order[layer] for layer in depth.calls(2))
    once = [block for place, block in enumerate(depth.blocks) if runs[place] == 1]
    looped = [depth] if len(once) < len(depth.blocks) else []
    return [*once, *looped, backbone]
