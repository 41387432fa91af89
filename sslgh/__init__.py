"""Self-supervised pretraining on long-tailed images, and classification on top of it."""

__version__ = "0.1.0"
