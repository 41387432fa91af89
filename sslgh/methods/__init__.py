"""Self-supervised methods, one file each."""

from sslgh.methods.barlow_twins import BarlowTwins
from sslgh.methods.base import Method, MethodOutput
from sslgh.methods.byol import BYOL
from sslgh.methods.dcl import DCL
from sslgh.methods.dino import DINO
from sslgh.methods.distill import Distill
from sslgh.methods.focal import Focal
from sslgh.methods.lejepa import LeJEPA
from sslgh.methods.moco_v2 import MoCoV2
from sslgh.methods.moco_v3 import MoCoV3
from sslgh.methods.nnclr import NNCLR
from sslgh.methods.sdclr import SDCLR
from sslgh.methods.simclr import SimCLR
from sslgh.methods.simsiam import SimSiam
from sslgh.methods.swav import SwAV
from sslgh.methods.ts import TS
from sslgh.methods.vicreg import VICReg

METHODS: dict[str, type[Method]] = {
    "barlow-twins": BarlowTwins,
    "byol": BYOL,
    "dcl": DCL,
    "dino": DINO,
    "distil": Distill,  # as Divide and Contrast is recorded in older runs
    "distill": Distill,
    "focal": Focal,
    "lejepa": LeJEPA,
    "moco-v2": MoCoV2,
    "moco-v3": MoCoV3,
    "nnclr": NNCLR,
    "sdclr": SDCLR,
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "swav": SwAV,
    "ts": TS,
    "vicreg": VICReg,
}

__all__ = ["METHODS", "Method", "MethodOutput", "SimCLR", "SimSiam"]
