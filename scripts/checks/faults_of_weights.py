"""Faults of weights from elsewhere and of their preprocessing."""

from fault import Fault

FILES = "models/weight_files.py"

FAULTS = [
    Fault(
        "the student instead of the teacher",
        FILES,
        "-sum(word in prefix for word in SECOND_CHOICE)",
        "sum(word in prefix for word in SECOND_CHOICE)",
        "models/test_weight_files.py",
    ),
    Fault(
        "a pickle is executed",
        FILES,
        "weights_only=True",
        "weights_only=False",
        "models/test_weight_files.py",
    ),
    Fault(
        "any share of the weights will do",
        FILES,
        "report.share < least or",
        "",
        "models/test_weight_files.py",
    ),
    Fault(
        "layouts with numbered children unread",
        FILES,
        "for names in (children, heavy):",
        "for names in ():",
        "models/test_weight_files.py",
    ),
    Fault(
        "ImageNet's moments for all weights",
        "preprocessing.py",
        "return normalize(images, self.mean, self.std)",
        "return normalize(images)",
        "test_preprocessing.py",
    ),
    Fault(
        "pretraining forgets the moments of its weights",
        "engine/pretraining.py",
        "normalize = Preprocessing.of(self.method.backbone).normalize",
        "normalize = Preprocessing().normalize",
        "engine/test_own_preprocessing.py",
    ),
    Fault(
        "finetuning forgets the moments of its weights",
        "engine/finetuning.py",
        "normalize = Preprocessing.of(self.network.backbone).normalize",
        "normalize = Preprocessing().normalize",
        "engine/test_own_preprocessing.py",
    ),
    Fault(
        "timm's crop rounded up",
        "models/library_preprocessing.py",
        "math.floor(size",
        "math.ceil(size",
        "test_preprocessing.py",
    ),
    Fault(
        "squashed images keep their proportion",
        "preprocessing.py",
        "if self.squash:",
        "if False:",
        "test_preprocessing.py",
    ),
    Fault(
        "the hub is waited for",
        "models/pretrained.py",
        "online = name.startswith((TORCHVISION, LOCAL)) or _hub_answers()",
        "online = True",
        "models/test_initial.py",
    ),
    Fault(
        "any order of the tensors will do",
        "models/packaged.py",
        "[tuple(value.shape) for value in found[: len(own)]] != shapes or",
        "False or",
        "models/test_packaged.py",
    ),
    Fault(
        "the packaged weights are not loaded",
        "models/packaged.py",
        "    backbone.load_state_dict(dict(zip(own, found, strict=False)))\n",
        "",
        "models/test_packaged.py",
    ),
    Fault(
        "packaged weights are another library's",
        "models/pretrained.py",
        "return packaged_backbone(name, image_size)",
        "name = packaged(name).backbone",
        "models/test_packaged.py",
    ),
    Fault(
        "crops of weights are bilinear",
        "engine/kept_init.py",
        "return Preprocessing.from_card(initial_card(recipe.model)).interpolation",
        'return "bilinear"',
        "engine/test_crop_interpolation.py",
    ),
    Fault(
        "a resumed run changes its crops",
        "engine/kept_init.py",
        "    if began:\n",
        "    if False:\n",
        "engine/test_crop_interpolation.py",
    ),
    Fault(
        "a module of one's own is not trained",
        "engine/build.py",
        "    if backbone is None:\n",
        "    if True:\n",
        "test_own_backbone.py",
    ),
    Fault(
        "the moments of a module of one's own are lost",
        "engine/pretraining.py",
        "    metadata |= Preprocessing.of(stage.method.backbone).card()\n",
        "",
        "test_own_backbone.py",
    ),
]
