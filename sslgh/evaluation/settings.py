"""What stands in ``settings`` of a result."""

from dataclasses import asdict

from sslgh.classify import OBJECTIVES, Objective
from sslgh.evaluation.probe_settings import candidates
from sslgh.evaluation.protocols import NEIGHBOR_TEMPERATURE, Protocol, objectives
from sslgh.recipe.schema import Probe

# Settings of which a probe may give several.
CHOICES = ("tau", "lr", "weight_decay")


def probe_settings(probe: Probe, protocol: Protocol) -> dict[str, object]:
    """All that was set, and nothing that this protocol does not read; of several values all."""
    settings = asdict(protocol)
    if protocol.heads is None:
        return settings | {"neighbors": probe.neighbors, "temperature": NEIGHBOR_TEMPERATURE}
    names = objectives(protocol, probe)
    settings |= {"objectives": list(names), "seeds": probe.seeds}
    if protocol.train == "longtail":
        settings["test_prior"] = _plain(probe.test_prior)
        settings |= {name: _plain(v) for name in CHOICES if (v := getattr(probe, name))}
    if any(len(heads) > 1 for heads in candidates(protocol, probe).values()):
        settings["folds"] = probe.folds
    if embedding := [name for name in names if OBJECTIVES[name].embedding]:
        settings["embedding"] = {name: _embedding(OBJECTIVES[name]) for name in embedding}
    return settings


def _plain(value: object) -> object:
    """As JSON gives it back: a list, or a value that stands alone."""
    if not isinstance(value, tuple):
        return value
    return value[0] if len(value) == 1 else list(value)


def _embedding(objective: Objective) -> dict[str, float]:
    term = objective.term._asdict()
    del term["tau"]  # the objective's
    return {"weight": objective.embedding_weight} | term
