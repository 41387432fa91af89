"""A study on sixty digits, whose runs take a second."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

GH = {"vertices": 10, "warmup_epochs": 2, "ramp_epochs": 1, "refresh_every": 1}
STUDY = {
    "name": "tiny",
    "question": "Does GH help?",
    "warmup_epochs": 2,
    "metrics": ["knn.knn.average", "knn.knn.few"],
    "hypotheses": [{"arms": ["gh", "plain"], "metric": "knn.knn.average"}],
    "blocks": [{"class_order": 0, "seed": 0}, {"class_order": 1, "seed": 3}],
    "arms": [
        {"name": "plain", "about": "SimCLR"},
        {"name": "gh", "about": "GH", "settings": {"harmonize": GH}},
    ],
    "recipe": {
        "data": {
            "source": "digits",
            "size": 8,
            "test_per_class": 5,
            "long_tail": {"imbalance": 4, "max_per_class": 12},
            "augment": {"flip": 0, "hue": 0, "saturation": 0, "grayscale": 0},
        },
        "model": {"width": 0.125, "projector": {"hidden": 32, "out": 16}},
        "method": {"name": "simclr"},
        "optim": {"lr": 0.1, "warmup_epochs": 1},
        "train": {"epochs": 4, "batch_size": 32, "checkpoint_every": 4, "log_every": 1},
        "probe": [{"protocol": "knn", "neighbors": 5}],
    },
}


@pytest.fixture
def study_settings() -> dict[str, Any]:
    """The study as a mapping, to be changed."""
    return copy.deepcopy(STUDY)


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """``study_file(settings)``: the study, or given settings, as a file."""

    def write(settings: dict[str, Any] | None = None, name: str = "tiny.yaml") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(settings or STUDY, indent=1))  # which is YAML too
        return path

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that ran uninterrupted: tiny.yaml, results in tiny/, runs in runs/."""
    from sslgh.studies.plan import load_study  # noqa: PLC0415
    from sslgh.studies.run_study import Places, StudyRun  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(json.dumps(STUDY, indent=1))
    study = load_study(folder / "tiny.yaml")
    StudyRun(study, Places(folder / "tiny", folder / "runs"), [], study.blocks).run()
    return folder
