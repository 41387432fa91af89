"""The recipe's images: where they come from, their long tail, their augmentation."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sslgh.recipe.base import ConfigModel, Count, Positive, Probability, UserPath
from sslgh.recipe.errors import shown

# The keys that only some sources read; all sources read the others.
READS: dict[str, tuple[str, ...]] = {
    "digits": ("test_per_class", "split_seed"),
    "cifar10": ("root", "download"),
    "cifar100": ("root", "download"),
    "arrays": ("root",),
    "folder": ("root", "test_root", "labels"),
    "list": ("root", "list", "test_root", "test_list"),
}
SOME_READ = tuple(dict.fromkeys(key for keys in READS.values() for key in keys))
# How a source that may lack them is given labeled test images.
TEST_IMAGES = {
    "arrays": "put test.npz, with images and labels, into data.root",
    "folder": "set data.test_root to a folder with the same class folders",
    "list": "set data.test_list to a file of lines 'path label'",
}


class Shuffled(ConfigModel):
    """Which classes are rare is decided by a seed instead of by label order."""

    shuffled: Annotated[
        int, Field(ge=0, lt=2**32, description="seed of the permutation of the classes")
    ]


class LongTail(ConfigModel):
    """How a labeled set is cut to a long tail before its labels are put aside."""

    profile: Literal["exp", "step", "natural"] = Field(
        "exp",
        description="exp: n_c = int(n_max * imbalance^(-c/(C-1))); step: the second half of the "
        "classes has n_max / imbalance images; natural: all images, capped by max_per_class",
    )
    imbalance: float = Field(
        100,
        ge=1,
        description="largest class over smallest class (ratio of images); not for natural",
    )
    max_per_class: Count | None = Field(
        None, description="n_max, images of the largest class; null: what the largest class holds"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="seed of the published generator"
    )
    select: Literal["published", "first"] = Field(
        "published",
        description="published: NumPy's legacy generator, one shuffle per class in label order, first "
        "n_c kept; first: the first n_c of each class in file order",
    )
    class_order: Literal["label"] | Shuffled = Field(
        "label", description="label: class 0 is the head (the papers); {shuffled: SEED}: by seed"
    )


def _share_of_each_view(given: Any) -> Any:
    """One probability, or a tuple of two or three; a union's own errors would name none of them."""
    several = isinstance(given, (list, tuple))
    try:
        shares = tuple(float(share) for share in (given if several else [given]))
    except (TypeError, ValueError):
        shares = ()
    if not all(0 <= share <= 1 for share in shares) or len(shares) not in (
        (2, 3) if several else (1,)
    ):
        raise ValueError(
            "expected a probability in 0..1, or one for each view: [view 1, view 2] or "
            f"[view 1, view 2, local crops], got {shown(given)}"
        )
    return shares if several else shares[0]


ShareOfViews = Annotated[
    Probability | tuple[Probability, Probability] | tuple[Probability, Probability, Probability],
    BeforeValidator(_share_of_each_view),
]


class Augment(ConfigModel):
    """SimCLR augmentation; the defaults are those of the GH code for CIFAR."""

    crop_scale: tuple[Probability, Probability] = Field(
        (0.1, 1.0), description="area of a crop (share of the image)"
    )
    local_crops: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="multi-crop (SwAV, DINO): small views of an image besides the two full ones"
    )
    local_size: Annotated[int, Field(ge=4, le=4096)] | None = Field(
        None,
        description="side of a local crop (pixels); null: 3/7 of the size, in fours: 96 of 224",
    )
    local_scale: tuple[Probability, Probability] = Field(
        (0.05, 0.4), description="area of a local crop (share of the image; DINO's)"
    )
    crop_ratio: tuple[Positive, Positive] = Field(
        (3 / 4, 4 / 3), description="width over height of a crop"
    )
    interpolation: Literal["bilinear", "bicubic", "lanczos", "nearest"] | None = Field(
        None,
        description="interpolation of the resized crop; null: that of the pretrained weights, else bilinear",
    )
    flip: Probability = Field(0.5, description="probability of a horizontal flip")
    brightness: float = Field(0.4, ge=0, le=1, description="factor drawn from 1 +- this")
    contrast: float = Field(0.4, ge=0, le=1, description="factor drawn from 1 +- this")
    saturation: float = Field(0.4, ge=0, le=1, description="factor drawn from 1 +- this")
    hue: float = Field(
        0.1, ge=0, le=0.5, description="turn drawn from +- this (share of the circle)"
    )
    jitter: Probability = Field(0.8, description="probability of the color jitter")
    grayscale: Probability = Field(0.2, description="probability of dropping the color")
    blur: ShareOfViews = Field(
        0.0,
        description="probability of a Gaussian blur (0.5 for ImageNet): of every view, or [view 1, view "
        "2], or [view 1, view 2, local crops]",
    )
    blur_sigma: tuple[Positive, Positive] = Field((0.1, 2.0), description="blur (pixels at 224)")
    solarize: ShareOfViews = Field(
        0.0,
        description="probability of inverting what is brighter than half, after the blur: as blur "
        "([0.0, 0.2] for BYOL, [0.0, 0.2, 0.0] for DINO)",
    )

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("crop_scale", "local_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must ascend, got [{low}, {high}]")
            if high == 0:
                raise ValueError(f"{name} must reach above 0")
        return self

    @model_validator(mode="after")
    def _local_crops_have_a_share_of_their_own(self) -> Self:
        for name in ("blur", "solarize"):
            shares = getattr(self, name)
            # No guess: SwAV blurs local crops as the full ones, DINO as neither of them.
            if self.local_crops and isinstance(shares, tuple) and len(shares) == 2:
                raise ValueError(
                    f"{name} says {list(shares)} for the two full views; local_crops is "
                    f"{self.local_crops}, so add a third for the local crops"
                )
        return self


class Data(ConfigModel):
    """Where the images come from and what is done to them before the network."""

    source: Literal["digits", "cifar10", "cifar100", "arrays", "folder", "list"] = Field(
        description="digits: scikit-learn's scans, embedded; cifar10, cifar100: torchvision's files; "
        "arrays: train.npz and test.npz under root (images uint8 (N, H, W, 3), labels optional); folder: a "
        "tree of images; list: lines 'path label', or a table 'path,label'"
    )
    root: UserPath = Field(
        Path("data"), description="folder that holds the data; list paths are under it"
    )
    list: UserPath | None = Field(
        None,
        description="source list: file of training lines 'path [label]', or a table with commas, "
        "semicolons or tabs; a label is a number or a class name",
    )
    test_root: UserPath | None = Field(
        None,
        description="folder, list: labeled test images; null: no test set (folder: root/test if it exists)",
    )
    test_list: UserPath | None = Field(None, description="source list: file of test lines, as list")
    labels: Literal["auto", "folders", "none"] = Field(
        "auto",
        description="source folder: whether the folders right in a split are classes; auto: where there is a "
        "train/test split or the recipe asks for labels (probe, finetune, long_tail), else none",
    )
    download: bool = Field(False, description="cifar10, cifar100: let torchvision fetch the files")
    size: Annotated[int, Field(ge=4, le=4096)] | None = Field(
        None,
        description="side of the network's input (pixels); null: 32 (cifar), 16 (digits), the side "
        "of the arrays, else that of the pretrained weights, else 224",
    )
    test_per_class: Count = Field(70, description="digits: test images of each class (images)")
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="digits: seed of the train/test split"
    )
    long_tail: LongTail | None = Field(None, description="null: as the source has it")
    subset: UserPath | None = Field(
        None,
        description="file of positions, one per line, counted from 0 after the long-tail cut: train on those "
        "images only; null: on all",
    )
    augment: Augment = Augment()
    broken_share: Probability = Field(
        0.05,
        description="largest share of unreadable training images that a run passes over, showing others "
        "instead; 0 stops at the first",
    )
    workers: Annotated[int, Field(ge=0, le=1024)] | None = Field(
        None,
        description="loader processes; null: 0 for images in memory, else up to 8, one per core",
    )

    @model_validator(mode="after")
    def _source_reads_what_is_given(self) -> Self:
        unread = [key for key in SOME_READ if key not in READS[self.source] and self._gives(key)]
        if unread:
            raise ValueError(_unread(self.source, unread))
        if self.source == "list" and self.list is None:
            raise ValueError("source list needs data.list, a file of lines 'path label'")
        return self

    @model_validator(mode="after")
    def _long_tail_has_labels(self) -> Self:
        if self.labels == "none" and self.long_tail is not None:
            raise ValueError("long_tail cuts by label, and labels is none; leave one of them out")
        return self

    def _gives(self, key: str) -> bool:
        """Whether a key has another value than its default: a full config sets every key."""
        given, default = getattr(self, key), _default(key)
        # A run's recipe.yaml has absolute paths.
        same_root = key == "root" and given.is_absolute() and given.name == default.name
        return not (given == default or same_root)


def _default(key: str) -> Any:
    return Data.model_fields[key].default


def _written(key: str) -> str:
    default = _default(key)
    return str(default) if isinstance(default, Path) else json.dumps(default)


def _unread(source: str, keys: Sequence[str]) -> str:
    known = ", ".join(READS[source])
    unset = " ".join(f"data.{key}={_written(key)}" for key in keys)
    way = TEST_IMAGES.get(source) if any(key.startswith("test_") for key in keys) else None
    verb, them = ("is", "it") if len(keys) == 1 else ("are", "them")
    return (
        f"{', '.join(keys)} {verb} not read by source {source}, which reads {known}; leave {them} out, or set {unset}"
        + (f"; for test images {way}" if way else "")
    )
