"""What a run is predicted to need, against other ways to count it, and what is refused."""

import os
import warnings
from copy import deepcopy

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from sslgh.data import training_set
from sslgh.distributed import dist_info
from sslgh.engine import memory
from sslgh.engine.checkpoint import Progress
from sslgh.engine.exit_codes import run_command
from sslgh.engine.finetuning import Finetuning
from sslgh.engine.launch import init_accelerator
from sslgh.engine.memory import MemoryNeed, check_memory, free_memory, memory_guard, too_large
from sslgh.engine.pretraining import Pretraining, dry_run_pretraining, pretrain
from sslgh.engine.trainer import step_info
from sslgh.methods import METHODS
from sslgh.models import build_backbone, save_backbone
from sslgh.recipe import RecipeError, make_recipe

LABELED = ("method=null", "finetune.objective=bcl")


def built(recipe) -> Pretraining | Finetuning:
    kind = Pretraining if recipe.finetune is None else Finetuning
    return kind(recipe, init_accelerator(), training_set(recipe.data))


def need(recipe) -> MemoryNeed:
    stage = built(recipe)
    return check_memory(stage, stage.image_size)


def saved_for_the_backward(recipe) -> int:
    """Bytes that autograd keeps of a real batch, weights apart: an oracle with hooks of its own."""
    stage, kept = built(recipe), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    batch = next(stage.batches(Progress(), None))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stage.loss(batch, step_info(stage.run, Progress()))
    for tensor in (*stage.run.module.parameters(), *stage.run.module.buffers()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("train.precision=bf16",),
        ("method.name=moco-v2", "method.queue=128"),
        ("method.name=dino", "data.augment.local_crops=3"),
        ("method.name=sdclr",),
        ("model.backbone=vit_tiny", "model.width=1", "data.size=16"),
        LABELED,
    ],
)
def test_activations_of_a_batch_are_predicted_from_a_few_images(tiny, words) -> None:
    recipe = tiny("train.batch_size=96", "data.size=16", *words)
    predicted = need(recipe)
    activations = predicted.per_image * predicted.images / memory.WORKSPACE
    assert activations == pytest.approx(saved_for_the_backward(recipe), rel=0.15)


def test_what_does_not_grow_with_the_batch_is_not_multiplied(tiny) -> None:
    words = ("method.name=barlow-twins", "model.projector={hidden: 32, out: 1024}")
    predicted = need(tiny(*words))  # a correlation matrix of 1024 x 1024 is 4 MB
    assert predicted.per_image < 10**6
    assert predicted.fixed > 4 * 1024**2


def test_gradients_optimizer_state_and_the_copy_of_a_checkpoint_are_fixed(tiny) -> None:
    sgd, adamw = need(tiny()), need(tiny("optim.name=adamw"))
    trained = 4 * sum(p.numel() for p in built(tiny()).run.module.parameters())
    assert adamw.fixed - sgd.fixed == 2 * trained  # one more state, and its copy
    assert 4 * trained < sgd.fixed < 5 * trained + 10**6


def test_a_teacher_is_copied_into_a_checkpoint_and_has_no_gradient(tiny) -> None:
    plain, taught = need(tiny("method.name=simsiam")), need(tiny("method.name=byol"))
    assert taught.fixed > plain.fixed + 4 * 50_000
    assert taught.per_image == pytest.approx(plain.per_image, rel=0.15)


def test_a_teacher_that_is_larger_than_its_student_is_the_peak(tiny, tmp_path) -> None:
    torch.manual_seed(0)
    card = {"backbone": "resnet18", "stem": "cifar", "width": 1.0, "image_size": 32}
    save_backbone(build_backbone("resnet18", width=1.0), tmp_path, card)
    plain = need(tiny("data.size=16"))
    method = f"method={{name: distill, teacher: {tmp_path}, teacher_size: 64}}"
    taught = need(tiny("data.size=16", method))
    # At least input and output of the first block of the teacher, for two views: 64 channels of 64 x 64.
    assert taught.per_image > max(plain.per_image, 2 * 2 * 4 * 64 * 64 * 64)


def test_parts_of_a_batch_and_small_sets_of_images_need_less(tiny) -> None:
    assert need(tiny("train.batch_size=96")).images == 96
    assert need(tiny("train.batch_size=512")).images == 118
    words = ("train.batch_size=96", "train.accumulation=3", "train.allow_fewer_negatives=true")
    assert need(tiny(*words)).images == 32


def test_activations_that_are_computed_again_are_counted_at_their_peak(tiny) -> None:
    whole, again = (
        need(tiny("data.size=32")),
        need(tiny("data.size=32", "model.checkpointing=true")),
    )
    assert 0.3 * whole.per_image < again.per_image < 0.8 * whole.per_image


def state_of(stage) -> list[torch.Tensor]:
    modules = (stage.run.module, *([stage.run.aux_state] if stage.run.aux_state else ()))
    tensors = [t.clone() for m in modules for t in m.state_dict().values()]
    return [*tensors, torch.random.get_rng_state()]


# Distillation needs finished runs.
@pytest.mark.parametrize("name", [*sorted(METHODS.keys() - {"distil", "distill"}), "supervised"])
def test_measuring_leaves_the_run_as_it_was(tiny, name) -> None:
    words = LABELED if name == "supervised" else (f"method.name={name}",)
    words += ("method.queue=64",) if name in ("moco-v2", "nnclr") else ()
    stage = built(tiny(*words))
    before = state_of(stage)
    assert check_memory(stage, stage.image_size).per_image > 0
    assert all(torch.equal(*pair) for pair in zip(before, state_of(stage), strict=True))
    assert all(parameter.grad is None for parameter in stage.run.module.parameters())
    assert not getattr(stage, "outputs", None)


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(tiny, monkeypatch) -> None:
    large = need(tiny("train.batch_size=96"))
    free = large.fixed + 50 * large.per_image
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    with pytest.raises(RecipeError, match=r"^train\.batch_size 96 needs about .* are free; set"):
        pretrain(tiny("train.batch_size=96"), init_accelerator())
    assert not tiny().directory.exists()
    with pytest.raises(RecipeError, match=r"set train\.batch_size=32$"):
        need(tiny("train.batch_size=96"))
    need(tiny("train.batch_size=32"))


def test_where_no_batch_fits_another_network_is_advised(tiny) -> None:
    found = too_large(tiny(), MemoryNeed(fixed=100, per_image=10, images=32), 90, 1)
    assert found.endswith("choose a smaller model.backbone, model.width or data.size")


def test_the_advised_batch_is_shared_by_processes_and_micro_batches(tiny) -> None:
    lacking = MemoryNeed(fixed=100, per_image=10, images=64)
    assert too_large(tiny(), lacking, 100 + 10 * 17, 2).endswith("train.batch_size=32")
    words = ("train.accumulation=4", "train.allow_fewer_negatives=true")
    assert too_large(tiny(*words), lacking, 100 + 10 * 17, 1).endswith("train.batch_size=64")


def need_of_a_rank(free: list[int]) -> str:
    rank, size = dist_info()
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    launched |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 1}  # the group is there already
    os.environ.update({name: str(value) for name, value in launched.items()})
    settings = {
        "name": "two",
        "data": {"source": "digits", "size": 8},
        "model": {"width": 0.125},
        "method": {"name": "simclr"},
        "train": {"batch_size": 64},
    }
    with warnings.catch_warnings():  # what Accelerate sets on ranks but the first
        stage = built(make_recipe(settings))
    memory.free_bytes = lambda _: free[rank]
    try:
        return str(memory.check_memory(stage, stage.image_size).images)
    except RecipeError as error:
        return str(error)
    finally:  # the worker serves other tests, without Accelerate
        AcceleratorState._reset_state(reset_partial_state=True)
        for name in launched:
            del os.environ[name]


def test_every_rank_refuses_where_one_lacks_memory(two_processes) -> None:
    assert two_processes(need_of_a_rank, [10**12, 10**12]) == ["32", "32"]
    one, other = two_processes(need_of_a_rank, [10**12, 3 * 10**6])
    assert one == other
    assert "3.00 MB are free" in one


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_in_training_names_a_smaller_batch(tiny, error, capsys) -> None:
    def fail() -> None:
        raise error

    parts = "train.accumulation=3", "train.allow_fewer_negatives=true"
    for words, remedy in (
        (["train.batch_size=96"], "set train.batch_size=64"),
        (["train.batch_size=96", *parts], "set train.batch_size=48"),
        (["train.batch_size=2"], "choose a smaller model.backbone, model.width or data.size"),
    ):
        recipe = tiny(*words)
        assert run_command(fail, recipe) == 2
        printed = capsys.readouterr().err
        size = recipe.train.batch_size
        assert f"train.batch_size {size} needs more memory than is free; {remedy}" in printed
    assert run_command(fail) == 2
    assert "batch_size" not in capsys.readouterr().err


def test_copies_of_a_module_are_counted_without_a_gradient(tiny, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: (3 + 1) * 4 * 10**6 + 100)
    with memory_guard(tiny()):
        layer = nn.Linear(1000, 1000, bias=False)
        deepcopy(layer)
    refused = pytest.raises(RecipeError, match="needs about 20")
    with refused, memory_guard(tiny()):
        deepcopy(deepcopy(nn.Linear(1000, 1000, bias=False)))


def test_what_stays_frozen_is_counted_alone(tiny, monkeypatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 4 * 10**6 + 100)
    frozen = tiny("method=null", "finetune={objective: la, freeze: true}", "model.init=base")
    with memory_guard(frozen):
        nn.Linear(1000, 1000, bias=False)
    trained = tiny("method=null", "finetune.objective=la")
    with pytest.raises(RecipeError, match="needs about"), memory_guard(trained):
        nn.Linear(1000, 1000, bias=False)


def test_a_container_leaves_what_its_limit_and_its_pages_of_files_leave(tmp_path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._left_in_container(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\nactive_file 50\n")
    assert memory._left_in_container(tmp_path) == [1000 - 700 + 200]


@pytest.mark.parametrize(
    "word", ["model.projector.hidden=2000000000", "model.width=1e5", "model.width=1e300"]
)
def test_a_network_beyond_memory_is_refused_before_it_is_built(tiny, word) -> None:
    with pytest.raises(RecipeError, match=r"^model: the network .* lower model\.width"):
        dry_run_pretraining(tiny(word), init_accelerator())


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 3), ("adamw", 4)])
def test_a_weight_counts_with_its_gradient_and_its_optimizer_state(
    tiny, monkeypatch, optimizer, copies
) -> None:
    recipe = tiny(f"optim.name={optimizer}")
    monkeypatch.setattr(memory, "free_memory", lambda: copies * 4 * 10**6)
    with memory_guard(recipe):
        torch.nn.Linear(1000, 1000, bias=False)
    refused = pytest.raises(
        RecipeError, match=r"needs about \d.* MB, but 1[26]\.00 MB of memory are free"
    )
    with refused, memory_guard(recipe):
        torch.nn.Linear(1001, 1000, bias=False)
    with memory_guard(recipe, trained=False):  # a bank has no gradient
        torch.zeros(1000, 1000 * copies)


@pytest.mark.parametrize("make", [torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn])
def test_no_tensor_is_allocated_that_does_not_fit(tiny, make) -> None:
    with pytest.raises(RecipeError, match="of memory are free"), memory_guard(tiny()):
        make(2**38, 2)


def test_the_random_numbers_of_a_network_are_those_without_the_guard(tiny) -> None:
    found = []
    for guarded in (False, True):
        torch.manual_seed(0)
        if guarded:
            with memory_guard(tiny()):
                found.append(
                    (
                        torch.nn.Linear(3, 3).weight,
                        torch.randn(2, generator=torch.default_generator),
                    )
                )
        else:
            found.append((torch.nn.Linear(3, 3).weight, torch.randn(2)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_other_errors_of_a_network_pass_through(tiny) -> None:
    with pytest.raises(RuntimeError, match="negative dimension"), memory_guard(tiny()):
        torch.empty(-1)


def test_processes_of_a_machine_share_its_memory(monkeypatch) -> None:
    alone = free_memory()
    assert 10**8 < alone < 10**15
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory() == pytest.approx(alone / 4, rel=0.2)
