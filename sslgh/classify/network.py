"""A network that is trained on labels: backbone, classifier, and what an embedding term needs.

Shapes: N images, F features, D embedding width, C classes, V views.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslgh.models import CosineClassifier


class Prediction(NamedTuple):
    """Outputs that the loss of a step reads.

    Attributes:
        logits: Logits of the classifier's view, shape (N, C).
        embeddings: Shape (N, V, D), not normalized: the features of the classifier's view (V = 1), or
            the projections of the contrast views.
        proxies: One for each class, shape (C, D): what the prototype head makes of the classifier's
            weights, or the weights themselves, shape (C, F); SupCon reads none.
    """

    logits: Tensor
    embeddings: Tensor
    proxies: Tensor


class Network(nn.Module):
    """Backbone and classifier, and for SupCon, BCL and RCL two heads of the contrast.

    Balanced Contrastive Learning (CVPR 2022) in its public code: one view for the classifier, two for
    the contrast, all through the backbone in one pass; the prototypes are the classifier's weights
    behind a head of their own, with gradient.

    Args:
        backbone: (N, 3, H, W) -> (N, F).
        classifier: (N, F) -> (N, C), with ``weight`` (C, F).
        projector: (N, F) -> (N, D), of the contrast views; None: embeddings are the features.
        prototype_head: (C, F) -> (C, D), of the prototypes; None: there are none.
        freeze: Train the heads only; the backbone stays in evaluation mode.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Linear | CosineClassifier,
        *,
        projector: nn.Module | None = None,
        prototype_head: nn.Module | None = None,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        assert projector is not None or prototype_head is None
        self.backbone = backbone.requires_grad_(requires_grad=False) if freeze else backbone
        self.classifier = classifier
        self.projector = projector
        self.prototype_head = prototype_head
        self.frozen = freeze

    def train(self, mode: bool = True) -> "Network":
        """Training mode, but for a frozen backbone: its batch statistics stay."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, view: Tensor, contrast: list[Tensor]) -> Prediction:
        """Classify a view and embed the others.

        Args:
            view: Images for the classifier, shape (N, 3, H, W).
            contrast: Views of the contrast, each (N, 3, H, W); empty without a projector.
        """
        weight = self.classifier.weight
        features = self.backbone(torch.cat([view, *contrast]))
        own, *others = features.chunk(1 + len(contrast))
        proxies = weight if self.prototype_head is None else self.prototype_head(weight)
        if self.projector is None:
            return Prediction(self.classifier(own), own[:, None], proxies)
        embeddings = torch.stack(self.projector(torch.cat(others)).chunk(len(contrast)), dim=1)
        return Prediction(self.classifier(own), embeddings, proxies)
