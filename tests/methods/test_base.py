import torch

from sslgh.methods import MethodOutput


def test_a_detached_output_has_the_same_values_and_no_graph() -> None:
    leaf = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    z1, z2 = leaf * 2, leaf * 3
    output = MethodOutput(z1.sum(), z1.sum(1), (z1, z2), z1 + 1)
    detached = output.detach()
    for before, after in zip(
        (output.loss, output.per_sample, *output.embeddings, output.features),
        (detached.loss, detached.per_sample, *detached.embeddings, detached.features),
        strict=True,
    ):
        assert torch.equal(before, after)
        assert before.requires_grad
        assert not after.requires_grad


def test_a_detached_output_of_a_method_without_sample_losses_has_none() -> None:
    z = torch.ones(2, 2)
    assert MethodOutput(z.sum(), None, (z, z), z).detach().per_sample is None
