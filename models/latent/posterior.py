"""The posterior of a document's latent vectors: a Gaussian, fitted by a few fast gradient steps.

    q(z) = N(mu, diag sigma^2)          z = mu + sigma e,  e ~ N(0, I)
    minimise over mu, log sigma^2:      E_q[-log p(x | z)] + KL(q | N(0, I))

That is the fast part of fast and slow learning (arXiv 2502.01567, section 2.3); the slow one, of
the weights, is the trainer's.

Legend: N documents, P vectors of a document, W width of a vector, S steps, M positions that
predict, D model width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .latent import Readout

READ_AT_ONCE = 4096
"""Positions whose logits are held at once."""


@dataclass(frozen=True)
class Posterior:
    """One Gaussian for each document.

    Attributes:
        mean_NPW: mu.
        log_variance_NPW: log sigma^2.
    """

    mean_NPW: Tensor
    log_variance_NPW: Tensor

    @classmethod
    def prior(cls, shape: tuple[int, int, int], like: Tensor) -> "Posterior":
        """Where fitting begins: the standard Gaussian, at least float32, where `like` is."""
        wide = torch.promote_types(like.dtype, torch.float32)
        zeros_NPW = torch.zeros(shape, device=like.device, dtype=wide)
        return cls(zeros_NPW, zeros_NPW.clone())

    def sample(self, noise_NPW: Tensor) -> Tensor:
        """Return mu + sigma e."""
        return self.mean_NPW + (0.5 * self.log_variance_NPW).exp() * noise_NPW

    def divergence(self) -> Tensor:
        """KL to the prior of each document, nats, `[N]`.

        KL = 1/2 sum(mu^2 + sigma^2 - 1 - log sigma^2)
        """
        log_variance_NPW = self.log_variance_NPW
        each_NPW = self.mean_NPW.square() + log_variance_NPW.exp() - 1 - log_variance_NPW
        return 0.5 * each_NPW.sum(dim=(1, 2))


def fit(
    posterior: Posterior, nats: Callable[[Tensor], Tensor], noise_SNPW: Tensor, rate: float
) -> Posterior:
    """Take a step of Adam for each noise.

    Args:
        posterior: where to begin.
        nats: `z_NPW -> ` a scalar whose gradient is that of the sum over documents of
            -log p(x | z). Documents are isolated, so the sum's gradient is each document's own, and
            Adam takes every coordinate by itself: no document's fit depends on another's tokens.
        noise_SNPW: e of each step; N may be 1, all documents' alike.
        rate: learning rate.

    Returns:
        The last posterior, without a gradient.
    """
    mean = posterior.mean_NPW.detach().clone().requires_grad_()
    log_variance = posterior.log_variance_NPW.detach().clone().requires_grad_()
    now, optimizer = Posterior(mean, log_variance), torch.optim.Adam([mean, log_variance], lr=rate)
    for noise_NPW in noise_SNPW:
        loss = nats(now.sample(noise_NPW)) + now.divergence().sum()
        mean.grad, log_variance.grad = torch.autograd.grad(loss, (mean, log_variance))
        optimizer.step()
    return Posterior(mean.detach(), log_variance.detach())


def summed_nats(hidden_MD: Tensor, readout: Readout, targets_M: Tensor) -> Tensor:
    """Return a scalar with the gradient by hidden states of their summed cross-entropy, nats.

    The gradient is taken a few logits at a time, so that they are never held all together; nothing
    reaches the readout's weights.
    """
    total = hidden_MD.new_zeros(())
    chunks = zip(hidden_MD.split(READ_AT_ONCE), targets_M.split(READ_AT_ONCE), strict=True)
    for hidden, targets in chunks:
        leaf = hidden.detach().requires_grad_()
        logits = readout(leaf)
        wide = torch.promote_types(logits.dtype, torch.float32)
        loss = F.cross_entropy(logits.to(wide), targets, reduction="sum")
        (slope,) = torch.autograd.grad(loss, leaf)
        total = total + (hidden * slope).sum()
    return total
