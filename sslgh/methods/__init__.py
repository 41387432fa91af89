"""Self-supervised methods, one file each."""

from sslgh.methods.method import Method, MethodOutput
from sslgh.methods.simclr import SimCLR
from sslgh.methods.simsiam import SimSiam

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "simsiam": SimSiam,
}

__all__ = ["METHODS", "Method", "MethodOutput", "SimCLR", "SimSiam"]
