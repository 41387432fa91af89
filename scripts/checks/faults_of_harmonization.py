"""Faults of Geometric Harmonization, one line each, for `plant_faults.py`."""

from fault import Fault

HARMONIZER, POPULATION = "harmonize/harmonizer.py", "harmonize/population.py"
RECURRENCE, HARM = "harmonize/recurrence.py", "engine/monitor/harm.py"
PASS = "engine/harmonizing.py"
OF_HARMONIZER = "harmonize/test_harmonizer.py"

FAULTS = [
    Fault("identity lost", HARMONIZER, "keep_identity(found.labels.to(device), self.labels, len(self.prior))", "found.labels.to(device)", OF_HARMONIZER + " -k keep_their_identity"),
    Fault("zero prior", POPULATION, "flat.lerp(counts / counts.sum(), 1 - FLAT)", "counts / counts.sum()", OF_HARMONIZER + " -k prior_zero"),
    Fault("flat prior ignored", POPULATION, 'if kind == "flat":', "if False:", OF_HARMONIZER + " -k prior_zero"),
    Fault("unscaled epsilon", "recipe/harmonize.py", "scale = (100 / vertices) ** 0.5", "scale = 1.0", OF_HARMONIZER + " -k scaled_loss"),
    Fault("sampler ignores clusters", "harmonize/balanced_epochs.py", "if (rates == 1).all():", "if True:", OF_HARMONIZER + " -k would_weigh"),
    Fault("loss weighed besides the sampling", HARMONIZER, "        if self.resample:\n            return torch.ones_like", "        if False:\n            return torch.ones_like", OF_HARMONIZER + " -k would_weigh"),
    Fault("gate open", HARMONIZER, "if found.visibility < LEAST_VISIBILITY:", "if len(found.means) == 0:", OF_HARMONIZER + " -k 'agree_with_itself or without_modes'"),
    Fault("power not gated", HARMONIZER, "power = gh.weight_power * float(self.quality[0])", "power = gh.weight_power", OF_HARMONIZER + " -k how_strongly"),
    Fault("shares not averaged over refreshes", HARMONIZER, "rate = max(1 / int(self.accepted), LEAST_RATE)", "rate = 1.0", OF_HARMONIZER + " -k keep_their_identity"),
    Fault("shared direction scored", HARMONIZER, "z1 - center,", "z1,", OF_HARMONIZER + " -k 'scaled_loss or share_does_not'"),
    Fault("term before clusters recur", HARMONIZER, "steps = 0 if start < 0 else epoch + 1 - start", "steps = epoch + 1 - self.warmup_epochs", OF_HARMONIZER + " -k waits_for"),
    Fault("ramp one epoch late", HARMONIZER, "else epoch + 1 - start", "else epoch - start", OF_HARMONIZER + " -k official"),
    Fault("weight adapted at once", HARMONIZER, "change.clamp(1 / LARGEST_STEP, LARGEST_STEP)", "change", OF_HARMONIZER + " -k tenth"),
    Fault("sequences of the plain order in the prior", HARMONIZER, "self.sequences[int(self.epoch) % 2] if self.resample else slice(None)", "slice(None)", OF_HARMONIZER + " -k shares_that_the_epoch"),
    Fault("noise forgotten", RECURRENCE, "1 - math.exp(by_chance - recurring)", "1 - math.exp(-recurring)", "harmonize/test_recurrence.py -k 'stretched or beyond_noise'"),
    Fault("chance not subtracted", RECURRENCE, "contingency=table) - chance", "contingency=table)", "harmonize/test_recurrence.py -k information"),
    Fault("noise without the covariance", RECURRENCE, "drawn * variance.clamp(min=0).sqrt() @ axes.T", "drawn", "harmonize/test_recurrence.py -k covariance"),
    Fault("names of clusters by number", "harmonize/alignment.py", "maximize=True)\n    return torch.where(labels >= 0", ")\n    return torch.where(labels >= 0", "harmonize/test_alignment.py -k names"),
    Fault("gradient of an embedding without direction", "functional/harmonization.py", "return torch.where(length <= SHORTEST, 0, scores)", "return scores", "functional/test_harmonization.py -k zero_embedding"),
    Fault("rows that are not finite in the bank", "functional/harmonization.py", "torch.where(length <= SHORTEST, 0, scores)", "torch.where(length > SHORTEST, scores, 0)", OF_HARMONIZER + " -k not_finite"),
    Fault("drift against the start", "harmonize/refresh.py", "first = int(before.accepted) == 0", "first = measured and int(before.accepted) == 0", OF_HARMONIZER + " -k first_refresh_of_the_paper"),
    Fault("epoch of a resume closed", HARM, "        if epoch == self.epoch:\n            return\n", "", "engine/monitor/test_harm.py -k begins_again"),
    Fault("weight adapted per micro-batch", PASS, "first and step.epoch != self.adapted", "first", "engine/test_harmonizing.py -k once_per_epoch"),
    Fault("clean pass in training mode", PASS, "self.method.eval()", "self.method.train()", "engine/test_harmonizing.py -k leaves_no_trace"),
    Fault("broken image embedded as black", PASS, "features[:-1].masked_fill(broken, torch.nan)", "features[:-1]", "engine/test_harmonizing.py -k cannot_be_read"),
    Fault("rows in the order of ranks", PASS, "for index, _, _ in parts]).argsort()", "for index, _, _ in parts]).argsort().sort().values", "engine/test_harmonizing.py -k two_processes"),
    Fault("harm reported again and again", HARM, "self.warned.fill_(True)", "pass", "engine/monitor/test_harm.py"),
    Fault("rank compared over the whole run", HARM, "self.ranks.copy_(self.ranks.roll(1))", "pass", "engine/monitor/test_harm.py"),
    Fault("harm by a single refresh", HARM, "self.drifts.mean() > MOST_DRIFT", "self.drifts.max() > MOST_DRIFT", "engine/monitor/test_harm.py -k at_one_refresh"),
    Fault("harm before three refreshes", HARM, "self.drifts.all() and ", "", "engine/monitor/test_harm.py -k at_one_refresh"),
    Fault("harm of a refused refresh", HARM, "if not refresh.accepted:", "if False:", "engine/monitor/test_harm.py"),
]  # fmt: skip
