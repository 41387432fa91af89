import torch

from sslgh.classify.sampling import orders

LABELS = torch.tensor([0] * 12 + [1] * 5 + [2])


def test_instances_come_once_an_epoch_in_the_order_of_their_seed():
    found = list(orders(LABELS, "instance", seeds=3, epochs=2))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for rows in found:
            assert torch.equal(rows[seed], torch.randperm(18, generator=generator))


def test_classes_come_equally_often_and_a_seed_does_not_feel_the_others():
    few = list(orders(LABELS, "class-balanced", seeds=1, epochs=3))
    many = list(orders(LABELS, "class-balanced", seeds=2, epochs=3))
    assert len(few) == 3
    for alone, together in zip(few, many, strict=True):
        assert torch.equal(alone[0], together[0])
        assert not torch.equal(together[0], together[1])
        for rows in together:
            assert torch.bincount(LABELS[rows]).tolist() == [6, 6, 6]
