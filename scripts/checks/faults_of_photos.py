"""Faults of what is done with a folder of photos."""

from fault import Fault

EMBED, ROWS = "explore/embed.py", "explore/embeddings.py"

FAULTS = [
    Fault(
        "a changed photo keeps its features",
        ROWS,
        "unchanged = (photos.stamps[found] == stamps).all(1)",
        "unchanged = (found >= 0)",
        "explore/test_embed.py",
    ),
    Fault(
        "every rank embeds the same photos",
        EMBED,
        "plan.pending[rank::size]",
        "plan.pending[::size]",
        "explore/test_embed.py -k two_processes",
    ),
    Fault(
        "a stopped embedding loses its last photos",
        EMBED,
        "if held and (step is None or full or",
        "if held and (full or",
        "explore/test_embed.py",
    ),
    Fault(
        "facts in the order of the shards",
        ROWS,
        "found[rows] = values",
        "found[:] = values",
        "explore/test_embed.py",
    ),
    Fault(
        "facts are no part of the key",
        EMBED,
        "pickle.dumps(facts, protocol=4)",
        'b""',
        "explore/test_embed.py",
    ),
    Fault(
        "preprocessing is no part of a model's fingerprint",
        "explore/loaded_model.py",
        "weights_fingerprint(backbone, str(preprocess))",
        'weights_fingerprint(backbone, "")',
        "explore/test_model.py -k fingerprint",
    ),
    Fault(
        "a file of weights is of the first backbone",
        "explore/bare_weights.py",
        "min(fits)",
        "fits[0]",
        "explore/test_model.py -k fits",
    ),
    Fault(
        "an export is not compared",
        "export/exported.py",
        "if not difference.largest <=",
        "if False and difference.largest <=",
        "export/test_export.py -k noticed",
    ),
    Fault(
        "a fresh process that imports this package",
        "export/exported.py",
        'split(".")[0] == "sslgh" for',
        'split(".")[0] == "" for',
        "export/test_export.py -k noticed",
    ),
    Fault(
        "timm's crop a pixel smaller",
        "export/preprocessing_code.py",
        "share = math.nextafter(share, 0)",
        "pass",
        "export/test_export.py -k same_side",
    ),
    Fault(
        "a network of other outputs is taken for the run's",
        "export/constructors.py",
        "if torch.is_tensor(found) and torch.allclose(found, source.outputs(images), atol=CLOSE):",
        "if True:",
        "export/test_export.py -k not_taken",
    ),
    Fault(
        "exported preprocessing leaves photos lying",
        "export/preprocessing_code.py",
        '"    ImageOps.exif_transpose,",',
        '"    v2.Identity(),",',
        "export/test_export.py -k orientation",
    ),
    Fault(
        "a model card with a path of this machine",
        "export/hugging_face_export.py",
        "_timm_lines(f\"'hf-hub:{ON_THE_HUB}'\")",
        "_by_timm(folder).placed()",
        "export/test_export.py -k card",
    ),
    Fault(
        "a script that does not move with its folder",
        "export/command.py",
        'placed("Path(__file__).parent")',
        "placed()",
        "export/test_export.py -k card",
    ),
    Fault(
        "class names lost in ONNX",
        "export/onnx_export.py",
        "list(source.class_names)",
        "[]",
        "export/test_export.py -k onnx",
    ),
    Fault(
        "HEIC counted as unread though the package is there",
        "data/tree.py",
        "(suffix in HEIC and reads_heic())",
        "False",
        "data/test_heic.py",
    ),
    Fault(
        "HEIC of any name not decoded",
        "data/decoding.py",
        '(*_FORMATS, "HEIF") if reads_heic() else _FORMATS',
        "_FORMATS",
        "data/test_heic.py",
    ),
    Fault(
        "a crashed loader process is a traceback",
        EMBED,
        'if "DataLoader worker" not in str(error):',
        "if True:",
        "explore/test_embed.py -k crashes",
    ),
]
