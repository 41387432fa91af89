"""Features of a folder: right, complete, resumed, whatever lies in it."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sslgh.data.image_set import DataError
from sslgh.engine.exit_codes import Stopped
from sslgh.explore import embed as module
from sslgh.explore.embed import embed, embed_folder, plan_embedding
from sslgh.explore.embeddings import load_embeddings
from sslgh.explore.model import load_model
from sslgh.explore.photos import find_photos
from sslgh.preprocessing import Preprocessing

NAMES = ["a/1.png", "a/2.png", "b.png", "c/4.png", "c/5.png", "c/x/3.png"]


def mean_and_hash(image, path, scale=1.0):
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    return {"mean": scale * pixels.mean(), "corner": pixels[0, 0], "letters": len(path.name)}


def by_hand(model, path):
    with Image.open(path) as image, torch.no_grad():
        return model.backbone(model.preprocess(image)[None])[0].numpy()


def pending(model, folder, out, **options):
    return plan_embedding(model, lambda: find_photos(folder), out=out, **options).pending


def test_each_row_is_the_backbones_output_for_the_preprocessed_photo(model, photos) -> None:
    found = embed_folder(model, photos, workers=0, batch_size=4)
    assert found.files == NAMES
    expected = np.stack([by_hand(model, photos / name) for name in NAMES])
    np.testing.assert_allclose(found.features, expected, atol=1e-5)
    assert found.features.dtype == np.float32
    assert list(found.skipped) == ["a/broken.jpg"]
    assert "not a known image format" in found.skipped["a/broken.jpg"]


def test_loader_processes_and_the_size_of_batches_change_nothing(model, photos) -> None:
    one = embed_folder(model, photos, workers=0, batch_size=1)
    several = embed_folder(model, photos, workers=2, batch_size=3)
    assert one.files == several.files
    np.testing.assert_allclose(one.features, several.features, atol=1e-5)


def test_a_file_gives_back_what_was_embedded(model, photos, tmp_path) -> None:
    (photos / "notes.txt").write_text("words")
    (photos / "film.mp4").write_bytes(b"....ftypisom")
    facts = partial(mean_and_hash, scale=2.0)
    found = embed_folder(model, photos, out=tmp_path / "x.npz", facts=facts, workers=0)
    again = load_embeddings(tmp_path / "x.npz")
    assert again.files == found.files
    assert np.array_equal(again.features, found.features)
    assert (again.skipped, again.model) == (found.skipped, found.model)
    assert again.left_out == found.left_out == {".mp4": 1, ".txt": 1}
    assert again.facts.keys() == {"mean", "corner", "letters"}
    for i, name in enumerate(NAMES):
        with Image.open(photos / name) as image:
            pixels = np.asarray(image)
        assert again.facts["mean"][i] == pytest.approx(2 * pixels.mean())
        assert again.facts["corner"][i].tolist() == pixels[0, 0].tolist()
        assert again.facts["letters"][i] == len(name.rpartition("/")[2])


def test_a_second_call_embeds_only_what_is_new_or_changed(model, photos, tmp_path, draw) -> None:
    out = tmp_path / "x.npz"
    first = embed_folder(model, photos, out=out, workers=0)
    broken = find_photos(photos).names.index("a/broken.jpg")
    assert pending(model, photos, out) == [broken]  # it may have been repaired
    draw(photos / "a" / "0.png", 10)
    draw(photos / "b.png", 11)
    os.utime(photos / "b.png", ns=(0, 5))
    (photos / "c" / "5.png").unlink()
    names = find_photos(photos).names
    assert [names[i] for i in pending(model, photos, out)] == ["a/0.png", "a/broken.jpg", "b.png"]
    second = embed_folder(model, photos, out=out, workers=0)
    whole = embed_folder(model, photos, workers=0)
    assert (
        second.files
        == whole.files
        == ["a/0.png", "a/1.png", "a/2.png", "b.png", *NAMES[3:4], NAMES[5]]
    )
    np.testing.assert_allclose(second.features, whole.features, atol=1e-5)
    assert np.array_equal(second.features[1], first.features[0])  # kept, to the bit


def test_a_repaired_photo_gets_its_row_and_loses_its_fault(model, photos, tmp_path, draw) -> None:
    embed_folder(model, photos, out=tmp_path / "x.npz", workers=0)
    draw(photos / "a" / "broken.png", 3)
    (photos / "a" / "broken.png").rename(photos / "a" / "broken.jpg")
    found = embed_folder(model, photos, out=tmp_path / "x.npz", workers=0)
    assert found.skipped == {}
    np.testing.assert_allclose(
        found.features[2], by_hand(model, photos / "a/broken.jpg"), atol=1e-5
    )


def test_a_stopped_run_goes_on_from_its_shards_to_the_same_rows(
    model, photos, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(module, "SHARD", 2)
    out = tmp_path / "x.npz"
    facts = mean_and_hash
    plan = plan_embedding(model, lambda: find_photos(photos), out=out, facts=facts)
    calls = iter([False, True])
    with pytest.raises(Stopped, match="the same command goes on"):
        embed(model, plan, facts=facts, workers=0, batch_size=2, stop=lambda: next(calls))
    assert not out.exists()
    left = pending(model, photos, out, facts=facts)
    assert left == [2, 4, 5, 6]  # the broken one again, and the last three
    found = embed_folder(model, photos, out=out, facts=facts, workers=0, batch_size=2)
    whole = embed_folder(model, photos, facts=facts, workers=0, batch_size=2)
    assert found.files == whole.files
    assert np.array_equal(found.facts["corner"], whole.facts["corner"])
    np.testing.assert_allclose(found.features, whole.features, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir() if "x.npz" in path.name] == ["x.npz"]


def test_features_of_another_model_or_with_other_facts_are_not_overwritten(
    model, photos, tmp_path
) -> None:
    out = tmp_path / "x.npz"
    embed_folder(model, photos, out=out, workers=0)
    content = out.read_bytes()
    with pytest.raises(DataError, match="holds features of another model"):
        embed_folder(model, photos, out=out, facts=mean_and_hash, workers=0)
    out.write_bytes(b"my own notes")
    with pytest.raises(DataError, match=r"cannot be read as embeddings .* move that one away"):
        embed_folder(model, photos, out=out, workers=0)
    np.savez(out, images=np.zeros(3))
    with pytest.raises(DataError, match="cannot be read as embeddings"):
        embed_folder(model, photos, out=out, workers=0)
    assert content


@pytest.mark.parametrize(
    "name", ['quote".png', "new\nline.png", "<script>.png", "a,b;c.png", "f\udcff.png"]
)
def test_any_name_of_a_file_is_kept(model, tmp_path, name, draw) -> None:
    draw(tmp_path / "photos" / "1.png", 0)
    try:
        (tmp_path / "photos" / "1.png").rename(tmp_path / "photos" / name)
    except OSError:
        pytest.skip("the file system takes no such name")
    embed_folder(model, tmp_path / "photos", out=tmp_path / "x.npz", workers=0)
    assert load_embeddings(tmp_path / "x.npz").files == [name]
    assert pending(model, tmp_path / "photos", tmp_path / "x.npz") == []


def test_a_folder_without_photos_and_one_of_broken_ones_are_refused(model, tmp_path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        embed_folder(model, tmp_path / "gone", workers=0)
    with pytest.raises(DataError, match="holds no image"):
        embed_folder(model, tmp_path, workers=0)
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(
        DataError, match=r"none of the 1 photos can be read \(first a.jpg: not a known"
    ):
        embed_folder(model, tmp_path, workers=0)


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_embedded(
    model, photos, tmp_path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be made"):
        embed_folder(model, photos, out=tmp_path / "file" / "x.npz", workers=0)


def test_weights_that_give_no_numbers_are_refused_by_the_photo(model, photos) -> None:
    class Nan(torch.nn.Module):
        num_features = 2

        def forward(self, images):
            return torch.full((len(images), 2), torch.nan)

    broken = module.LoadedModel("bad", Nan(), model.preprocess, "0")
    with pytest.raises(ValueError, match=r"bad gives features that are not finite for a/1.png"):
        embed_folder(broken, photos, workers=0)


def end_the_process(image, path):
    os._exit(1)


def test_a_photo_that_crashes_its_loader_process_is_a_sentence(model, photos) -> None:
    with pytest.raises(OSError, match=r"a loader process was ended, .*sslgh scan FOLDER"):
        embed_folder(model, photos, facts=end_the_process, workers=1)


def embed_on_each(run, photos, out):
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    # What a launcher sets; the process group itself is already there.
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    launcher |= {"MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    try:
        loaded = load_model(run)
        found = embed_folder(loaded, Path(photos), out=Path(out), workers=0, batch_size=2)
        return found.files
    finally:
        for name in launcher:
            del os.environ[name]


def test_two_processes_share_the_photos_and_write_one_file(
    two_processes, model, run, photos, tmp_path
) -> None:
    answers = two_processes(embed_on_each, str(run), str(photos), str(tmp_path / "x.npz"))
    assert answers == [NAMES, []]
    whole = embed_folder(model, photos, workers=0)
    np.testing.assert_allclose(
        load_embeddings(tmp_path / "x.npz").features, whole.features, atol=1e-5
    )


def test_a_line_of_pixels_is_cut_without_gigabytes() -> None:
    line = Image.new("RGB", (20_000, 1), (10, 200, 30))
    for image in (line, line.transpose(Image.Transpose.ROTATE_90)):
        assert (
            np.asarray(Preprocessing().crop(image)).reshape(-1, 3).tolist()
            == [[10, 200, 30]] * 224**2
        )


def test_a_long_picture_is_cut_to_the_same_pixels(monkeypatch) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (40, 700, 3), dtype=np.uint8)
    for image in (Image.fromarray(drawn), Image.fromarray(drawn.transpose(1, 0, 2).copy())):
        whole = np.asarray(Preprocessing(16).crop(image)).astype(int)
        monkeypatch.setattr("sslgh.preprocessing.LONGEST", 2)
        assert abs(np.asarray(Preprocessing(16).crop(image)) - whole).max() <= 1
        monkeypatch.undo()


def no_memory(image, path):
    if image.getpixel((0, 0)) == (9, 9, 9):
        raise MemoryError
    return {"width": np.int32(image.width)}


def test_a_photo_that_cannot_be_measured_is_left_out_alone(photos, model) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(photos / "large.png")
    found = embed_folder(model, photos, facts=no_memory, workers=0)
    assert found.skipped["large.png"] == "it takes more memory than there is"
    assert len(found.files) == 6
