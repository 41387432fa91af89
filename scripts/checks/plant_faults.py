"""Mutation test: plant one-line faults in a copy of the package; a test must fail for each.

    python scripts/checks/plant_faults.py
    python scripts/checks/plant_faults.py moco

The second form plants only the faults that have all the words in their name or file. A fault whose text
is no longer in the file, or that no test notices, makes the exit code 1.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fault import Fault
from faults_of_backbones import FAULTS as OF_BACKBONES
from faults_of_harmonization import FAULTS as OF_HARMONIZATION
from faults_of_input import FAULTS as OF_INPUT
from faults_of_labels import FAULTS as OF_LABELS
from faults_of_look import FAULTS as OF_LOOK
from faults_of_photos import FAULTS as OF_PHOTOS
from faults_of_pretraining import FAULTS as OF_PRETRAINING
from faults_of_reliability import FAULTS as OF_RELIABILITY
from faults_of_studies import FAULTS as OF_STUDIES
from faults_of_weights import FAULTS as OF_WEIGHTS

REPOSITORY = Path(__file__).resolve().parents[2]

NT_XENT, COSINE = "functional/nt_xent.py", "functional/negative_cosine.py"
SINKHORN, GH = "functional/sinkhorn.py", "functional/harmonization.py"
MARGINS, ELM = "functional/margins.py", "functional/embedding_terms.py"
FRAMES, HARMONIZER = "functional/frames.py", "harmonize/harmonizer.py"
MEMORY, POPULATION = "harmonize/ema_bank.py", "harmonize/population.py"
WORLD, NORM = "distributed.py", "models/batch_norm.py"
RULES, FOCAL = "functional/margin_rules.py", "functional/focal.py"
SUPCON, CONTRAST_SET = "functional/supervised_contrastive.py", "functional/contrast_set.py"
CAL, CONFUSION, SCORING = (
    "functional/calibration.py",
    "functional/groups.py",
    "evaluation/scoring.py",
)
PROBING, PLAN = "evaluation/probing.py", "evaluation/probe_settings.py"
SAMPLING, POLICIES = "data/class_sampling.py", "data/supervised_augment.py"
FINETUNING, NETWORK = "engine/finetuning.py", "classify/network.py"
SOLVER, PROBE = "classify/solver.py", "classify/estimator.py"
CONVERGED = "classify/converged_heads.py"

FAULTS = [
    Fault("own row not masked", NT_XENT, "logits.scatter_(1, itself[:, None], -torch.inf)", "pass", "functional/test_nt_xent.py"),
    Fault("rank offset forgotten", NT_XENT, "torch.arange(first, first + len(z1)", "torch.arange(0, len(z1)", "functional/test_nt_xent.py"),
    Fault("one anchor only", NT_XENT, ".view(2, -1).mean(0)", ".view(2, -1)[0]", "functional/test_nt_xent.py"),
    Fault("second view not normalized", NT_XENT, "F.normalize(z2)]", "z2]", "functional/test_nt_xent.py"),
    Fault("temperature multiplies", NT_XENT, "(anchors / temperature)", "(anchors * temperature)", "functional/test_nt_xent.py"),
    Fault("no float32 island", NT_XENT, "@in_float32\n", "", "functional/test_nt_xent.py"),
    Fault("stop-gradient removed", COSINE, "target.detach()", "target", "functional/test_negative_cosine.py"),
    Fault("sign lost", COSINE, "return -F", "return F", "functional/test_negative_cosine.py"),
    Fault("dot product for cosine", COSINE, "-F.cosine_similarity(prediction, target.detach(), dim=1)", "-(prediction * target.detach()).sum(1)", "functional/test_negative_cosine.py"),
    Fault("prior ignored", SINKHORN, "num_samples * prior / prior.sum()", "num_samples * torch.ones_like(prior) / len(prior)", "functional/test_sinkhorn.py"),
    Fault("column update forgotten", SINKHORN, "log_kernel = log_kernel + log_rows + log_columns", "log_kernel = log_kernel + log_rows", "functional/test_sinkhorn.py"),
    Fault("epsilon multiplies", SINKHORN, "/ epsilon  # (B", "* epsilon  # (B", "functional/test_sinkhorn.py"),
    Fault("tolerance ignored", SINKHORN, "if tolerance is not None and", "if False and", "functional/test_sinkhorn.py"),
    Fault("one iteration too few", SINKHORN, "done = 1", "done = 2", "functional/test_sinkhorn.py"),
    Fault("views not swapped", GH, "labels.flip(0)", "labels", "functional/test_harmonization.py"),
    Fault("mean of the two terms", GH, ".mean(1).sum()", ".mean(1).mean()", "functional/test_harmonization.py"),
    Fault("temperature on the labels", GH, "scores.detach(), prior", "scores.detach() / temperature, prior", "functional/test_harmonization.py"),
    Fault("scores not normalized", "functional/harmonization.py", "scores: Tensor = projections / length.clamp(min=SHORTEST)", "scores: Tensor = projections", "functional/test_harmonization.py"),
    Fault("margin of the wrong sign", MARGINS, "margin=(-column, column)", "margin=(column, -column)", "functional/test_margins.py"),
    Fault("own margin forgotten", MARGINS, "local = local - row[target, None]", "local = local + 0", "functional/test_margins.py"),
    Fault("weight forgotten", MARGINS, "return weight[target] * loss", "return loss", "functional/test_margins.py"),
    Fault("tau ignored", RULES, "tau * prior.log(), -torch.inf", "prior.log(), -torch.inf", "functional/test_margins.py"),
    Fault("class without share predicted", MARGINS, "torch.where(shift == -torch.inf, -torch.inf, logits - shift)", "torch.where(shift == -torch.inf, 0, logits - shift)", "functional/test_margins.py"),
    Fault("simplex not scaled", FRAMES, "(k / (k - 1)) ** 0.5 * basis", "basis", "functional/test_frames.py"),
    Fault("simplex not centered", FRAMES, "torch.eye(k, dtype=torch.float64) - 1 / k", "torch.eye(k, dtype=torch.float64)", "functional/test_frames.py"),
    Fault("gather without gradient", WORLD, "stacked, first = _Gather.apply(tensor)", "stacked, first = _Gather.apply(tensor.detach())", "functional/test_nt_xent.py"),
    Fault("gather's backward not summed", WORLD, "dist.all_reduce(total)\n        return", "return", "functional/test_nt_xent.py"),
    Fault("weights not summed over processes", WORLD, "dist.all_reduce(total)\n        total = total / dist_info().size", "pass", "functional/test_nt_xent.py"),
    Fault("global sum without the factor P", WORLD, "total = total / dist_info().size", "pass", "functional/test_nt_xent.py"),
    Fault("norm statistics between processes", NORM, "squares.sum(0) + between", "squares.sum(0)", "models/test_batch_norm.py"),
    Fault("norm gradient stays at home", NORM, "input.new_tensor(input.numel()", "(input := input.detach()).new_tensor(input.numel()", "models/test_batch_norm.py"),
    Fault("no ramp", HARMONIZER, "min(max(steps / self.settings.ramp_epochs, 0.0), 1.0)", "float(steps > 0)", "harmonize/test_harmonizer.py"),
    Fault("begin_epoch not idempotent", HARMONIZER, "if epoch > int(self.epoch):", "if True:", "harmonize/test_harmonizer.py"),
    Fault("own batch only", HARMONIZER, "gathered, _ = gather(torch.cat([z1, z2], dim=1).float())", "gathered = torch.cat([z1, z2], dim=1)", "harmonize/test_harmonizer.py"),
    Fault("refresh never again", HARMONIZER, "epoch - refreshed >= self.settings.refresh_every", "False", "harmonize/test_harmonizer.py"),
    Fault("prior of the refresh ignored", HARMONIZER, "self.prior.lerp_(counts / counts.sum(), rate)", "pass", "harmonize/test_harmonizer.py"),
    Fault("first touch blended with zeros", MEMORY, "torch.where(known[:, None], old.lerp(fresh, 1 - momentum), fresh)", "old.lerp(fresh, 1 - momentum)", "harmonize/test_ema_bank.py"),
    Fault("last duplicate wins", MEMORY, '"amin"', '"amax"', "harmonize/test_ema_bank.py"),
    Fault("nan let in", MEMORY, "torch.where(rows.isfinite().all(1), position, count)", "position", "harmonize/test_ema_bank.py"),
    Fault("momentum the wrong way", MEMORY, "old.lerp(fresh, 1 - momentum)", "old.lerp(fresh, momentum)", "harmonize/test_ema_bank.py"),
    Fault("one beta for both phases", POPULATION, "gh.warmup_momentum if in_warmup else gh.momentum", "gh.momentum", "harmonize/test_harmonizer.py"),
    Fault("floor forgotten", POPULATION, "counts += self.settings.prior_floor", "pass", "harmonize/test_harmonizer.py"),
    Fault("vertices turned at every refresh", HARMONIZER, "        if self.started < 0:\n            # Later", "        if True:\n            # Later", "harmonize/test_harmonizer.py"),
    Fault("anchor is its own mate", CONTRAST_SET, "same.scatter(1, itself[:, None], False)", "same", "functional/test_contrast_set.py"),
    Fault("rivals summed, not averaged", ELM, "(shift - gathered.class_sizes(len(prior)).log())[gathered.labels]", "shift[gathered.labels]", "functional/test_embedding_terms.py"),
    Fault("margin of the anchor forgotten", ELM, "similarity + share - shift[target, None]", "similarity + share", "functional/test_embedding_terms.py"),
    Fault("own class among the rivals", ELM, "aside = gathered.same | (share", "aside = (share", "functional/test_embedding_terms.py"),
    Fault("rival without share has a gradient", ELM, "gathered.same | (share == -torch.inf)", "gathered.same", "functional/test_contrast_set.py"),
    Fault("labels stay at home", CONTRAST_SET, "labels = gather(target)[0] if gather else target", "labels = target", "functional/test_contrast_set.py"),
    Fault("rank offset forgotten in the set", CONTRAST_SET, "torch.arange(first, first + len(target)", "torch.arange(0, len(target)", "functional/test_contrast_set.py"),
    Fault("anchor in its own denominator", SUPCON, "masked_fill(~gathered.others, -torch.inf)", "masked_fill(gathered.others & False, -torch.inf)", "functional/test_supervised_contrastive.py"),
    Fault("mates left out of the denominator", SUPCON, "masked_fill(~gathered.others, -torch.inf)", "masked_fill(gathered.same, -torch.inf)", "functional/test_supervised_contrastive.py"),
    Fault("anchor counted in its class", SUPCON, " - gathered.same.to(similarity)", "", "functional/test_supervised_contrastive.py"),
    Fault("scale not squared", SUPCON, "temperature / scale**2", "temperature / scale", "functional/test_supervised_contrastive.py"),
    Fault("own share forgotten in the margin", RULES, "row=_present(prior, -column)", "row=torch.zeros_like(column)", "functional/test_margin_rules.py"),
    Fault("consistent weight of the wrong power", RULES, "prior ** (tau - 1)", "prior ** (1 - tau)", "functional/test_margin_rules.py"),
    Fault("effective number without expm1", RULES, "-torch.expm1(prior * num_samples * math.log(BETA))", "(1 - BETA ** (prior * num_samples))", "functional/test_margin_rules.py"),
    Fault("equalized keeps the own margin", RULES, "._replace(row=torch.zeros_like(prior))", "", "functional/test_margin_rules.py"),
    Fault("focus where p rounds to one", FOCAL, "-torch.exp(gamma * F.logsigmoid(lead))", "-((1 - torch.sigmoid(-lead)) ** gamma)", "functional/test_focal.py"),
    Fault("hinge on the farthest rival", "functional/embedding_terms.py", "aside, -torch.inf).amax(", "aside, torch.inf).amin(", "functional/test_embedding_terms.py"),
    Fault("pull of the common classes", "functional/embedding_terms.py", "prior ** (-tau / 4)", "prior ** (tau / 4)", "functional/test_embedding_terms.py"),
    Fault("own margin not taken off", "classify/heads.py", "-own[:, :, None]", "0 * own[:, :, None]", "classify/test_heads.py"),
    Fault("one rate for all heads", "classify/heads.py", "addcmul_(update, self.lr[i], value=-size)", "addcmul_(update, self.lr[i].max(), value=-size)", "classify/test_heads.py"),
    Fault("never deferred", "classify/adam_heads.py", "math.ceil(DEFERRED_FROM * training.epochs)", "training.epochs", "classify/test_train_heads.py"),
    Fault("embedding term without the head's tau", "classify/adam_heads.py", "objective.term._replace(tau=head.tau)", "objective.term", "classify/test_train_heads.py"),
    Fault("posterior without the weights", "classify/objectives.py", "margins.column - margins.weight.log()", "margins.column", "classify/test_objectives.py"),
    Fault("class without images predicted", "classify/objectives.py", "return shift.where(present, -torch.inf)", "return shift.where(present, 0)", "classify/test_objectives.py"),
    Fault("lonely anchors counted as zeros", "classify/embedding_terms.py", "return loss * (len(target) / mates)", "return loss", "classify/test_embedding_terms.py"),
    Fault("tau-norm keeps the bias", "classify/ensemble.py", "normalized(weight, tau=head.tau), torch.zeros_like(bias)", "normalized(weight, tau=head.tau), bias", "classify/test_ensemble.py"),
    Fault("trained on what is held out", "classify/selection.py", "Problem(features[~out], labels[~out].long(),", "Problem(features, labels.long(),", "classify/test_selection.py"),
    Fault("plain accuracy decides", "classify/selection.py", "return recalls[~recalls.isnan()].mean().item()", "return (predictions == labels).double().mean().item()", "classify/test_selection.py"),
    Fault("gaps of bins cancel", CAL, "surplus.abs().sum()", "surplus.sum().abs()", "functional/test_calibration.py"),
    Fault("absent class counts as F1 0", CONFUSION, "return 2 * right.double() / (asked + given)", "return 2 * right.double() / (asked + given).clamp(min=1)", "functional/test_confusion.py"),
    Fault("source and target swapped", CONFUSION, "target[predicted]", "source[predicted]", "functional/test_confusion.py"),
    Fault("confidence not normalized", SCORING, "(best - exact.logsumexp(-1)).exp()", "best.sigmoid()", "evaluation/test_scoring.py"),
    Fault("confusion the wrong way", SCORING, '"few_as_many": confused_share(classes, labels, source=few, target=many)', '"few_as_many": confused_share(classes, labels, source=many, target=few)', "evaluation/test_scoring.py"),
    Fault("chosen on the test set", PROBING, "plan.select(*train,", "plan.select(*test,", "evaluation/test_probe_settings.py"),
    Fault("choice not trained", PLAN, "best.get(name, heads[0])", "heads[0]", "evaluation/test_probe_settings.py"),
    Fault("test prior ignored", PROBING, "part, test_prior) for part in", "part, None) for part in", "evaluation/test_probe_settings.py"),
    Fault("unadjustable objectives let through", PLAN, "if not OBJECTIVES[name].shifts]", "if False]", "evaluation/test_probe_settings.py"),
    Fault("quota rounded to the nearest", SAMPLING, "np.floor(borders + rng_for(seed, QUOTA, epoch).random())", "np.round(borders)", "data/test_class_sampling.py"),
    Fault("rounds not continued", SAMPLING, "own, first, last, seed, label)", "own, 0, last - first, seed, label)", "data/test_class_sampling.py"),
    Fault("classes share their permutations", SAMPLING, "rng_for(seed, ROUND, r, label)", "rng_for(seed, ROUND, r, 0)", "data/test_class_sampling.py"),
    Fault("progressive the wrong way", SAMPLING, "(1 - share) * counts + share * equal", "share * counts + (1 - share) * equal", "data/test_class_sampling.py"),
    Fault("repetitions alike", "data/batch_sampler.py", "np.full_like(positions, epoch), _repetitions(positions), positions", "np.full_like(positions, epoch), 0 * positions, positions", "data/test_class_sampling.py"),
    Fault("torchvision's scale for timm's", POLICIES, "num_magnitude_bins=11", "num_magnitude_bins=31", "data/test_supervised_augment.py"),
    Fault("hole kept inside", POLICIES, "y, x = generator.integers(side, size=2).tolist()", "y, x = generator.integers(half, side - half + 1, size=2).tolist()", "data/test_supervised_augment.py"),
    Fault("shortcut pooled", "models/cifar_resnet.py", "kept = x[:, :, :: self.stride, :: self.stride]", "kept = F.avg_pool2d(x, self.stride, ceil_mode=True)", "models/test_cifar_resnet.py"),
    Fault("cosines in bfloat16", "models/classifier.py", "@in_float32\n", "", "models/test_classifier.py"),
    Fault("workers outlive the run", "data/loader.py", "            child.kill()", "            pass", "data/test_loader.py"),
    Fault("embedding term without its weight", FINETUNING, "+ weight * metrics[\"embedding\"]", "+ metrics[\"embedding\"]", "engine/test_finetuning.py"),
    Fault("views of the contrast classified", NETWORK, "own, *others = features.chunk(1 + len(contrast))", "*others, own = features.chunk(1 + len(contrast))", "engine/test_finetuning.py"),
    Fault("prototypes without their head", NETWORK, "self.prototype_head(weight)", "self.projector(weight)", "engine/test_finetuning.py"),
    Fault("frozen statistics move", NETWORK, "            self.backbone.eval()\n", "            pass\n", "engine/test_finetuning.py"),
    Fault("margin of LDAM in logits", FINETUNING, "* settings.cosine_scale * smallest", "* smallest", "engine/test_finetuning.py"),
    Fault("deferred from the start", FINETUNING, "deferred=step.epoch >= start", "deferred=True", "engine/test_finetuning.py"),
    Fault("margin of the own class forgotten", SOLVER, "logits.scatter_add_(1, labels, -self.own[labels])", "pass", "classify/test_solver.py"),
    Fault("bias decayed", SOLVER, "penalty[-1] = 0", "pass", "classify/test_solver.py"),
    Fault("mean over the samples kept", SOLVER, "weight[labels] / size", "weight[labels] / len(labels)", "classify/test_solver.py"),
    Fault("absent class solved and predicted", SOLVER, "solved[~present, -1] = -torch.inf", "pass", "classify/test_solver.py"),
    Fault("stops at the loss's tolerance", SOLVER, '"ftol": 0', '"ftol": 1e-6', "classify/test_solver.py"),
    Fault("focal with the slope of cross-entropy", SOLVER, "residual.mul_(slope[:, None])", "pass", "classify/test_converged_heads.py"),
    Fault("slope of the weights for that of the factors", SOLVER, "(gradient * base).sum(1, keepdim=True)", "gradient.sum(1, keepdim=True)", "classify/test_converged_heads.py"),
    Fault("first stage solved", CONVERGED, "num_samples=size, deferred=True", "num_samples=size, deferred=False", "classify/test_converged_heads.py"),
    Fault("balanced draws solved as plain ones", CONVERGED, 'if objective.sampling == "class-balanced":', "if False:", "classify/test_converged_heads.py"),
    Fault("base of lws solved again", CONVERGED, "order = dict.fromkeys([*bases, *linear])", "order = [*bases, *linear]", "classify/test_converged_heads.py -k solved_once"),
    Fault("no plateau ends a head", "classify/plateau_heads.py", "mean > best * (1 - settings.improvement)", "mean > best * 9", "classify/test_converged_heads.py"),
    Fault("head tested on what it has seen", "evaluation/out_of_fold.py", "predict(part != fold, part == fold)", "predict(part != NEVER, part == fold)", "evaluation/test_out_of_fold.py"),
    Fault("predictions in the order of the folds", "evaluation/out_of_fold.py", "[:, order]", "[:, :]", "evaluation/test_out_of_fold.py"),
    Fault("estimate in the table of test results", "evaluation/tables.py", 'tested, folds, *result', 'tested, *result', "evaluation/test_out_of_fold.py"),
    Fault("few steps for many", "evaluation/protocols.py", "if steps < FEW_STEPS", "if steps > FEW_STEPS", "evaluation/test_protocols.py"),
    Fault("next step that the data refuse", "last_lines.py", "        check_probes(recipe.data, usual_probes(), recipe.directory)\n", "        pass\n", "test_last_lines.py -k named_that"),
    Fault("heads on labels that the backbone has seen", PROBING, "return recipe.finetune is not None and not recipe.finetune.freeze", "return False", "test_last_lines.py -k finetuning"),
    Fault("dry run has a next step", "commands.py", "return Row(recipe.name, [])", "return Row(recipe.name, [], recipe)", "test_last_lines.py -k dry"),
    Fault("versions share a file", "evaluation/results.py", "return name if name in PROTOCOLS else result.protocol", "return result.protocol", "evaluation/test_out_of_fold.py"),
    Fault("tau not given to the solver", PROBE, "margins_of(prior, tau=self.tau,", "margins_of(prior, tau=1.0,", "classify/test_estimator.py"),
    Fault("focal solved as cross-entropy", PROBE, " and base.focus == 0", "", "classify/test_estimator.py"),
    Fault("prior of the set for balanced draws", FINETUNING, "drawn_shares(images.class_counts, kind,", "drawn_shares(images.class_counts, \"instance\",", "engine/test_finetuning.py"),
    Fault("part of one image with one view", "data/batch_sampler.py", "rest >= max(2, smallest_part * world_size * accumulation)", "rest >= max(2, world_size * accumulation)", "data/test_batch_sampler.py"),
]  # fmt: skip
FAULTS += OF_PRETRAINING + OF_RELIABILITY + OF_INPUT + OF_STUDIES
FAULTS += OF_BACKBONES + OF_WEIGHTS + OF_PHOTOS + OF_LOOK
FAULTS += OF_HARMONIZATION
FAULTS += OF_LABELS


def notice(fault: Fault, folder: Path) -> str:
    """Plant a fault in a fresh copy; "caught", or what is wrong with the guard."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("sslgh", "tests", "recipes", "docs", "scripts"):
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
        *shlex.split(f"tests/{fault.tests}"),
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
    if failed and "::" not in failed[0]:
        return "NOT PLANTED (the tests cannot be imported)"
    return "caught by " + (failed[0].split("::")[-1].split(" - ")[0] if failed else "a failure")


def main() -> int:
    """Plant all faults, or those that have all the words of the command line."""
    words = sys.argv[1:]
    wanted = [f for f in FAULTS if all(w in f.name or w in f.file for w in words)]
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
