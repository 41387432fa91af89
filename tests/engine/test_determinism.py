import pytest
import torch

from sslgh.engine.determinism import DeterminismError, determinism


def test_the_switch_holds_within_and_not_beyond() -> None:
    with determinism(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with determinism(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_kernel_is_named_with_the_way_out() -> None:
    fault = RuntimeError(
        "put_ does not have a deterministic implementation, but you set. You can turn it off"
    )

    def raise_inside() -> None:
        with determinism(True):
            raise fault

    with pytest.raises(DeterminismError, match=r"put_ does not .*; set train.deterministic: false"):
        raise_inside()
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_pass_through() -> None:
    def raise_inside() -> None:
        with determinism(True):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        raise_inside()
