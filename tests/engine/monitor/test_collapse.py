import pytest

from sslgh.engine.monitor.collapse import LINES, CollapseAlarm

HEALTHY = {"embedding_std": 0.9, "effective_rank": 20.0}


def rings(lines: list[dict[str, float]]) -> list[int]:
    alarm = CollapseAlarm(64)
    return [number for number, line in enumerate(lines, 1) if alarm(line)]


@pytest.mark.parametrize("sign", [{"embedding_std": 0.1}, {"effective_rank": 1.2}])
def test_one_sign_that_stays_rings_once(sign) -> None:
    assert rings([HEALTHY] * 5 + [HEALTHY | sign] * 50) == [5 + LINES]


def test_healthy_runs_and_short_dips_do_not_ring() -> None:
    dip = [HEALTHY | {"embedding_std": 0.0}] * (LINES - 1) + [HEALTHY] * (LINES - 1)
    assert rings([HEALTHY] * 100 + dip * 5) == []


def test_a_collapse_that_flickers_rings_all_the_same() -> None:
    flicker = [HEALTHY | {"effective_rank": 1.1}] * 3 + [HEALTHY]
    assert len(rings(flicker * 20)) == 1


def test_it_is_armed_again_once_the_run_has_recovered() -> None:
    collapsed = [HEALTHY | {"embedding_std": 0.1}] * LINES
    assert rings(collapsed + [HEALTHY] * (LINES - 1) + collapsed) == [LINES]
    assert len(rings(collapsed + [HEALTHY] * LINES + collapsed)) == 2


def test_lines_without_the_numbers_are_passed_over() -> None:
    assert rings([{"loss": 1.0}, {"effective_rank": 1.0}] * 50) == []


def test_the_sentence_says_what_was_seen_and_what_helps() -> None:
    alarm = CollapseAlarm(64)
    sentence = [alarm({"embedding_std": 0.031, "effective_rank": 1.14}) for _ in range(LINES)][-1]
    assert sentence is not None
    for words in ("have collapsed", "embedding_std 0.03", "rank 1.1 of 64", "optim.lr", "warm-up"):
        assert words in sentence
    assert "\n" not in sentence
