import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from sslgh.methods.distill import Distill, as_teacher_sees
from sslgh.models import build_backbone, load_backbone, save_backbone
from sslgh.preprocessing import Preprocessing

WIDTHS = (0.125, 0.25, 0.125)  # base model and two experts, of different kinds


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> tuple[str, ...]:
    """Run directories with backbones that have seen some images."""
    folders = []
    for number, width in enumerate(WIDTHS):
        torch.manual_seed(10 + number)
        backbone = build_backbone("resnet18", width=width)
        backbone(3 * torch.randn(16, 3, 8, 8))
        folder = tmp_path_factory.mktemp("teacher")
        card = {"backbone": "resnet18", "stem": "cifar", "width": width, "image_size": 8}
        save_backbone(backbone, folder, card)
        folders.append(str(folder))
    return tuple(folders)


def build(teachers: tuple[str, ...], **settings) -> Distill:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = Distill.projector_spec.build(backbone, hidden=32, out=16)
    return Distill(backbone, projector, **({"teachers": teachers} | settings)).double()


def views(n: int = 10) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x1 = torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator)
    return [x1, x1 + 3 * torch.randn(x1.shape, dtype=torch.float64, generator=generator)]


@pytest.fixture
def centroids(teachers, tmp_path) -> str:
    """Two centroids that have about half of the images each."""
    base = load_backbone(Path(teachers[0]))[0].double().eval()
    with torch.no_grad():
        features = F.normalize(base(torch.cat(views())))
    low, high = features[:10].mean(0) - features[3], features[:10].mean(0) - features[6]
    np.save(tmp_path / "centroids.npy", torch.stack([low, high]).float().numpy())
    return str(tmp_path / "centroids.npy")


def clusters(method: Distill, pair: list[Tensor]) -> Tensor:
    """Cluster of each sample (N,), image by image."""
    found = []
    for image1, image2 in zip(*pair, strict=True):
        f1, f2 = (method.teachers[0](image[None])[0] for image in (image1, image2))
        mean = (f1 / f1.norm() + f2 / f2.norm()) / 2
        cosines = [mean @ (centroid / centroid.norm()) for centroid in method.centroids]
        found.append(0 if cosines[0] > cosines[1] else 1)
    return torch.tensor(found)


@pytest.mark.parametrize("gated", [False, True])
def test_the_loss_is_the_mean_over_a_samples_teachers_and_views(teachers, centroids, gated) -> None:
    pair = views()
    method = build(teachers, centroids=centroids if gated else None)
    output = method(pair)
    predicted = [predictor(torch.cat(output.embeddings)) for predictor in method.predictors]
    own = clusters(method, pair) if gated else None
    if own is not None:
        assert 2 <= int(own.sum()) <= 8
        for view in pair:  # neither view alone would say the same
            assert not torch.equal(own, clusters(method, [view, view]))
    expected = []
    for i in range(10):
        asked = [0, 1, 2] if own is None else [0, 1 + int(own[i])]
        terms = []
        for k in asked:
            for view, row in ((pair[0], i), (pair[1], 10 + i)):
                target, p = method.teachers[k](view[i : i + 1])[0], predicted[k][row]
                terms.append(-(p @ target) / (p.norm() * target.norm()))
        expected.append(sum(terms) / len(terms))
    torch.testing.assert_close(output.per_sample, torch.stack(expected))


def test_a_prediction_of_the_right_direction_has_the_least_loss(teachers) -> None:
    method = build(teachers[:1])
    method.backbone = copy.deepcopy(method.teachers[0])
    method.projector, method.predictors[0] = nn.Identity(), nn.Linear(64, 64, bias=False).double()
    method.predictors[0].weight.data = 3 * torch.eye(64).double()
    output = method.eval()(views())
    torch.testing.assert_close(output.per_sample, -torch.ones(10, dtype=torch.float64))


def test_a_sample_does_not_hear_the_expert_of_another_cluster(teachers, centroids) -> None:
    pair = views()
    method = build(teachers, centroids=centroids)
    own = clusters(method, pair)
    before = method(pair).per_sample
    with torch.no_grad():
        for parameter in method.teachers[2].parameters():
            parameter.copy_(torch.randn(parameter.shape))
    after = method(pair).per_sample
    assert torch.equal(after[own == 0], before[own == 0])
    assert (after[own == 1] != before[own == 1]).all()


def test_an_expert_is_asked_for_its_own_images_alone(teachers, centroids) -> None:
    pair = views()
    method = build(teachers, centroids=centroids)
    own = clusters(method, pair)
    asked = []
    for teacher in method.teachers:
        teacher.register_forward_hook(lambda _, images, __: asked.append(images[0]))
    method(pair)
    expected = [torch.cat(pair), *(torch.cat([x[own == k] for x in pair]) for k in (0, 1))]
    assert all(torch.equal(*both) for both in zip(asked, expected, strict=True))


def test_a_cluster_without_images_in_the_batch_moves_no_predictor(teachers, tmp_path) -> None:
    base = load_backbone(Path(teachers[0]))[0].eval()
    with torch.no_grad():
        mean = base(torch.cat(views()).float()).mean(0)
    np.save(tmp_path / "centroids.npy", torch.stack([mean, -mean]).numpy())
    method = build(teachers, centroids=str(tmp_path / "centroids.npy"))
    method(views()).loss.backward()
    gradients = [[p.grad.abs().sum() for p in each.parameters()] for each in method.predictors]
    assert sum(gradients[1]) > 0
    assert sum(gradients[2]) == 0  # zeros, not None: other processes may have some


def test_teachers_neither_learn_nor_count_what_they_see(teachers) -> None:
    method = build(teachers).train()
    before = copy.deepcopy(method.teachers.state_dict())
    method(views()).loss.backward()
    assert all(
        torch.equal(before[key], value) for key, value in method.teachers.state_dict().items()
    )
    assert not any(p.requires_grad or p.grad is not None for p in method.teachers.parameters())
    assert method.training
    assert not any(module.training for module in method.teachers.modules())
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_loss_in_half_precision_is_that_of_the_full_one(teachers, centroids) -> None:
    method = build(teachers, centroids=centroids).float()
    pair = [view.float() for view in views()]
    with torch.autocast("cpu", torch.bfloat16):
        half = method(pair).per_sample
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, method(pair).per_sample, rtol=0, atol=0.05)


def test_what_does_not_fit_is_named(teachers, centroids, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"set one of method\.teacher and method\.teachers"):
        build(())
    with pytest.raises(ValueError, match=r"method\.teacher: .* holds no backbone\.json"):
        build((str(tmp_path),))
    with pytest.raises(
        ValueError, match=r"shape \(2, 64\), but 1 experts and a base .* need \(1, 64\)"
    ):
        build(teachers[:2], centroids=centroids)
    with pytest.raises(ValueError, match=r"method\.centroids .*gone\.npy cannot be read"):
        build(teachers, centroids=str(tmp_path / "gone.npy"))


def moments(mean, std, **settings) -> Preprocessing:
    return Preprocessing(mean=mean, std=std, **settings)


@pytest.mark.parametrize("side", [12, 5])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_teacher_sees_the_same_pixels_with_its_own_moments_and_size(interpolation, side) -> None:
    student = moments((0.1, 0.2, 0.3), (0.5, 0.25, 0.125), size=8)
    teacher = moments((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), size=side, interpolation=interpolation)
    pixels = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    mode = tv.InterpolationMode(interpolation)
    expected = torch.empty(3, 3, side, side, dtype=torch.float64)
    for image in range(3):
        large = tv.resize(pixels[image], [side, side], mode, antialias=True)
        for c in range(3):
            expected[image, c] = (large[c] - teacher.mean[c]) / teacher.std[c]
    found = as_teacher_sees(student.normalize(pixels), student, teacher)
    torch.testing.assert_close(found, expected)


def test_a_teacher_that_expects_what_the_student_does_sees_the_views_to_the_bit() -> None:
    both = moments((0.1, 0.2, 0.3), (0.5, 0.25, 0.125), size=8)
    images = torch.randn(2, 3, 8, 8)
    assert as_teacher_sees(images, both, both._replace(interpolation="bicubic")) is images


def test_one_teacher_of_any_kind_is_predicted_with_its_own_preprocessing() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    backbone.preprocessing = moments((0.1, 0.2, 0.3), (0.5, 0.25, 0.125), size=8)
    projector = Distill.projector_spec.build(backbone, hidden=32, out=16)
    spec = "package:efficientnet-lite0"
    method = Distill(backbone, projector, teacher=spec, teacher_size=32).double().eval()
    seen = []
    method.teachers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pair = views(4)
    output = method(pair)
    pixels = torch.cat(pair) * torch.tensor([0.5, 0.25, 0.125]).view(3, 1, 1) + torch.tensor(
        [0.1, 0.2, 0.3]
    ).view(3, 1, 1)
    large = tv.resize(pixels, [32, 32], tv.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(seen[0], 2 * large - 1)
    with torch.no_grad():
        target = method.teachers[0](2 * large - 1)
        predicted = method.predictors[0](torch.cat(output.embeddings))
    cosines = (predicted * target).sum(1) / predicted.norm(dim=1) / target.norm(dim=1)
    torch.testing.assert_close(output.per_sample.detach(), -cosines.view(2, -1).mean(0))


@pytest.mark.parametrize("kind", ["run", "file"])
def test_a_teacher_that_cannot_follow_the_size_is_refused_in_a_sentence(kind, tmp_path) -> None:
    if kind == "run":
        card = {"backbone": "vit_tiny", "stem": "cifar", "width": 1.0, "patch": 4, "image_size": 8}
        save_backbone(build_backbone("vit_tiny", patch=4, image_size=8), tmp_path, card)
        settings = {"teacher": str(tmp_path)}
        sentence = r"multiple of its patch of 4 pixels, got 10; set method.teacher_size: 8 or 12$"
    else:
        torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pth")
        settings = {"teacher": f"{tmp_path}/w.pth", "teacher_backbone": "timm:test_vit"}
        sentence = r"pos_embed is .* in the file; set .* a transformer's method.teacher_size to"
    with pytest.raises(ValueError, match=f"method.teacher: .*{sentence}") as refused:
        build((), **settings, teacher_size=10 if kind == "run" else 32)
    assert "\n" not in str(refused.value)


def test_a_teacher_that_cannot_be_had_is_refused_in_a_sentence(teachers, tmp_path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "w.pth")
    cases = [
        ({"teacher": teachers[0]}, "set one of"),
        (
            {"teachers": (), "teacher": "nowhere"},
            "method.teacher: nowhere .* is not a run directory",
        ),
        ({"teachers": (), "teacher": f"{tmp_path}/w.pth"}, "set method.teacher_backbone"),
        (
            {"teachers": (), "teacher": f"{tmp_path}/w.pth", "teacher_backbone": "resnet18"},
            "fits 0 of the backbone's",
        ),
    ]
    for settings, sentence in cases:
        with pytest.raises(ValueError, match=sentence) as refused:
            build(settings.pop("teachers", teachers), **settings)
        assert "\n" not in str(refused.value)
