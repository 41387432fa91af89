"""Faults of studies: branches that differ, results that are paired wrongly, statistics."""

from fault import Fault

BRANCH, PLAN, RUN_STUDY = "studies/branch.py", "studies/plan.py", "studies/run_study.py"
PAIRED, TABLE, RECORDS = "studies/paired.py", "studies/study_table.py", "studies/records.py"

FAULTS = [
    Fault("branch that reshuffles", PLAN, "_recipe(study, arm.name, _set(shared, arm.settings), folder)", '_recipe(study, arm.name, _set(shared, arm.settings) | {"seed": block.seed + 1}, folder)', "studies/test_branch.py -k uninterrupted"),
    Fault("warm-up remembers no bank", BRANCH, "                bank.observe(output.embeddings[0], index)", "                pass", "studies/test_branch.py -k uninterrupted"),
    Fault("warm-up without a new arm's bank", BRANCH, "    if _identity_in(directory) != _identity(study, recipes):\n        return None\n", "", "studies/test_branch.py -k trained_once"),
    Fault("torn warm-up branched from", BRANCH, "            check_manifest(path)\n", "            pass\n", "studies/test_branch.py -k trained_once"),
    Fault("class order of the recipe", PLAN, '{"data.long_tail.class_order": {"shuffled": block.class_order}}', "{}", "studies/test_plan.py"),
    Fault("block by block", PLAN, "for arm in self.arms for block in self.blocks)", "for block in self.blocks for arm in self.arms)", "studies/test_plan.py"),
    Fault("GH before the branch", PLAN, "recipe.gh_start < end:", "recipe.gh_start < 0:", "studies/test_plan.py"),
    Fault("result of another warm-up kept", RUN_STUDY, "or record.warmup != wanted[block.name]", "or False", "studies/test_run_study.py -k anew"),
    Fault("complete block done anew", RUN_STUDY, "return digests.pop() if len(digests) == 1 else None", "return None", "studies/test_run_study.py -k left_as_it_is"),
    Fault("two processes in a block", RUN_STUDY, "lock = acquire_lock(folder, timeout=0)", "lock = None", "studies/test_run_study.py -k other_processes"),
    Fault("request to stop swallowed", "engine/launch.py", "outer.asked = outer.asked or self.asked", "pass", "studies/test_run_study.py -k around"),
    Fault("results of two warm-ups paired", TABLE, "if None in both or len({(r.warmup, r.precision) for r in both if r}) > 1:", "if None in both:", "studies/test_study_table.py"),
    Fault("Holm over what is there", TABLE, "holm(ps) if len(ps) == len(found) else", "(holm(ps) + [None])[: len(found)] if True else", "studies/test_study_table.py"),
    Fault("result of other settings taken", RECORDS, "elif record.design != study.design_hash(*place):", "elif False:", "studies/test_study_table.py"),
    Fault("one-sided", PAIRED, "(np.abs(sums) >=", "(sums >=", "studies/test_paired.py"),
    Fault("ties broken by rounding", PAIRED, "observed - slack", "observed + slack", "studies/test_paired.py"),
    Fault("Holm steps down", PAIRED, "largest = max(largest, ", "largest = max(0.0, ", "studies/test_paired.py"),
    Fault("error with n degrees of freedom", PAIRED, "ddof=1", "ddof=0", "studies/test_paired.py"),
    Fault("true shares in any order", "studies/oracles.py", "spread[prior.argsort(descending=True, stable=True)]", "spread[torch.arange(len(prior))]", "studies/test_branch.py -k order_of_the_estimate"),
]  # fmt: skip
