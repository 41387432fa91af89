"""Images: sources, the long-tail cut, augmentation, and the order in which a run sees them."""

from sslgh.data.augment import augment_views
from sslgh.data.batch_sampler import ResumableBatchSampler, SampleKey
from sslgh.data.class_sampling import Sampling, class_sampling, drawn_shares
from sslgh.data.datasets import (
    EvalDataset,
    PretrainBatch,
    PretrainDataset,
    SupervisedBatch,
    SupervisedDataset,
    local_side,
)
from sslgh.data.image_set import DataError, ImageSet
from sslgh.data.loader import end_workers, labeled_loader, num_workers, view_loader
from sslgh.data.sources import input_size, load_images, select_long_tail, training_set
from sslgh.preprocessing import normalize

__all__ = [
    "DataError",
    "EvalDataset",
    "ImageSet",
    "PretrainBatch",
    "PretrainDataset",
    "ResumableBatchSampler",
    "SampleKey",
    "Sampling",
    "SupervisedBatch",
    "SupervisedDataset",
    "augment_views",
    "class_sampling",
    "drawn_shares",
    "end_workers",
    "input_size",
    "labeled_loader",
    "load_images",
    "local_side",
    "normalize",
    "num_workers",
    "select_long_tail",
    "training_set",
    "view_loader",
]
