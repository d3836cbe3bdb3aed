"""Overwrite a fresh tensor with a product, unless a compiler is looking.

torch.compile of torch 2.11 loses the gradient that an `autograd.Function` writes out where it has
overwritten its result in place, and says nothing (2.13 does not). A compiler fuses products anyway.
"""

import torch
from torch import Tensor


def times(x: Tensor, factor: Tensor) -> Tensor:
    """`x * factor`, in x's memory where it may be."""
    return x * factor if torch.compiler.is_compiling() else x.mul_(factor)


def plus_product(x: Tensor, left: Tensor, right: Tensor, sign: int = 1) -> Tensor:
    """`x + sign * left * right`, in x's memory where it may be."""
    if torch.compiler.is_compiling():
        return x.addcmul(left, right, value=sign)
    return x.addcmul_(left, right, value=sign)
