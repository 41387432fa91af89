"""Names of the objectives of classification, and what each reads of a recipe."""

from typing import Literal

# Those that train a network; the others decide by, or re-train the head of, one trained with ce: probe it.
Trainable = Literal[
    "ce",
    "balanced",
    "effective",
    "focal",
    "la",
    "la-weighted",
    "balanced-softmax",
    "ldam",
    "ldam-drw",
    "equalized",
    "elm",
    "elm-contrast",
    "elm-hinge",
    "elm-pull",
    "supcon",
    "bcl",
    "rcl",
]

TERMS = ("elm", "elm-contrast", "elm-hinge", "elm-pull", "supcon", "bcl", "rcl")
# Settings of finetuning that some objectives alone read.
READERS = {
    "embedding_weight": TERMS,
    "temperature": ("elm", "elm-contrast", "supcon", "bcl", "rcl"),
    "gamma": ("rcl",),
    "scale": ("rcl",),
    "deferred_epoch": ("ldam-drw",),
    "tau": ("la", "la-weighted", "ldam", "ldam-drw", "equalized", *TERMS),
}
Objective = Literal[Trainable, "la-posthoc", "tau-norm", "crt", "lws", "ncm"]
