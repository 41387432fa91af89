"""Geometric Harmonization in a Lightning module; `main` trains it on scikit-learn's digits."""

import pytorch_lightning as lightning
import torch
from lightly.models.modules.heads import SimCLRProjectionHead
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from sslgh.functional import nt_xent
from sslgh.harmonize import GeometricHarmonizer


class HarmonizedSimCLR(lightning.LightningModule):
    """SimCLR, its loss weighted by GH's instance weights, plus the GH term."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples, self.model = samples, resnet18()
        self.model.fc = SimCLRProjectionHead(512, 512, 128)

    def setup(self, stage: str) -> None:
        # In a tuple, so that DDP does not see it: a copy a process, its memory on the first.
        warmup = self.trainer.max_epochs // 2
        harmonizer = GeometricHarmonizer(self.samples, 128, num_vertices=20, warmup_epochs=warmup)
        self.not_a_submodule = (harmonizer,)

    def on_train_epoch_start(self) -> None:
        self.not_a_submodule[0].to(self.device).begin_epoch(self.current_epoch)

    def training_step(self, batch, _):
        images, index = batch
        views = [image + 0.2 * torch.randn_like(image) for image in (images, images)]
        z1, z2 = self.model(torch.cat(views)).chunk(2)
        weights = self.not_a_submodule[0].weights(index)
        self.seen = z1.detach(), index
        contrast = (weights * nt_xent(z1, z2, temperature=0.2)).sum() / weights.sum()
        return contrast + self.not_a_submodule[0](z1, z2)

    def on_train_batch_end(self, *_) -> None:
        self.not_a_submodule[0].observe(*self.seen)

    def on_save_checkpoint(self, checkpoint) -> None:
        checkpoint["harmonizer"] = self.not_a_submodule[0].state_dict()

    def on_load_checkpoint(self, checkpoint) -> None:
        self.not_a_submodule[0].load_state_dict(checkpoint["harmonizer"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(epochs: int = 20, samples: int = 1797, **trainer) -> HarmonizedSimCLR:
    images = torch.from_numpy(load_digits().images[:samples]).float() / 16
    data = TensorDataset(images[:, None].expand(-1, 3, -1, -1), torch.arange(samples))
    model = HarmonizedSimCLR(samples)
    loader = DataLoader(data, 128, shuffle=True, drop_last=True)
    lightning.Trainer(max_epochs=epochs, logger=False, **trainer).fit(model, loader)
    return model
