"""The runs that must not change: what is trained, what is probed, on how many processes."""

from dataclasses import dataclass
from pathlib import Path

COMMIT = "dd31d59"
STEPS = 20
# 5 training cases and `supervised-bcl`, each on 1 and 2 processes, and 2 probes.
NUM_CASES = 14
# Cases of dd31d59 that are no longer compared, and why.
CHANGED = {
    "simclr-gh": "GH was rebuilt: clusters with identity, gated by visibility, a flat prior, a ramp one epoch earlier",
    "moco-v2-gh": "the same; the plain method is compared instead",
}


class CheckError(RuntimeError):
    """The check cannot be made; the message says why."""


@dataclass(frozen=True)
class Case:
    """One training command, in the words of both trees.

    Attributes:
        name: Name of the case.
        command: Command of ``sslgh``.
        old: Recipe and options at dd31d59.
        new: Recipe and options in the new tree.
        settings: Overrides for both.
    """

    name: str
    command: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """One probe of the 1-process run of a case.

    Attributes:
        name: Name of its protocol and results at dd31d59.
        of: Name of the case.
        setting: Override at dd31d59.
        renamed: Name of the same version of the protocol in the new tree.
    """

    name: str
    of: str
    setting: str
    renamed: str

    def override(self, *, old: bool) -> str:
        """The override in the words of a tree."""
        new = self.setting.replace(f"protocol: {self.name}", f"protocol: {self.renamed}")
        return self.setting if old else new


@dataclass(frozen=True)
class Job:
    """A case on a number of processes."""

    case: Case
    processes: int

    @property
    def name(self) -> str:
        """Name of the run directory, which tables print: the same for both trees."""
        return f"{self.case.name}-{self.processes}"


@dataclass(frozen=True)
class Tree:
    """A checkout and the folder of its runs."""

    checkout: Path
    runs: Path
    is_old: bool


DIGITS = "recipes/digits-lt"
# 351 images are 3 batches of 100 and one of 51: 5 epochs have 20 steps, and 51 is odd on 2 processes.
COMMON = (
    "train.epochs=5",
    "train.batch_size=100",
    "train.log_every=1",
    "train.checkpoint_every=2",
    "optim.warmup_epochs=1",
)
MULTI_CROP = (
    "data.augment.local_crops=2",
    "data.augment.flip=0.5",
    "data.augment.grayscale=0.2",
    "data.augment.hue=0.1",
    "data.augment.saturation=0.4",
    "data.augment.blur=[0.5,0.3,0.2]",
    "data.augment.solarize=[0.1,0.2,0.3]",
    "train.accumulation=2",
)
SUPERVISED = ("finetune.policy=crop-flip", "finetune.ema=0.9", "train.accumulation=2")
BCL = ("finetune.objective=bcl", "finetune.policy=randaugment")
CASES = (
    Case("simclr", "pretrain", (f"{DIGITS}/simclr.yaml",), (f"{DIGITS}/simclr.yaml",)),
    Case("moco-v2", "pretrain", (f"{DIGITS}/moco-v2.yaml",), (f"{DIGITS}/moco-v2.yaml",)),
    Case("dino", "pretrain", (f"{DIGITS}/dino.yaml",), (f"{DIGITS}/dino.yaml",), MULTI_CROP),
    Case("boost", "pretrain", (f"{DIGITS}/simclr-boost.yaml",), (f"{DIGITS}/simclr-boost.yaml",)),
    Case(
        "supervised",
        "finetune",
        (f"{DIGITS}/supervised.yaml",),
        (f"{DIGITS}/supervised.yaml",),
        SUPERVISED,
    ),
    Case(
        "supervised-bcl",
        "finetune",
        (f"{DIGITS}/supervised.yaml",),
        (f"{DIGITS}/supervised.yaml",),
        BCL,
    ),
)
PROBES = (
    Probe(
        "longtail",
        "simclr",
        "probe=[{protocol: longtail, objectives: [ce, la, la-posthoc, elm], seeds: 2}]",
        renamed="longtail-v1",
    ),
    Probe("knn", "simclr", "probe=[{protocol: knn}]", renamed="knn"),
)
