"""Plant one-line faults in a copy of the package and see a test fail for each.

    python scripts/plant_faults.py

A fault whose text is no longer in the file, or that no test notices, makes the exit code 1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]


class Fault(NamedTuple):
    """What to replace by what, and the tests that must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str


NT_XENT, COSINE = "functional/contrastive.py", "functional/cosine.py"
SINKHORN, GH = "functional/sinkhorn.py", "functional/harmonization.py"
MARGINS, ELM = "functional/margins.py", "functional/embedding_margin.py"
FRAMES, HARMONIZER = "functional/frames.py", "harmonize/harmonizer.py"
MEMORY, POPULATION = "harmonize/memory.py", "harmonize/population.py"
WORLD, NORM = "distributed.py", "models/batch_norm.py"

FAULTS = [
    Fault("own row not masked", NT_XENT, "logits.scatter_(1, itself[:, None], -torch.inf)", "pass", "functional/test_contrastive.py"),
    Fault("rank offset forgotten", NT_XENT, "torch.arange(first, first + len(z1)", "torch.arange(0, len(z1)", "functional/test_contrastive.py"),
    Fault("one anchor only", NT_XENT, ".view(2, -1).mean(0)", ".view(2, -1)[0]", "functional/test_contrastive.py"),
    Fault("second view not normalised", NT_XENT, "F.normalize(z2)]", "z2]", "functional/test_contrastive.py"),
    Fault("temperature multiplies", NT_XENT, "(anchors / temperature)", "(anchors * temperature)", "functional/test_contrastive.py"),
    Fault("no float32 island", NT_XENT, "@in_float32\n", "", "functional/test_contrastive.py"),
    Fault("stop-gradient removed", COSINE, "target.detach()", "target", "functional/test_cosine.py"),
    Fault("sign lost", COSINE, "return -F", "return F", "functional/test_cosine.py"),
    Fault("dot product for cosine", COSINE, "-F.cosine_similarity(prediction, target.detach(), dim=1)", "-(prediction * target.detach()).sum(1)", "functional/test_cosine.py"),
    Fault("prior ignored", SINKHORN, "num_samples * prior / prior.sum()", "num_samples * torch.ones_like(prior) / len(prior)", "functional/test_sinkhorn.py"),
    Fault("column update forgotten", SINKHORN, "log_kernel = log_kernel + log_rows + log_columns", "log_kernel = log_kernel + log_rows", "functional/test_sinkhorn.py"),
    Fault("epsilon multiplies", SINKHORN, "/ epsilon  # (B", "* epsilon  # (B", "functional/test_sinkhorn.py"),
    Fault("tolerance ignored", SINKHORN, "if tolerance is not None and", "if False and", "functional/test_sinkhorn.py"),
    Fault("one iteration too few", SINKHORN, "done = 1", "done = 2", "functional/test_sinkhorn.py"),
    Fault("views not swapped", GH, "labels.flip(0)", "labels", "functional/test_harmonization.py"),
    Fault("mean of the two terms", GH, ".mean(1).sum()", ".mean(1).mean()", "functional/test_harmonization.py"),
    Fault("temperature on the labels", GH, "scores.detach(), prior", "scores.detach() / temperature, prior", "functional/test_harmonization.py"),
    Fault("scores not normalised", "functional/vertices.py", "return F.normalize(z @ vertices.to(z.dtype).T)", "return z @ vertices.to(z.dtype).T", "functional/test_harmonization.py"),
    Fault("margin of the wrong sign", MARGINS, "margin=(-column, column)", "margin=(column, -column)", "functional/test_margins.py"),
    Fault("own margin forgotten", MARGINS, "own = own - row[target, None]", "own = own + 0", "functional/test_margins.py"),
    Fault("weight forgotten", MARGINS, "return weight[target] * loss", "return loss", "functional/test_margins.py"),
    Fault("tau ignored", MARGINS, "tau * prior.log(), -torch.inf", "prior.log(), -torch.inf", "functional/test_margins.py"),
    Fault("class without share predicted", MARGINS, "torch.where(shift == -torch.inf, -torch.inf, logits - shift)", "torch.where(shift == -torch.inf, 0, logits - shift)", "functional/test_margins.py"),
    Fault("anchor is its own mate", ELM, "mates[:, : len(target)].fill_diagonal_(False)", "pass", "functional/test_embedding_margin.py"),
    Fault("rivals summed, not averaged", ELM, "(shift - torch.bincount(labels, minlength=classes).log())[labels]", "shift[labels]", "functional/test_embedding_margin.py"),
    Fault("margin of the anchor forgotten", ELM, "[labels] - shift[target, None]", "[labels]", "functional/test_embedding_margin.py"),
    Fault("own class among the rivals", ELM, "(similarity + share).masked_fill(same, -torch.inf)", "(similarity + share)", "functional/test_embedding_margin.py"),
    Fault("simplex not scaled", FRAMES, "(k / (k - 1)) ** 0.5 * basis", "basis", "functional/test_frames.py"),
    Fault("simplex not centred", FRAMES, "torch.eye(k, dtype=torch.float64) - 1 / k", "torch.eye(k, dtype=torch.float64)", "functional/test_frames.py"),
    Fault("gather without gradient", WORLD, "stacked, first = _Gather.apply(tensor)", "stacked, first = _Gather.apply(tensor.detach())", "functional/test_contrastive.py"),
    Fault("gather's backward not summed", WORLD, "dist.all_reduce(total)\n        return", "return", "functional/test_contrastive.py"),
    Fault("weights not summed over processes", WORLD, "dist.all_reduce(total)\n        total = total / world().size", "pass", "functional/test_contrastive.py"),
    Fault("global sum without the factor P", WORLD, "total = total / world().size", "pass", "functional/test_contrastive.py"),
    Fault("norm statistics between processes", NORM, "squares.sum(0) + between", "squares.sum(0)", "models/test_batch_norm.py"),
    Fault("norm gradient stays at home", NORM, "input.new_tensor(input.numel()", "(input := input.detach()).new_tensor(input.numel()", "models/test_batch_norm.py"),
    Fault("no ramp", HARMONIZER, "min(max(ramp, 0.0), 1.0)", "float(ramp > 0)", "harmonize/test_harmonizer.py"),
    Fault("begin_epoch not idempotent", HARMONIZER, "if epoch <= int(self.epoch):", "if False:", "harmonize/test_harmonizer.py"),
    Fault("own batch only", HARMONIZER, "everyone, _ = gather(torch.cat([z1, z2], dim=1).float())", "everyone = torch.cat([z1, z2], dim=1)", "harmonize/test_harmonizer.py"),
    Fault("refresh never again", HARMONIZER, "epoch - refreshed >= self.refresh_every", "False", "harmonize/test_harmonizer.py"),
    Fault("prior of the refresh ignored", HARMONIZER, "self.prior.copy_(estimate.prior)", "pass", "harmonize/test_harmonizer.py"),
    Fault("first touch blended with zeros", MEMORY, "torch.where(known[:, None], old.lerp(fresh, 1 - momentum), fresh)", "old.lerp(fresh, 1 - momentum)", "harmonize/test_memory.py"),
    Fault("last duplicate wins", MEMORY, '"amin"', '"amax"', "harmonize/test_memory.py"),
    Fault("nan let in", MEMORY, "torch.where(rows.isfinite().all(1), position, count)", "position", "harmonize/test_memory.py"),
    Fault("momentum the wrong way", MEMORY, "old.lerp(fresh, 1 - momentum)", "old.lerp(fresh, momentum)", "harmonize/test_memory.py"),
    Fault("one beta for both phases", POPULATION, "self.warmup_momentum if warm else self.momentum", "self.momentum", "harmonize/test_harmonizer.py"),
    Fault("floor forgotten", POPULATION, "counts += self.prior_floor", "pass", "harmonize/test_harmonizer.py"),
    Fault("vertices turned at every refresh", POPULATION, "self.aligned.fill_(True)", "pass", "harmonize/test_harmonizer.py"),
]  # fmt: skip


def notice(fault: Fault, folder: Path) -> str:
    """Plant a fault in a fresh copy; "caught", or what is wrong with the guard."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("sslgh", "tests", "recipes"):
        shutil.copytree(REPOSITORY / part, folder / part)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    path = folder / "sslgh" / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        return f"NOT PLANTED ({text.count(fault.old)} places)"
    path.write_text(text.replace(fault.old, fault.new))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-qx",
        "-p",
        "no:cacheprovider",
        f"tests/{fault.tests}",
    ]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if ended.returncode != 1:
        return f"SURVIVED (pytest exit {ended.returncode})"
    failed = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "caught by " + (failed[0].split("::")[-1].split(" - ")[0] if failed else "a failure")


def main() -> int:
    """Plant all faults, or those whose name or file holds an argument."""
    wanted = [f for f in FAULTS if all(word in f.name + f.file for word in sys.argv[1:])]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for fault in wanted:
            found = notice(fault, Path(folder) / "copy")
            missed += not found.startswith("caught")
            print(f"{fault.file:<32} {fault.name:<36} {found}", flush=True)
    print(f"{len(wanted) - missed} of {len(wanted)} faults caught")
    return int(missed > 0 or not wanted)


if __name__ == "__main__":
    raise SystemExit(main())
