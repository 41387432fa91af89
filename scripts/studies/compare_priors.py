"""Compare each estimate of the prior with the class shares, on the embeddings of a finished run.

    python scripts/studies/compare_priors.py RUN [RUN ...]

The labels of the data set are the reference and were not used in training. "error" is the total variation
between sorted shares, "NMI" the agreement of surrogate labels with classes.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.metrics import normalized_mutual_info_score
from torch.utils.data import DataLoader

from sslgh.data import EvalDataset, input_size, normalize, training_set
from sslgh.engine.build import build_method
from sslgh.engine.checkpoint_manager import list_checkpoints
from sslgh.engine.monitor.refresh import sorted_total_variation
from sslgh.harmonize import GeometricHarmonizer
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import Recipe, load_recipe

SETTINGS = {
    "prototypes (the paper)": {"population": "prototypes"},
    "faiss, groups": {"population": "faiss", "visibility": 1.0},
    "faiss, plain k-means": {"population": "faiss", "visibility": 1.0, "clustering": "kmeans"},
}


@torch.no_grad()
def embeddings(recipe: Recipe) -> tuple[torch.Tensor, np.ndarray]:
    """Projector outputs (N, D) of the training images of a run, and their labels (N,)."""
    images = training_set(recipe.data)
    size = input_size(recipe.data, images)
    method = build_method(recipe, size)
    checkpoint = list_checkpoints(recipe.directory / "checkpoints")[-1]
    method.load_state_dict(load_file(checkpoint / "module.safetensors"))
    method.eval()
    parts = [
        method.projector(method.backbone(normalize(batch)))
        for batch, _ in DataLoader(EvalDataset(images, Preprocessing().at(size)), batch_size=256)
    ]
    return torch.cat(parts), images.labels


def main() -> None:
    """Print a line for each run, estimate and number of vertices."""
    for run in sys.argv[1:]:
        recipe = load_recipe(Path(run) / "recipe.yaml", [f"run_dir={run}"])
        z, labels = embeddings(recipe)
        counts = np.bincount(labels)
        print(
            f"{Path(run).name}: {len(z)} images, {len(counts)} classes of {counts.max()} to {counts.min()}"
        )
        for vertices in (len(counts), 2 * len(counts)):
            for name, settings in SETTINGS.items():
                harmonizer = GeometricHarmonizer(
                    len(z), z.shape[1], num_vertices=vertices, **settings
                )
                harmonizer.observe(z, torch.arange(len(z)))
                harmonizer.begin_epoch(0)
                error = sorted_total_variation(harmonizer.prior.numpy(), counts)
                nmi = normalized_mutual_info_score(labels, harmonizer.labels.numpy())
                shares = harmonizer.prior
                print(
                    f"  K = {vertices:<4} {name:<24} classes {int((shares > 0).sum()):<4} shares "
                    f"{shares[shares > 0].min():.4f} to {shares.max():.4f}  error {error:.3f}  NMI {nmi:.3f}"
                )


if __name__ == "__main__":
    main()
