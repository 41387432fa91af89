"""A short run of scripts/checks/fuzz_images.py, which is run with a thousand files by hand."""

import importlib.util
from collections import Counter
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "checks" / "fuzz_images.py"
specification = importlib.util.spec_from_file_location("fuzz_images", SCRIPT)
fuzz = importlib.util.module_from_spec(specification)
specification.loader.exec_module(fuzz)


def test_damaged_images_are_read_or_refused_in_bounded_time_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "LARGEST_SIDE", 2000)  # the limit itself takes seconds a file
    paths = fuzz.damaged_files(tmp_path, count=60, seed=4, photos=tmp_path)
    found = fuzz.outcomes(paths)
    wrong = [result for result in found if result.what not in fuzz.GOOD]
    assert wrong == []
    counts = Counter(result.what for result in found)
    assert counts["read"] >= 5
    assert counts["refused"] >= 20


def test_the_undamaged_images_are_all_read(tmp_path):
    whole = fuzz.drawn_images(fuzz.np.random.default_rng(0))
    assert len(whole) >= 30
    paths = [tmp_path / f"{i}.jpg" for i in range(len(whole))]
    for path, content in zip(paths, whole, strict=True):
        path.write_bytes(content)
    assert {result.what for result in fuzz.outcomes(paths)} == {"read"}
