import io

import pytest
import torch

from sslgh.engine.monitor.harm import HarmAlarm
from sslgh.harmonize import Refresh

CALM = Refresh(
    epoch=10,
    accepted=True,
    visibility=0.6,
    recurring=6.0,
    noise=1.2,
    separation=1.5,
    classes=8,
    largest=0.3,
    smallest=0.02,
    churn=0.05,
    drift=0.04,
    reweighted=0.0,
    largest_weight=4.0,
)


def warnings(alarm: HarmAlarm, ranks: list[float], gh: float = 1.0, first: int = 0) -> list[int]:
    """Epochs in which the alarm warns, with two logged steps in each."""
    found = []
    for epoch, rank in enumerate(ranks, first):
        alarm.begin_epoch(epoch)
        lines = [alarm({"effective_rank": rank + noise, "gh": gh}) for noise in (-0.5, 0.5)]
        found += [epoch for warning in lines if warning]
    return found


def test_a_rank_that_falls_by_a_quarter_within_five_epochs_warns_once() -> None:
    assert warnings(HarmAlarm(), [25, 25, 24, 18, 17, 15, 10, 5]) == [4]
    assert (
        warnings(HarmAlarm(), [25, 24, 23, 22, 21, 20, 19.5, 19, 18.5]) == []
    )  # over eight epochs
    assert warnings(HarmAlarm(), [25, 19]) == []
    assert warnings(HarmAlarm(), [25, 25, 10, 10, 10], gh=0.0) == []  # in warm-up


def test_an_epoch_that_a_resume_begins_again_is_not_closed() -> None:
    alarm = HarmAlarm()
    alarm.begin_epoch(40)
    alarm({"effective_rank": 20.0, "gh": 1.0})
    alarm.begin_epoch(40)
    assert not alarm.ranks.any()
    alarm.begin_epoch(41)
    assert alarm.ranks[0] == 20


@pytest.mark.parametrize(
    ("later", "sentence"),
    [
        ({"drift": 0.9}, "shares of the clusters moved by 0.33 in the mean of three refreshes"),
        ({"separation": 1.3}, "moved together, from a mean distance of 1.50 to 1.30"),
    ],
)
def test_a_refresh_that_drifts_or_brings_means_together_warns_once_with_the_remedy(
    later, sentence
) -> None:
    alarm = HarmAlarm()
    for refresh in (CALM, CALM._replace(separation=1.4)):
        alarm.check(refresh)
    assert warnings(alarm, [20, 20]) == []
    alarm.check(CALM._replace(**later, accepted=False))
    assert warnings(alarm, [20], first=2) == []
    alarm.check(CALM._replace(**later))
    alarm.begin_epoch(3)
    warning = alarm({"effective_rank": 20.0, "gh": 1.0})
    assert warning is not None
    assert sentence in warning
    assert "lower harmonize.weight" in warning
    alarm.check(CALM._replace(drift=0.9))
    assert warnings(alarm, [20, 5, 5], first=4) == []


@pytest.mark.parametrize(
    ("drifts", "warned"),
    [
        ([0.0, 0.33, 0.18, 0.19, 0.2], False),  # measured on a run that gained
        ([0.0, 0.6, 0.6], False),  # the first refresh has nothing to differ from
        ([0.0, 0.16, 0.57, 0.3], True),
        ([0.04, 0.04, 0.7], True),
    ],
)
def test_shares_that_move_at_one_refresh_are_no_harm(drifts, warned) -> None:
    alarm = HarmAlarm()
    for drift in drifts:
        alarm.check(CALM._replace(drift=drift))
    assert bool(warnings(alarm, [20])) == warned


def test_a_resumed_run_warns_as_an_uninterrupted_one() -> None:
    alarm = HarmAlarm()
    alarm.check(CALM)
    assert warnings(alarm, [25, 25, 24]) == []
    alarm.check(CALM._replace(separation=0.5))
    file = io.BytesIO()
    torch.save(alarm.state_dict(), file)
    file.seek(0)
    copy = HarmAlarm()
    copy.load_state_dict(torch.load(file, weights_only=True))
    texts = [one({"effective_rank": 24.0, "gh": 1.0}) for one in (alarm, copy)]
    assert texts[0] == texts[1] is not None
