"""Faults of the backbones of libraries, of the precision of a run, and of other platforms than Linux."""

from fault import Fault

PRECISION = "engine/precision.py"

FAULTS = [
    Fault(
        "signals of Linux alone",
        "data/loader.py",
        'for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)',
        'for name in ("SIGTERM", "SIGINT", "SIGUSR1")',
        "test_platforms.py",
    ),
    Fault(
        "Windows locks nothing",
        "engine/run_dir.py",
        "    windows.locking(file, windows.LK_NBLCK, 1)\n",
        "",
        "engine/test_run_dir.py -k windows",
    ),
    Fault(
        "Windows locks the name of the holder",
        "engine/run_dir.py",
        "os.lseek(file, WINDOWS_BYTE, os.SEEK_SET)",
        "os.lseek(file, 0, os.SEEK_SET)",
        "engine/test_run_dir.py -k windows",
    ),
    Fault(
        "Apple's GPU idle",
        "engine/launch.py",
        "(alone and torch.backends.mps.is_available())",
        "False",
        "engine/test_launch.py -k apple",
    ),
    Fault(
        "Apple's GPU without collectives",
        "engine/launch.py",
        "(alone and torch.backends.mps.is_available())",
        "torch.backends.mps.is_available()",
        "engine/test_launch.py -k apple",
    ),
    Fault(
        "emulated bf16 is taken",
        PRECISION,
        "including_emulation=False",
        "including_emulation=True",
        "engine/test_precision.py",
    ),
    Fault(
        "bf16 on every CPU",
        PRECISION,
        'device.type == "cpu" and has_amx()',
        'device.type == "cpu"',
        "engine/test_precision.py",
    ),
    Fault(
        "precision chosen again",
        PRECISION,
        "    if held is None:\n",
        "    if True:\n",
        "engine/test_precision.py",
    ),
    Fault(
        "bf16 that is float32",
        PRECISION,
        "not computes_bf16(device)",
        "False",
        "engine/test_precision.py",
    ),
    Fault(
        "auto is another run",
        "engine/run_dir.py",
        "(path, new) != KEPT_PRECISION",
        "True",
        "engine/test_precision.py",
    ),
    Fault(
        "checkpoint of another precision",
        "engine/run.py",
        "before.precision not in (None, run.environment.precision)",
        "False",
        "engine/test_precision.py",
    ),
]
