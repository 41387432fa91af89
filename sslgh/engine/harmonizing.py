"""Geometric Harmonization in pretraining: the clean pass, the refresh and the term of a step.

Shapes: N training images, M images of a batch, F feature width, D embedding width.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from sslgh.data import DataError, EvalDataset, ImageSet, num_workers
from sslgh.distributed import dist_info, gather
from sslgh.engine.build import AuxiliaryState
from sslgh.engine.fsdp import FSDPError
from sslgh.engine.logger import MetricLogger
from sslgh.engine.monitor.embeddings import gh_share
from sslgh.engine.monitor.refresh import describe_refresh
from sslgh.engine.run import Run
from sslgh.engine.trainer import Metrics, StepInfo
from sslgh.harmonize import CleanRows
from sslgh.methods import Method, MethodOutput
from sslgh.preprocessing import Preprocessing

BATCH = 256  # images of one forward of the clean pass


class HarmonizedTraining:
    """What GH adds to the epochs and steps of pretraining.

    Args:
        run: The objects of the run.
        method: Method whose backbone and projector embed the clean images.
        aux: The harmonizer, and the alarm of the run.
        image_size: S (pixels).

    Raises:
        FSDPError: If a clean pass is asked for with sharded weights.
    """

    def __init__(self, run: Run, method: Method, aux: AuxiliaryState, image_size: int) -> None:
        gh, self.harm = aux.harmonizer, aux.harm
        assert gh is not None
        if run.accelerator.is_fsdp2 and gh.settings.clean:
            raise FSDPError(
                "harmonize.clean embeds the training set outside of the sharded forward pass; set "
                "harmonize.clean: false"
            )
        self.run, self.method, self.gh = run, method, gh
        self.preprocessing = Preprocessing.of(method.backbone).at(image_size)
        self.adapted = -1  # epoch

    def begin_epoch(self, epoch: int, global_step: int, logger: MetricLogger) -> None:
        """Begin an epoch of GH; log the clusters if they were refreshed. Collective: call it on every rank."""
        gh, labels_before = self.gh, self.gh.labels.clone()
        clean = self.clean_rows() if gh.settings.clean and gh.refresh_due(epoch) else None
        gh.begin_epoch(epoch, clean)
        self.harm.begin_epoch(epoch)
        if gh.last_refresh is not None and gh.last_refresh.epoch == epoch:
            self.harm.check(gh.last_refresh)
            values, text = describe_refresh(gh, self.run.images, labels_before)
            logger.log_event("refresh", global_step, epoch, values)
            logger.info(text)

    def term(self, output: MethodOutput, step: StepInfo) -> Metrics:
        """The GH term, the whole loss and, where it is needed, the share of the gradient."""
        gh = self.gh(*output.embeddings)
        metrics = {"gh": gh, "loss": output.loss + gh}
        first = (step.global_step - 1) % self.run.steps_per_epoch == 0
        if step.should_log or first:
            share = gh_share(output.loss, gh, *output.embeddings)
            if first and step.epoch != self.adapted:  # once, however many micro-batches
                self.adapted = step.epoch
                self.gh.adapt(share)
            if step.should_log:
                metrics["gh_share"] = share
        return metrics

    @torch.no_grad()
    def clean_rows(self) -> CleanRows:
        """Features and embeddings of all training images without augmentation, in evaluation mode.

        Each rank embeds every P-th image and rank 0 gets all of them. An image that cannot be read is nan.
        No random number is drawn and no batch statistic moves. Collective: call it on every rank.
        """
        modes = [(module, module.training) for module in self.method.modules()]
        self.method.eval()
        try:
            return self._embed_all()
        finally:
            for module, training in modes:
                module.training = training

    def _embed_all(self) -> CleanRows:
        images, device = self.run.images, self.run.accelerator.device
        rank, size = dist_info()
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        workers = num_workers(self.run.recipe.data, in_memory=images.in_memory)
        # Threads, because a signal to the job would end the processes of a loader.
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            for begin in range(0, len(images), BATCH * size):
                index = torch.arange(begin + rank, min(begin + BATCH * size, len(images)), size)
                batch = CleanBatch(images, self.preprocessing, index, pool if workers else None)
                features, embeddings = self._embed(batch.pixels.to(device))
                broken = batch.broken.to(device)[:, None]
                rows = (features[:-1].masked_fill(broken, torch.nan), embeddings[:-1])
                gathered = [gather(part)[0].cpu() for part in (index.to(device), *rows)]
                if rank == 0:
                    parts.append((gathered[0], gathered[1], gathered[2]))
        if rank != 0:
            return CleanRows(torch.empty(0), torch.empty(0))
        order = torch.cat([index for index, _, _ in parts]).argsort()
        return CleanRows(
            torch.cat([part for _, part, _ in parts])[order],
            torch.cat([part for _, _, part in parts])[order],
        )

    def _embed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features (M, F) and embeddings (M, D) of uint8 images (M, 3, S, S)."""
        views = self.preprocessing.normalize(pixels).contiguous(memory_format=torch.channels_last)
        bf16 = self.run.recipe.train.precision == "bf16"
        projector = self.method.projector
        assert isinstance(projector, nn.Module)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            features = self.method.backbone(views)
            embeddings = projector(features)
        return features.float(), embeddings.float()


class CleanBatch:
    """Images at some positions as evaluation sees them.

    Args:
        images: The training set.
        preprocessing: Resizing and cropping to S pixels.
        index: Positions, shape (M,).
        pool: Thread pool that reads the images; None: read in this thread.

    Attributes:
        pixels: uint8 (M + 1, 3, S, S); black where an image cannot be read, and in the last row, so that a
            rank without images of its own runs the network too.
        broken: Whether the image cannot be read, shape (M,), bool.
    """

    def __init__(
        self,
        images: ImageSet,
        preprocessing: Preprocessing,
        index: Tensor,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self.dataset = EvalDataset(images, preprocessing)
        read = map if pool is None else pool.map
        views = list(read(self._read, index.tolist()))
        self.broken = torch.tensor([view is None for view in views], dtype=torch.bool)
        black = torch.zeros(3, preprocessing.size, preprocessing.size, dtype=torch.uint8)
        self.pixels = torch.stack([*(black if view is None else view for view in views), black])

    def _read(self, position: int) -> Tensor | None:
        try:
            return self.dataset[position][0]
        except DataError:
            return None
