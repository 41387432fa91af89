"""Compare runs of this tree with runs of commit dd31d59, bit for bit.

    python scripts/checks/bit_identity.py
    python scripts/checks/bit_identity.py --only simclr longtail --processes 1 --reference /tmp/ref

The reference runs are recorded on this machine from the sources of dd31d59, because kernels round
differently on other CPUs. Every run is 20 optimizer steps on long-tailed digits, on 1 and on 2
processes (CPU, gloo), one thread each. Compared are `metrics.jsonl` without rates, the tensors of
the weights and of the last checkpoint, and the results of the supervised runs; then the results
and printed tables of a longtail and a knn probe.

A refactor that renames something declares it in a RENAMED table of `identity_comparison.py`, or
gives a case other arguments for the new tree in `identity_cases.py`. Nothing else may differ: the
exit code is 1 if anything does, or if fewer cases were compared than expected.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from identity_cases import CASES, CHANGED, COMMIT, NUM_CASES, PROBES, CheckError, Job, Probe, Tree
from identity_comparison import compare_probes, compare_runs
from identity_runs import REPOSITORY, check_reference, record, record_probe, run_probe, train

MAX_PER_FILE = 3


def main() -> int:
    """Record or reuse the references, run this tree, compare; return an exit code."""
    options = _options()
    try:
        return _check(options)
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    names = [entry.name for entry in (*CASES, *PROBES)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", help=f"some of: {', '.join(names)}"
    )
    parser.add_argument(
        "--processes", type=int, choices=(1, 2), help="number of processes; default: both"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="DIR",
        help="keep the reference runs there, and reuse those that this machine recorded",
    )
    parser.add_argument(
        "--checkout",
        type=Path,
        default=REPOSITORY,
        metavar="DIR",
        help="tree to check instead of the one that holds this script",
    )
    parser.add_argument("--all", action="store_true", help="print every difference")
    return parser.parse_args()


def _check(options: argparse.Namespace) -> int:
    started = time.perf_counter()
    jobs, probes = selected(options.only, options.processes)
    expected = len(jobs) + len(probes)
    everything = options.only is None and options.processes is None
    if expected == 0 or (everything and expected < NUM_CASES):
        least = NUM_CASES if everything else 1
        raise CheckError(f"{expected} cases are selected, expected at least {least}")
    folder = Path(tempfile.mkdtemp(prefix="bit-identity-"))
    old = Tree(folder / "checkout", (options.reference or folder / "old").resolve(), is_old=True)
    new = Tree(options.checkout.resolve(), folder / "new", is_old=False)
    identical = compared = 0
    for case, differences in outcomes(old, new, jobs, probes):
        compared += 1
        identical += not differences
        print(f"{case}: {'DIFFERS' if differences else 'identical'}", flush=True)
        for line in differences if options.all else shortened(differences):
            print(f"  {line}", flush=True)
    for name, reason in CHANGED.items():
        print(f"{name}: not compared, changed by design ({reason})")
    passed = identical == compared == expected
    if passed:
        shutil.rmtree(folder)
    else:
        print(f"the runs are kept in {folder}")
    print(f"{time.perf_counter() - started:.0f} s against {COMMIT}", flush=True)
    print(f"{identical} of {expected} cases identical")
    return 0 if passed else 1


def selected(names: Sequence[str] | None, processes: int | None) -> tuple[list[Job], list[Probe]]:
    """Jobs and probes to compare.

    Args:
        names: Names of cases and probes; None selects all.
        processes: Number of processes; None selects both. Probes have 1.
    """
    sizes = (1, 2) if processes is None else (processes,)
    jobs = [
        Job(case, size) for case in CASES for size in sizes if names is None or case.name in names
    ]
    probes = [probe for probe in PROBES if (1 in sizes if names is None else probe.name in names)]
    return jobs, probes


def shortened(differences: Sequence[str]) -> list[str]:
    """The first differences of each file, and how many more it has."""
    files: dict[str, list[str]] = {}
    for line in differences:
        files.setdefault(re.split("[:,]| line", line)[0], []).append(line)
    found = []
    for file, lines in files.items():
        found += lines[:MAX_PER_FILE]
        if len(lines) > MAX_PER_FILE:
            found.append(f"{file}: {len(lines) - MAX_PER_FILE} more differences")
    return found


def needed(jobs: Sequence[Job], probes: Sequence[Probe]) -> list[Job]:
    """Jobs to run: those to compare, and the 1-process runs to probe."""
    probed = {probe.of for probe in probes}
    runs = [Job(case, 1) for case in CASES if case.name in probed]
    return [*jobs, *(job for job in runs if job not in jobs)]


def outcomes(
    old: Tree, new: Tree, jobs: Sequence[Job], probes: Sequence[Probe]
) -> Iterator[tuple[str, list[str]]]:
    """Run everything in both trees, and yield each case with its differences.

    Raises:
        CheckError: If a reference cannot be recorded, or is not the test that it should be.
    """
    failures: dict[str, str] = {}
    for job in needed(jobs, probes):
        record(old, job)
        check_reference(old.runs / job.name)
        started = time.perf_counter()
        failure = train(new, job)
        if failure is not None:
            failures[job.name] = failure
        if job not in jobs:
            continue
        found = [failure] if failure else compare_runs(old.runs / job.name, new.runs / job.name)
        yield f"{job.case.name}, {_processes(job)} ({time.perf_counter() - started:.0f} s)", found
    for entry in probes:
        run_name = f"{entry.of}-1"
        record_probe(old, entry)
        failure = failures.get(run_name) or run_probe(new, entry)
        yield (
            f"{entry.name} probe of {entry.of}",
            [failure] if failure else compare_probes(old.runs, new.runs, entry),
        )


def _processes(job: Job) -> str:
    return "1 process" if job.processes == 1 else f"{job.processes} processes"


if __name__ == "__main__":
    sys.exit(main())
