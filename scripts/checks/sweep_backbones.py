"""Build and train one small network of every family of timm and torchvision: two images, one gradient.

    python scripts/checks/sweep_backbones.py
    python scripts/checks/sweep_backbones.py swin vit

A family is a module of timm or a class of torchvision; weights are drawn. Each must give one row of floats
per image and pass a gradient to every parameter, or be refused in one sentence before it trains. The second
form takes the families whose names hold one of the words. The exit code is 1 if one does otherwise, if one
is refused or leaves parameters out without standing in the tables below, or if a family is missing. It takes
about 10 minutes on one core and up to 3 GB.
"""

import re
import sys
import time
import warnings

import timm
import torch

from sslgh.models import build_backbone
from sslgh.models.library_backbones import TIMM, TORCHVISION

SIDE = 64
# The smallest network of each module of timm, or nearly so.
OF_TIMM = """
beit_base_patch16_224 halonet_h1 test_byobnet cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
test_convnext cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1
efficientformerv2_s0 test_efficientnet efficientvim_m1 efficientvit_b0 efficientvit_m0
vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny
ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t
inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0
test_mambaout coatnet_nano_cc_224 poolformer_s12 resmlp_12_224 lcnet_035 mobilenetv5_300m mobilevit_xxs
mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge nest_tiny nextvit_small nf_ecaresnet26 pit_ti_224
pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 repghostnet_050 repvit_m0_9 res2net50_14w_8s
resnest14d resnet10t resnetv2_18 rexnetr_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224
tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny test_vit
vit_tiny_r_s16_p8_224 test_vit_relpos samvit_base_patch16_224 vitamin_small_224 volo_d1_224
ese_vovnet19b_slim_dw legacy_xception xception41 xcit_nano_12_p16_224 gemma4_vit_167m
"""
OF_TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2
mobilenet_v3_small regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11 vit_b_32
"""
# Modules of timm whose smallest network needs more memory than a desk machine has.
TOO_LARGE = {"deepseek_vit": "412 M parameters, 11 GB with their gradients"}
# Families that are refused at any side, and parameters that no gradient reaches, with the reason.
REFUSED: dict[str, str] = {}
WITHOUT_GRADIENT: dict[str, tuple[str, str]] = {}


def main(words: list[str]) -> int:
    """Try the families; returns the exit code."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names = [TIMM + name for name in OF_TIMM.split()]
    names += [TORCHVISION + name for name in OF_TORCHVISION.split()]
    faults = [] if words else missing_families()
    if words:
        names = [name for name in names if any(word in name for word in words)]
    trained = refused = 0
    for name in names:
        began = time.perf_counter()
        side, text = attempt(name)
        if side is None:
            refused += 1
            faults += [] if name in REFUSED else [name]
        else:
            trained += 1
            faults += [] if text == WITHOUT_GRADIENT.get(name, ("",))[0] else [name]
        print(
            f"{name:<45} {side or 'refused'} {text} {time.perf_counter() - began:.1f} s", flush=True
        )
    print(
        f"{trained} families train, {refused} are refused; otherwise: {', '.join(faults) or 'none'}"
    )
    return int(bool(faults) or not names)


def missing_families() -> list[str]:
    """Modules of timm of which no network is tried."""
    modules = timm.list_modules()
    found = {m for m in modules if set(timm.list_models(module=m)) & set(OF_TIMM.split())}
    return sorted(set(modules) - found - set(TOO_LARGE))


def attempt(name: str) -> tuple[int | None, str]:
    """Side (pixels) at which a network trains and the parameters without gradient, or None and why not."""
    side = SIDE
    for _ in range(2):
        try:
            return side, train(name, side)
        except ValueError as error:
            text = str(error)
            advised = re.search(r"set data\.size: (\d+)", text)
            if advised is None:
                break
            side = int(advised[1])
    return None, text


def train(name: str, side: int) -> str:
    """Forward and backward of two images; names of parameters without a gradient, shortened."""
    torch.manual_seed(0)
    backbone = build_backbone(name, image_size=side)
    features = backbone(torch.randn(2, 3, side, side))
    assert features.shape == (2, backbone.num_features), name
    assert features.dtype == torch.float32, name
    features.square().sum().backward()
    return " ".join(
        key
        for key, parameter in backbone.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
