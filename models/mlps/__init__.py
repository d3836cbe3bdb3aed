"""Channel mixing: what a block does to each position alone, after its mixer."""
