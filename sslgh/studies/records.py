"""The result of an arm in a block: one small JSON file, which can stay in the tree."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sslgh.engine.run_dir import write_text
from sslgh.recipe import RecipeError
from sslgh.studies.plan import Arm, Study, StudyBlock

Metrics = dict[str, dict[str, dict[str, dict[str, float | None]]]]


@dataclass(frozen=True)
class ArmResult:
    """What an arm reached in a block, and on which conditions.

    Attributes:
        study: Name of the study.
        design: Hash of all that decides the numbers (`Study.design_hash`).
        hypotheses: Hash of the hypotheses as they stood (`Study.hypotheses_hash`).
        block: Name of the block.
        arm: Name of the arm.
        warmup: SHA-256 of the weights at the branch: only results with equal ones are paired.
        precision: fp32 or bf16.
        device: Kind of the device.
        threads: CPU threads.
        commit: Commit of sslgh, with "+changes" if its files differ from it; None outside of a repository.
        versions: Versions of packages.
        seconds: Seconds of ``training`` after the branch, by the median rate, and of ``probing``.
        metrics: Shares between 0 and 1: protocol, objective, convention of groups, metric.
        diagnostics: Values of the log after the branch.
    """

    study: str
    design: str
    hypotheses: str
    block: str
    arm: str
    warmup: str
    precision: str
    device: str
    threads: int
    commit: str | None
    versions: dict[str, str | None]
    seconds: dict[str, float]
    metrics: Metrics
    diagnostics: dict[str, float | None]

    def value(self, metric: str, groups: str) -> float | None:
        """The metric of a path "protocol.objective.metric" by a convention of groups; None if there is none."""
        protocol, objective, name = metric.split(".")
        try:
            return self.metrics[protocol][objective][groups][name]
        except KeyError:
            return None


Records = dict[tuple[str, str], ArmResult]


def record_path(folder: Path, arm: Arm, block: StudyBlock) -> Path:
    """The file of an arm's result in a block."""
    return folder / f"{block.name}-{arm.name}.json"


def write_record(folder: Path, record: ArmResult) -> None:
    """Write a result whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(record), indent=1, allow_nan=False) + "\n"
    write_text(folder / f"{record.block}-{record.arm}.json", text)


def read_records(study: Study, folder: Path) -> Records:
    """All results of a study, by block and arm.

    Raises:
        RecipeError: If a file is no result, or belongs to another study or to one that was changed.
    """
    known = {(block.name, arm.name): (arm, block) for arm, block in study.cells()}
    found: Records = {}
    for path in sorted(folder.glob("*.json")):
        record = _read(path)
        place = known.get((record.block, record.arm))
        if record.study != study.name or place is None:
            _refuse(
                path, study, f"is of study {record.study}, arm {record.arm}, block {record.block}"
            )
        elif record.design != study.design_hash(*place):
            _refuse(path, study, "is of other settings of this study")
        elif path != record_path(folder, *place):
            _refuse(path, study, f"holds arm {record.arm} of block {record.block}")
        found[record.block, record.arm] = record
    return found


def _refuse(path: Path, study: Study, problem: str) -> None:
    raise RecipeError(
        f"{path} {problem}, and does not belong to study {study.name}; move it away, or choose another --out"
    )


def _read(path: Path) -> ArmResult:
    try:
        held: Mapping[str, Any] = json.loads(path.read_text())
        return ArmResult(**held)
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"{path} is no result of a study ({reason}); move it away") from None
