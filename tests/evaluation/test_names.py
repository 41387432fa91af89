"""Names of classes and runs stay text in the tables, whatever they hold."""

import torch

from sslgh.evaluation import class_table, comparison_table, details_table
from sslgh.evaluation.probing import probe_features
from sslgh.recipe import Probe

NAMES = ("<script>alert(1)</script>", "cat\nmany  100.0", "\x1b[31mred|x\x1b[0m")


def test_names_forge_no_line_and_drive_no_terminal(tmp_path) -> None:
    labels = torch.arange(3).repeat_interleave(20)
    features = torch.eye(3)[labels] + 0.01 * torch.randn(60, 3)
    results = probe_features(
        features, labels, features, labels, [Probe(protocol="knn")],
        directory=tmp_path, class_names=NAMES,
    )  # fmt: skip
    by_class = class_table(results[0])
    assert "<script>alert(1)</script>" in by_class
    assert r"cat\nmany  100.0" in by_class
    assert r"\x1b[31mred|x\x1b[0m" in by_class
    runs = [("run\n\x1b[2J", results)]
    for text in (by_class, comparison_table(runs), details_table(runs)):
        assert all(line.isprintable() for line in text.split("\n"))
    assert r"run\n\x1b[2J" in comparison_table(runs)
    assert by_class.count("\n") == class_table(results[0]).count("\n")
