"""A frozen teacher: another run's backbone, whose concepts are labels for a student.

Legend: B batch, T time, D width, N real positions, C concepts, M labels of a token.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from data.batch import Batch
from eval.checkpoint import load_trained
from models.backbone import Backbone
from models.config import BackboneConfig
from models.cost import linear_flops
from models.latent.latent import LatentConfig
from models.latent.taught import TaughtConfig

from .autoencoder import Autoencoder
from .concept_files import ConceptFacts, load_autoencoder, read_facts
from .loss import position_losses, target_places

CHUNK = 4096
"""Positions whose logits the teacher holds at once."""


class Teacher:
    """Labels tokens with a teacher's concepts; no part of what is trained or saved.

    By `activation` a token's labels are its most active concepts. By `attribution` (CoCoMix,
    section 3.1) they are those with the largest product of activation and gradient,

        a_t = z_t * dL/dz_t        L the teacher's loss over the targets of the batch

    among those above 0, as the paper's code ranks them: the concepts whose growth would raise the
    loss most. What no target follows has no gradient, and so no label.

    Args:
        backbone: the teacher, trained.
        autoencoder: of the hidden states after one of its layers.
        layer: layers below those.
        labels: attribution or activation.
        num_labels: labels of a token, at most.
    """

    def __init__(
        self,
        backbone: Backbone,
        autoencoder: Autoencoder,
        layer: int,
        labels: str = "attribution",
        num_labels: int = 4,
    ) -> None:
        self.backbone, self.autoencoder = backbone.eval(), autoencoder.eval()
        self.layer, self.num_labels = layer, num_labels
        self.by_gradient = labels == "attribution"

    def labels(self, batch: Batch) -> Tensor:
        """Return the concepts of each token, `[B, T, M]`, the best first; -1 is none."""
        self._move_to(batch.tokens_BT.device)
        real_BT = batch.segments_BT >= 0
        if self.by_gradient:
            hidden_BTD, gradient_BTD = self._with_gradient(batch)
        else:
            hidden_BTD, gradient_BTD = self.hidden(batch).detach(), None
        with torch.no_grad():
            active_NC = self.autoencoder.encode(hidden_BTD[real_BT].float())
            rank_NC = active_NC
            if gradient_BTD is not None:
                gradient_ND = gradient_BTD[real_BT].float()
                rank_NC = self.autoencoder.attribution(active_NC, gradient_ND)
            top = rank_NC.topk(self.num_labels, dim=-1)
            shape = (*real_BT.shape, self.num_labels)
            labels_BTM = torch.full(shape, -1, device=real_BT.device)
            labels_BTM[real_BT] = torch.where(top.values > 0, top.indices, -1)
        return labels_BTM

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states that are encoded, `[B, T, D]`."""
        self._move_to(batch.tokens_BT.device)
        given = (batch.tokens_BT, batch.segments_BT)
        out = self.backbone(*given, roles_BT=batch.roles_BT, layers=True)
        return out.trajectory.layers[self.layer - 1]

    def _with_gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return them with the gradient of the loss by them."""
        places_N = target_places(batch.loss_BT)
        targets_N, weights_N = (x.flatten()[places_N] for x in (batch.targets_BT, batch.loss_BT))
        with torch.enable_grad():
            given = (batch.tokens_BT, batch.segments_BT)
            out = self.backbone(*given, roles_BT=batch.roles_BT, layers=True)
            hidden_BTD = out.trajectory.layers[self.layer - 1]
            read_ND = out.hidden_BTD.flatten(0, 1)[places_N]
            losses_N = position_losses(read_ND, out.readout, targets_N, CHUNK)
            (gradient_BTD,) = torch.autograd.grad((losses_N * weights_N).sum(), hidden_BTD)
        return hidden_BTD.detach(), gradient_BTD

    def _move_to(self, device: torch.device) -> None:
        if next(self.autoencoder.parameters()).device != device:
            self.backbone.to(device)
            self.autoencoder.to(device)

    def flops(self, length: int) -> float:
        """FLOPs of labelling a document: one pass, and a gradient by the activations above."""
        backbone, concepts = self.backbone, len(self.autoencoder.bias_C)
        product = length * linear_flops(backbone.config.dim, concepts)
        if not self.by_gradient:
            return backbone.prefill_cost(length, readouts=0).flops + product
        above = backbone.depth.calls(1)[self.layer :]
        back = backbone.depth.layers_prefill_cost(above, length).flops
        back += length * backbone.readout_flops + product
        return backbone.prefill_cost(length, readouts=length).flops + product + back


def teacher_of(latent: LatentConfig, tokenizer: str) -> Teacher | None:
    """Load what teaches a latent scheme; None where nothing does.

    Args:
        latent: settings of the scheme.
        tokenizer: fingerprint of the tokenizer that the student reads.

    Raises:
        ValueError: there is no such teacher, or it doesn't fit; the line names the key.
    """
    if not isinstance(latent, TaughtConfig) or not latent.weight:
        return None
    check_taught(latent)
    assert latent.teacher is not None
    folder = Path(latent.teacher)
    autoencoder, facts = load_autoencoder(folder)
    trained = load_trained(folder.parents[1])
    if trained.identity != facts.teacher:
        raise ValueError(
            f"backbone.latent.teacher={folder}: its run holds other weights than those it was made "
            "of; run `python -m train.concepts` again"
        )
    if facts.tokenizer != tokenizer:
        raise ValueError(
            f"backbone.latent.teacher={folder} reads another tokenizer than this run: make it with "
            "the same data"
        )
    return Teacher(trained.backbone, autoencoder, facts.layer, latent.labels, latent.num_labels)


def check_taught(latent: LatentConfig) -> None:
    """Refuse, before any work, to train a scheme without what teaches it.

    Raises:
        ValueError: no teacher is named, or its sizes are other ones.
    """
    if not isinstance(latent, TaughtConfig) or not latent.weight:
        return
    if latent.teacher is None:
        raise ValueError(
            f"latent={latent.kind} learns from a teacher, and backbone.latent.teacher is not set: "
            "run `python -m train.concepts` with the same data and give the folder that it names "
            "(or set backbone.latent.weight=0 to train without)"
        )
    _check_sizes(latent, read_facts(Path(latent.teacher)))


def _check_sizes(latent: TaughtConfig, facts: ConceptFacts) -> None:
    if facts.num_concepts != latent.num_concepts:
        raise ValueError(
            f"backbone.latent.num_concepts={latent.num_concepts}, but backbone.latent.teacher="
            f"{latent.teacher} has {facts.num_concepts}: set it to {facts.num_concepts}"
        )
    if facts.active < latent.num_labels:
        raise ValueError(
            f"backbone.latent.num_labels={latent.num_labels}, but of backbone.latent.teacher="
            f"{latent.teacher} no more than {facts.active} are active at once: choose fewer"
        )


def teacher_hash(latent: LatentConfig) -> str | None:
    """Return what stands for a teacher's folder where a run's losses are concerned."""
    if not isinstance(latent, TaughtConfig) or latent.teacher is None:
        return None
    return read_facts(Path(latent.teacher)).hash


def without_teacher(backbone: BackboneConfig) -> BackboneConfig:
    """Return settings that a trained backbone is built by: where it was taught is no part of it."""
    if not isinstance(backbone.latent, TaughtConfig):
        return backbone
    return replace(backbone, latent=replace(backbone.latent, teacher=None))
