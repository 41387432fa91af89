"""Geometric Harmonization in a plain loop with lightly's transform, head and loss.

python docs/examples/lightly_loop.py      scikit-learn's digits, 20 epochs, two CPU minutes
"""

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

from sslgh.harmonize import GeometricHarmonizer


class IndexedViews(Dataset):
    """Two views of an image, and its position: GH remembers by position."""

    def __init__(self, images):
        self.images = [Image.fromarray(image).convert("RGB") for image in images]
        self.views = SimCLRTransform(input_size=32, hf_prob=0.0, gaussian_blur=0.0)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.views(self.images[index]), index


def main(epochs: int = 20, samples: int = 1797) -> list[float]:
    """Train; the GH term of every epoch's last step."""
    images = (load_digits().images[:samples] * 15.9).astype("uint8")
    loader = DataLoader(IndexedViews(images), 128, shuffle=True, drop_last=True)
    model = resnet18()
    model.fc = SimCLRProjectionHead(512, 512, 128)
    criterion, optimizer = NTXentLoss(0.2), torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    harmonizer = GeometricHarmonizer(
        samples, 128, num_vertices=20, warmup_epochs=epochs // 2, ramp_epochs=2, refresh_every=5
    )
    terms = []
    for epoch in range(epochs):
        harmonizer.begin_epoch(epoch)
        for (x1, x2), index in loader:
            z1, z2 = model(torch.cat([x1, x2])).chunk(2)
            gh = harmonizer(z1, z2)
            optimizer.zero_grad()
            (criterion(z1, z2) + gh).backward()
            optimizer.step()
            harmonizer.observe(z1, index)
        terms.append(gh.item())
    return terms


if __name__ == "__main__":
    print(main())
