"""Images: where they come from, the long-tail cut, views and the order they are seen in."""

from sslgh.data.colour import MEAN, STD, normalize, render_views
from sslgh.data.images import DataError, ImageSet
from sslgh.data.loading import view_loader
from sslgh.data.long_tail import select_long_tail
from sslgh.data.order import BatchOrder
from sslgh.data.sources import input_size, load_images, training_set
from sslgh.data.views import Plain, TwoViews, Weak

__all__ = [
    "MEAN",
    "STD",
    "BatchOrder",
    "DataError",
    "ImageSet",
    "Plain",
    "TwoViews",
    "Weak",
    "input_size",
    "load_images",
    "normalize",
    "render_views",
    "select_long_tail",
    "training_set",
    "view_loader",
]
