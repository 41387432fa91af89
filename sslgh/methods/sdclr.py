"""SDCLR."""

import torch
from torch import Tensor, nn

from sslgh.distributed import gather, weighted_mean
from sslgh.functional import nt_xent
from sslgh.methods.base import Method, MethodOutput
from sslgh.models import ProjectorSpec, PrunedBranch, head_widths, simclr_projector


class SDCLR(Method):
    """Self-Damaging Contrastive Learning (arXiv:2106.02990): SimCLR against its own pruned self.

    View 1 goes through the dense network, view 2 through the same without the small convolution
    weights: what the pruned branch forgets first, rare kinds of images among it, gets larger
    losses. The mask is global over all convolutions of the backbone and redrawn every epoch.
    Each branch has batch norms of its own, in backbone and projector. The dense branch is kept.

    One loss, one backward: the official code takes two, each branch against the other's
    detached embeddings, whose gradients sum to this one. Its pruned branch is also forwarded
    twice a step and updates its running statistics twice; here once.

    Args:
        backbone: (N, 3, H, W) -> (N, F), most of its weights in convolutions.
        projector: (N, F) -> (N, D).
        temperature: Temperature of NT-Xent; 0.2 (official code, CIFAR; 0.3 for ImageNet-100).
        prune: Share of the convolution weights that is pruned; 0.9 (official code, CIFAR; 0.3 for
            ImageNet-100, 0.1 for ImageNet-LT in the GH code).

    Raises:
        ValueError: If ``temperature`` or ``prune`` is out of range, or the backbone has most of its
            weights elsewhere than in convolutions.
    """

    contrasts_batch = True
    epoch: Tensor
    # As in the BCL and GH code; the released SDCLR has 3 layers, its SimCLR baseline 2.
    projector_spec = ProjectorSpec(simclr_projector, hidden=None, out=128, layers=2)

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        *,
        temperature: float = 0.2,
        prune: float = 0.9,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"method.temperature must be positive, got {temperature}")
        if not 0 <= prune < 1:
            raise ValueError(f"method.prune must lie in [0, 1), got {prune}")
        _check_convolutions(backbone)
        self.backbone, self.projector = backbone, projector
        self.pruned_backbone = PrunedBranch(self.backbone)
        self.pruned_projector = PrunedBranch(self.projector)
        self.pruned_backbone.redraw(self.backbone, share=prune)
        self.register_buffer("epoch", torch.tensor(-1))
        self.embedding_dim = head_widths(projector)[1]
        self.temperature, self.prune = temperature, prune

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Redraw the mask from the weights of now; not again on a resume within the epoch."""
        if epoch <= int(self.epoch):
            return
        self.pruned_backbone.redraw(self.backbone, share=self.prune)
        self.epoch.fill_(epoch)

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> MethodOutput:
        """Embed view 1 densely and view 2 pruned."""
        # Two passes, not one over both views: the branches differ in weights and norms. Batch
        # statistics tell the views apart on purpose.
        x1, x2 = views
        h1 = self.backbone(x1)
        z1 = self.projector(h1)
        z2 = self.pruned_projector(self.projector, self.pruned_backbone(self.backbone, x2))
        per_sample = nt_xent(z1, z2, temperature=self.temperature, gather=gather)
        return MethodOutput(weighted_mean(per_sample, weights), per_sample, (z1, z2), h1.detach())


def _check_convolutions(backbone: nn.Module) -> None:
    """Refuse a backbone that pruning convolutions would hardly damage.

    Raises:
        ValueError: If they hold less than half of its weights.
    """
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    held = sum(layer.weight.numel() for layer in convolutions)
    total = sum(parameter.numel() for parameter in backbone.parameters())
    if 2 * held < total or not convolutions:
        raise ValueError(
            f"method.name sdclr prunes convolutions; this backbone has {len(convolutions)}, with "
            f"{held / max(total, 1):.0%} of its weights: use a ResNet (model.backbone: resnet18)"
        )
