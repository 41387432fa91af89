"""An alarm for a run that Geometric Harmonization harms."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sslgh.harmonize import Refresh

# The default of commit dd31d59 on digits: rank 25 to 19 and drift .16 to .57, while the class means moved from
# 1.46 to 1.2. Of eight runs that gained by GH (docs/studies/digits-gh.md, A6) seven had a refresh that moved by more than .2,
# since kinds became separate, but one alone three that moved by more than .25 in the mean.
RANK_LEFT, EPOCHS = 0.75, 5
MOST_DRIFT, REFRESHES = 0.25, 3
SEPARATION_LEFT = 0.9
NONE, RANK, DRIFT, SEPARATION = range(4)
REASONS = {
    RANK: "the effective rank of the embeddings fell from {:.1f} to {:.1f} within five epochs",
    DRIFT: "the shares of the clusters moved by {:.2f} in the mean of three refreshes, where less than {:.2f} is a stable estimate",
    SEPARATION: "the means of the clusters moved together, from a mean distance of {:.2f} to {:.2f}",
}
REMEDY = "GH may harm this run: {}; lower harmonize.weight, raise harmonize.warmup_epochs, or leave harmonize: out"


class HarmAlarm(nn.Module):
    """Watches ranks and refreshes and returns one warning per run.

    Everything is in buffers: a resumed run warns as an uninterrupted one does.

    Examples:
        >>> alarm = HarmAlarm()
        >>> for epoch, rank in enumerate([20.0, 20.0, 19.0, 14.0, 14.0]):
        ...     alarm.begin_epoch(epoch)
        ...     warning = alarm({"effective_rank": rank, "gh": 1.0})
        >>> warning[:76]
        'GH may harm this run: the effective rank of the embeddings fell from 20.0 to'
    """

    current: Tensor
    epoch: Tensor
    ranks: Tensor
    drifts: Tensor
    separation: Tensor
    figures: Tensor
    reason: Tensor
    warned: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Sum and number of the ranks of this epoch; means of the last epochs, the newest first. 0: none yet.
        self.register_buffer("current", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("epoch", torch.tensor(0))
        self.register_buffer("ranks", torch.zeros(EPOCHS + 1, dtype=torch.float64))
        self.register_buffer(
            "drifts", torch.zeros(REFRESHES)
        )  # of the last refreshes, the newest first
        self.register_buffer("separation", torch.tensor(0.0))
        self.register_buffer("figures", torch.zeros(2))
        self.register_buffer("reason", torch.tensor(NONE))
        self.register_buffer("warned", torch.tensor(False))

    def begin_epoch(self, epoch: int) -> None:
        """Close the epoch before, if it logged anything; an epoch that a resume begins again is not closed."""
        if epoch == self.epoch:
            return
        self.epoch.fill_(epoch)
        if self.current[1] == 0:
            return
        self.ranks.copy_(self.ranks.roll(1))
        self.ranks[0] = self.current[0] / self.current[1]
        self.current.zero_()

    def check(self, refresh: Refresh) -> None:
        """Look at an accepted refresh."""
        if not refresh.accepted:
            return
        self.drifts.copy_(self.drifts.roll(1))
        self.drifts[0] = refresh.drift
        if self.drifts.all() and self.drifts.mean() > MOST_DRIFT:
            self._found(DRIFT, float(self.drifts.mean()), MOST_DRIFT)
        if refresh.separation is None:
            return
        if self.separation == 0:
            self.separation.fill_(refresh.separation)
        elif refresh.separation < SEPARATION_LEFT * self.separation:
            self._found(SEPARATION, float(self.separation), refresh.separation)

    def forward(self, values: Mapping[str, float]) -> str | None:
        """The warning, or None; lines on which the GH term is 0 are not looked at."""
        if "effective_rank" not in values:
            return None
        self.current += torch.tensor([values["effective_rank"], 1.0], dtype=torch.float64)
        if values.get("gh", 0.0) == 0:
            return None
        highest = self.ranks[1:].max()
        if self.ranks[0] < RANK_LEFT * highest:
            self._found(RANK, float(highest), float(self.ranks[0]))
        if self.reason == NONE or self.warned:
            return None
        self.warned.fill_(True)
        return REMEDY.format(REASONS[int(self.reason)].format(*self.figures.tolist()))

    def _found(self, reason: int, before: float, after: float) -> None:
        if self.reason == NONE:
            self.reason.fill_(reason)
            self.figures.copy_(torch.tensor([before, after]))
