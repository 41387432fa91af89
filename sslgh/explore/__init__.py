"""An image folder seen through a frozen backbone."""

from sslgh.explore.embed import embed_folder
from sslgh.explore.embeddings import Embeddings, load_embeddings
from sslgh.explore.model import LoadedModel, load_model

__all__ = ["Embeddings", "LoadedModel", "embed_folder", "load_embeddings", "load_model"]
