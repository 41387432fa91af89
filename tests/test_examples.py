"""GH outside sslgh: the examples are short, and they run."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_under_60_lines_and_is_run_here() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    assert [file.stem for file in files] == ["lightly_loop", "lightning_module"]
    assert all(len(file.read_text().splitlines()) < 60 for file in files)


def test_a_plain_loop_with_lightly_learns_with_gh() -> None:
    torch.manual_seed(0)
    terms = example("lightly_loop").main(epochs=4, samples=128)
    assert terms[:2] == [0, 0]
    assert all(0 <= term < 100 for term in terms)  # 0 as long as no kinds are visible
    assert math.isfinite(sum(terms))


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loaders and devices
def test_a_lightning_module_trains_with_gh_and_goes_on_from_its_checkpoint(tmp_path) -> None:
    torch.manual_seed(0)
    module = example("lightning_module")
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
    }
    model = module.main(epochs=2, samples=128, **quiet)
    harmonizer = model.not_a_submodule[0]
    assert int(harmonizer.epoch) == 1
    assert harmonizer.population.memory.seen.all()
    saved = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=False)["harmonizer"]
    for key, value in harmonizer.state_dict().items():
        assert torch.equal(saved[key], value), key
