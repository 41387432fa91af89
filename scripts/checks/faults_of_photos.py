"""Faults of what is done with a folder of photos."""

from fault import Fault

EMBED, ROWS = "explore/embed.py", "explore/embeddings.py"

FAULTS = [
    Fault(
        "a changed photo keeps its features",
        ROWS,
        "unchanged = (photos.stamps[found] == stamps).all(1)",
        "unchanged = (found >= 0)",
        "explore/test_embed.py",
    ),
    Fault(
        "every rank embeds the same photos",
        EMBED,
        "plan.pending[rank::size]",
        "plan.pending[::size]",
        "explore/test_embed.py -k two_processes",
    ),
    Fault(
        "a stopped embedding loses its last photos",
        EMBED,
        "if held and (step is None or full or",
        "if held and (full or",
        "explore/test_embed.py",
    ),
    Fault(
        "facts in the order of the shards",
        ROWS,
        "found[rows] = values",
        "found[:] = values",
        "explore/test_embed.py",
    ),
    Fault(
        "facts are no part of the key",
        EMBED,
        "pickle.dumps(facts, protocol=4)",
        'b""',
        "explore/test_embed.py",
    ),
    Fault(
        "preprocessing is no part of a model's fingerprint",
        "explore/loaded_model.py",
        "weights_fingerprint(backbone, str(preprocess))",
        'weights_fingerprint(backbone, "")',
        "explore/test_model.py -k fingerprint",
    ),
    Fault(
        "a file of weights is of the first backbone",
        "explore/bare_weights.py",
        "min(fits)",
        "fits[0]",
        "explore/test_model.py -k fits",
    ),
]
