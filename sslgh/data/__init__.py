"""Images: where they come from, the long-tail cut, views and the order they are seen in."""

from sslgh.data.class_sampling import Sampling, class_sampling, drawn_shares
from sslgh.data.colour import MEAN, STD, normalize, render_local_views, render_views
from sslgh.data.images import DataError, ImageSet
from sslgh.data.labelled_views import LabelledViews
from sslgh.data.loading import end_workers, labelled_loader, view_loader
from sslgh.data.long_tail import select_long_tail
from sslgh.data.order import BatchOrder, part_shares
from sslgh.data.policies import Policy
from sslgh.data.sources import input_size, load_images, training_set
from sslgh.data.views import Plain, TwoViews, Weak, local_side

__all__ = [
    "MEAN",
    "STD",
    "BatchOrder",
    "DataError",
    "ImageSet",
    "LabelledViews",
    "Plain",
    "Policy",
    "Sampling",
    "TwoViews",
    "Weak",
    "class_sampling",
    "drawn_shares",
    "end_workers",
    "input_size",
    "labelled_loader",
    "load_images",
    "local_side",
    "normalize",
    "part_shares",
    "render_local_views",
    "render_views",
    "select_long_tail",
    "training_set",
    "view_loader",
]
