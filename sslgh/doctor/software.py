"""Packages: which are there, whether they import, and which do not go together."""

import importlib
import importlib.metadata
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from sslgh.doctor.check_result import CheckResult

NEEDED = ("sslgh", "torch", "torchvision", "accelerate", "lightly", "faiss", "numpy", "sklearn")
FAISS = ("faiss-gpu", "faiss-cpu", "faiss-gpu-cu12", "faiss-gpu-cu11", "faiss-gpu-cuvs")
REMEDIES = {
    "torchvision": "install the torch and torchvision of one release and one build, in one pip "
    "command: pip install --upgrade torch torchvision",
    "sklearn": "pip install --upgrade scikit-learn",
    "faiss": "install faiss-gpu (Linux on x86-64) or faiss-cpu with its dependencies, never both, or "
    "set harmonize.population: prototypes",
}


def software() -> Iterator[CheckResult]:
    """All findings about packages; a FAIL that is not about FAISS leaves no way to look further."""
    faults = import_faults()
    names = (*(name for name in NEEDED if name not in ("faiss", "sklearn")), *FAISS)
    yield from packages(faults, installed(names))
    yield faiss_packages(installed(FAISS))
    if "sklearn" not in faults:
        yield openmp(openmp_runtimes())


def unusable(failed: Collection[str]) -> bool:
    """Whether a package is broken without which no command starts: any but FAISS.

    Args:
        failed: Subjects of the findings that are faults.
    """
    return bool(set(failed) & set(NEEDED) - {"faiss"})


def installed(names: Collection[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def import_faults(names: Sequence[str] = NEEDED) -> dict[str, str]:
    """Reasons of those packages that do not import."""
    faults = {}
    for name in names:
        try:
            importlib.import_module(name)
        # torchvision of another torch and FAISS without its CUDA libraries raise RuntimeError,
        # a library that is cut off OSError, one for another NumPy AttributeError.
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            faults[name] = (str(error).splitlines() or [type(error).__name__])[0]
    return faults


def packages(faults: Mapping[str, str], versions: Mapping[str, str]) -> list[CheckResult]:
    """What is installed, in one line, then a line for each that does not import.

    Args:
        faults: Result of `import_faults`.
        versions: Result of `installed`.
    """
    python = sys.version.split()[0]
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [CheckResult("ok", "versions", f"python {python}, {known}")]
    for name, reason in faults.items():
        remedy = REMEDIES.get(name, f"pip install --upgrade {name}")
        lines.append(CheckResult("FAIL", name, f"cannot be imported ({reason})", remedy))
    return lines


def faiss_packages(names: Collection[str]) -> CheckResult:
    """Whether one FAISS is installed: all wheels write the same folder ``faiss``.

    Args:
        names: Distributions of FAISS that are installed.
    """
    several = sorted(names)
    if len(several) > 1:
        return CheckResult(
            "FAIL",
            "FAISS packages",
            f"{' and '.join(several)} have overwritten each other",
            f"pip uninstall {' '.join(several)}, then install one of them",
        )
    if not several:
        return CheckResult(
            "FAIL", "FAISS packages", "none is installed", "pip install faiss-gpu, or faiss-cpu"
        )
    return CheckResult("ok", "FAISS packages", f"{several[0]} alone")


def openmp(runtimes: Sequence[tuple[str, str]]) -> CheckResult:
    """Whether the OpenMP runtimes in this process get on with each other.

    Args:
        runtimes: Kind, such as libgomp, and file of each that is loaded.
    """
    kinds = sorted({kind for kind, _ in runtimes})
    if len(kinds) > 1:
        files = ", ".join(file for _, file in runtimes)
        return CheckResult(
            "warn",
            "OpenMP",
            f"{' and '.join(kinds)} in one process ({files}), which can crash, hang or share no threads",
            "install all packages by pip from PyPI instead of mixing conda's and pip's",
        )
    if not runtimes:
        return CheckResult("ok", "OpenMP", "none is loaded")
    # Two copies of libgomp are what the wheels of torch and FAISS bring; both orders of import work.
    owners = ", ".join(_owner(Path(file)) for _, file in runtimes)
    times = "once" if len(runtimes) == 1 else f"{len(runtimes)} copies, which get on on Linux"
    return CheckResult("ok", "OpenMP", f"{kinds[0]}, {times} ({owners})")


def _owner(file: Path) -> str:
    """The folder of site-packages that a library lies in."""
    parts = file.parts
    if "site-packages" in parts[:-1]:
        return parts[parts.index("site-packages") + 1]
    return str(file)


def openmp_runtimes() -> list[tuple[str, str]]:
    """Kind and file of the OpenMP runtimes that are loaded now."""
    # Comes with scikit-learn, and sees what is loaded by now.
    threadpoolctl = importlib.import_module("threadpoolctl")
    return [
        (str(entry["prefix"]), str(entry["filepath"]))
        for entry in threadpoolctl.threadpool_info()
        if entry["user_api"] == "openmp"
    ]
