"""A hash that weights are known by."""

import hashlib

import torch
from torch import Tensor, nn


def weights_fingerprint(module: nn.Module, text: str) -> str:
    """Hash of a text, a module's architecture and all its tensors (32 hex digits)."""
    digest = hashlib.blake2b(f"{text}\n{module!r}".encode(), digest_size=16)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any type and device."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
