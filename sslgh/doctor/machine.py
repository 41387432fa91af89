"""Processors: processes, threads, precision, and whether FAISS has code for the GPU."""

import re
from collections.abc import Collection, Mapping, Sequence

from sslgh.doctor.check_result import CheckResult

Capability = tuple[int, int]

TAKES = "train.precision: auto takes {}"
FIRST_WITH_BF16 = (8, 0)
# Machine code in the wheels, read from their binaries, and whether newer GPUs can compile their own from PTX.
FAISS_CODE: dict[str, tuple[tuple[Capability, ...], bool]] = {
    "faiss-gpu": (((7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0)), True),
    "faiss-gpu-cuvs": (((7, 5), (8, 0), (8, 6), (8, 9), (9, 0)), True),
    "faiss-gpu-cu12": (((7, 0), (8, 0)), False),
    "faiss-gpu-cu11": (((7, 0), (8, 0)), False),
}


def world(environment: Mapping[str, str], *, threads: int, cores: int) -> CheckResult:
    """Processes as launched, and whether their threads have cores.

    Args:
        environment: Variables of this process.
        threads: Threads of torch in this process.
        cores: Cores that this process may use.
    """
    if "MASTER_PORT" in environment and "WORLD_SIZE" not in environment:
        return CheckResult(
            "FAIL",
            "world",
            "the launcher was asked for several processes but started one",
            "use --config_file recipes/accelerate/cpu-2.yaml, or torchrun",
        )
    size = int(environment.get("WORLD_SIZE", "1"))
    here = int(environment.get("LOCAL_WORLD_SIZE", str(size)))
    found = f"{size} process(es), {here} on this machine, {threads} threads each, {cores} cores"
    if here * threads > cores:
        remedy = f"set OMP_NUM_THREADS={max(cores // here, 1)}"
        return CheckResult("warn", "world", found, f"more threads than cores: {remedy}")
    return CheckResult("ok", "world", found)


def cpu_precision(amx: bool, precision: str) -> CheckResult:
    """Whether bf16 is fast on this processor.

    Args:
        amx: Whether the CPU has AMX (matrix instructions for bf16).
        precision: ``train.precision`` of the recipe.
    """
    if amx:
        return CheckResult("ok", "precision", f"the CPU has AMX, {TAKES.format('bf16')}")
    found = f"the CPU has no AMX and computes bf16 slower than fp32, {TAKES.format('fp32')}"
    if precision == "bf16":
        return CheckResult("warn", "precision", found, "set train.precision: auto")
    return CheckResult("ok", "precision", found)


def gpu_precision(name: str, capability: Capability, precision: str) -> CheckResult:
    """Whether the GPU has bf16.

    Args:
        name: Name of the GPU.
        capability: Compute capability of the GPU.
        precision: ``train.precision`` of the recipe.
    """
    found = f"{name}, compute capability {_dotted(capability)}"
    if capability >= FIRST_WITH_BF16:
        return CheckResult("ok", "precision", f"{found}, has bf16, {TAKES.format('bf16')}")
    found += f", emulates bf16, slowly, {TAKES.format('fp32')}"
    if precision == "bf16":
        return CheckResult("warn", "precision", found, "set train.precision: auto")
    return CheckResult("ok", "precision", found)


def torch_against_device(architectures: Sequence[str], capability: Capability) -> CheckResult:
    """Whether torch has code for the GPU.

    Args:
        architectures: ``torch.cuda.get_arch_list()``, such as sm_90 and compute_90.
        capability: Compute capability of the GPU.
    """
    code = [_capability(name) for name in architectures if name.startswith("sm_")]
    portable = [_capability(name) for name in architectures if name.startswith("compute_")]
    if _runs(code, capability) or any(one <= capability for one in portable):
        return CheckResult("ok", "torch's GPU code", f"serves capability {_dotted(capability)}")
    return CheckResult(
        "FAIL",
        "torch's GPU code",
        f"is for {', '.join(architectures)}, not for capability {_dotted(capability)}",
        "install a torch built for this GPU (pytorch.org), or hide it: CUDA_VISIBLE_DEVICES=",
    )


def _capability(name: str) -> Capability:
    digits = re.sub(r"\D", "", name)
    return int(digits[:-1]), int(digits[-1])


def _runs(code: Collection[Capability], capability: Capability) -> bool:
    """Code of a GPU runs on later ones of the same major number."""
    return any(one[0] == capability[0] and one <= capability for one in code)


def faiss_against_device(
    compile_options: str, capability: Capability | None, package: str, visible: int
) -> CheckResult:
    """Whether FAISS has code for the GPU.

    Args:
        compile_options: ``faiss.get_compile_options()``.
        capability: Compute capability of the GPU; None: there is none.
        package: Name of the installed distribution.
        visible: GPUs that FAISS sees.
    """
    subject, build = "FAISS", f"{package} ({' '.join(compile_options.split())})"
    if capability is None:
        return CheckResult("ok", subject, f"{build} clusters on the CPU")
    if "GPU" not in compile_options.split():
        remedy = f"pip uninstall {package}, then pip install faiss-gpu"
        return CheckResult(
            "warn", subject, f"{build} has no GPU code, it clusters on the CPU", remedy
        )
    if package not in FAISS_CODE:
        return CheckResult("ok", subject, f"{build}, whose GPU code is not known here")
    code, portable = FAISS_CODE[package]
    if not _runs(code, capability) and not (portable and capability > max(code)):
        return CheckResult(
            "FAIL",
            subject,
            f"{package} has no code for capability {_dotted(capability)} of this GPU, clustering would "
            "fail with 'no kernel image'",
            f"pip uninstall {package}, then pip install faiss-gpu",
        )
    if visible == 0:
        return CheckResult(
            "warn",
            subject,
            f"{build} sees no GPU where torch sees one, it clusters on the CPU",
            "update the NVIDIA driver to one that serves FAISS's CUDA 12",
        )
    return CheckResult("ok", subject, f"{build} has code for capability {_dotted(capability)}")


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))
