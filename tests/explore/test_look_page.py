"""The page of a folder: contents, names that attack, size, and that it loads nothing."""

import json
import re
from html.parser import HTMLParser

import pytest

from sslgh.cli import main
from sslgh.explore.look import look_folder
from sslgh.explore.tail import tail
from sslgh.report.look_page import look_page
from sslgh.report.page import percent, render, write_page
from sslgh.report.pictures import thumbnails

HOSTILE = "</script><script>alert(1)</script>\"'\n&amp;.png"


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of script elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.in_script = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):  # noqa: D102
        self.tags.append((tag, dict(attrs)))
        self.in_script = tag == "script"
        if self.in_script:
            self.scripts.append("")

    def handle_endtag(self, tag):  # noqa: D102
        self.in_script = False

    def handle_data(self, data):  # noqa: D102
        if self.in_script:
            self.scripts[-1] += data


@pytest.fixture(autouse=True)
def _no_umap(monkeypatch):
    monkeypatch.setattr("sslgh.report.look_page.umap_map", lambda rows: None)


@pytest.fixture
def result(photos, model, tmp_path, draw):
    name = HOSTILE.replace("/", "\u2215")
    draw(photos / name, 50)
    draw(photos / "<" / "script><img src=x onerror=alert(2)>.png", 51)  # ends a script element
    draw(photos / "copy.png", 1)
    return look_folder(photos, tmp_path / "out", model, workers=0, budget=5)


@pytest.fixture
def text(result):
    return look_page(result)


def test_names_of_files_are_only_text(text) -> None:
    page = Elements(text)
    assert len(page.scripts) == 2
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "alert(1)" not in page.scripts[1]
    files = json.loads(page.scripts[0])["files"].values()
    assert "</script><img src=x onerror=alert(2)>.png" in files
    assert HOSTILE.replace("/", "\u2215") in files


def test_the_page_loads_nothing(text) -> None:
    page = Elements(text)
    links = [a.get(key) for _, a in page.tags for key in ("src", "href", "action", "srcset")]
    assert all(link.startswith(("#", "data:")) for link in links if link)
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_three_photos_are_too_few_to_be_divided_again(draw, model, tmp_path) -> None:
    for seed in range(3):
        draw(tmp_path / "few" / f"{seed}.png", seed)
    text = look_page(look_folder(tmp_path / "few", None, model, workers=0))
    assert "too few photos to divide them again" in text
    assert "found again in" not in text
    assert "of 10" not in text


def test_the_headline_has_the_share_of_the_largest_groups(result) -> None:
    found = result.findings._replace(tail=tail([70, 20, 10]))
    text = look_page(result._replace(findings=found))
    assert "The largest group holds 70 % of the photos; the 1 smallest together hold 10 %." in text


def test_every_section_is_there_and_every_picture_has_an_alternative(text) -> None:
    page = Elements(text)
    sections = [a["id"] for tag, a in page.tags if tag == "section"]
    assert sections == ["glance", "kinds", "map", "copies", "odd", "label", "limits"]
    images = [a for tag, a in page.tags if tag == "img"]
    assert len(images) > 10
    assert all("alt" in image for image in images)


def test_the_script_knows_every_photo_with_its_nearest_and_places(text, result) -> None:
    data = json.loads(Elements(text).scripts[0])
    count = len(result.findings.files)
    assert len(data["files"]) == len(data["pictures"]) == count
    assert len(data["map"]["neighbors"]) == len(data["map"]["axes"]) == count
    assert all(len(near) == count - 1 and int(i) not in near for i, near in data["near"].items())
    assert data["first"] == [one.row for one in result.first]


def test_copies_are_shown_side_by_side_with_their_sizes(text) -> None:
    part = text[text.index('<section id="copies">') : text.index('<section id="odd">')]
    assert part.count("24 x 20") == 2
    assert "copy.png" in part


def test_the_page_says_how_to_repeat_it_and_what_was_not_read(text, result) -> None:
    assert f"sslgh look {result.folder} --out {result.out}" in text
    assert "a/broken.jpg: not a known image format" in text


def test_a_page_of_one_photo_is_a_page(draw, model, tmp_path) -> None:
    draw(tmp_path / "one" / "x.png", 0)
    page = Elements(look_page(look_folder(tmp_path / "one", None, model, workers=0)))
    assert json.loads(page.scripts[0])["near"] == {"0": []}


def test_pictures_end_where_their_bytes_are_spent(draw, tmp_path) -> None:
    names = [f"{n}.png" for n in range(6)]
    for seed, name in enumerate(names):
        draw(tmp_path / name, seed)
    everything = thumbnails(tmp_path, names, [(i, 32) for i in (3, 3, 1, 0, 2, 4, 5)])
    assert sorted(everything) == list(range(6))
    budget = len(everything[3]) + len(everything[1])
    some = thumbnails(tmp_path, names, [(i, 32) for i in (3, 1, 0)], budget=budget)
    assert sorted(some) == [1, 3]


def test_a_missing_value_of_a_template_is_an_error() -> None:
    with pytest.raises(Exception, match="is undefined"):
        render("look.html", "look.js")


def test_shares_are_rounded_to_what_matters() -> None:
    assert [percent(s) for s in (0, 0.5, 0.099, 0.0004)] == [
        "0.0 %",
        "50 %",
        "9.9 %",
        "under 0.1 %",
    ]


def test_a_page_replaces_the_one_before(tmp_path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_page(path, "name \udcff")
    assert path.read_text() == "name ?"
    assert list(tmp_path.iterdir()) == [path]


def test_a_scan_with_report_adds_near_copies_and_quality(result, run, tmp_path, capsys) -> None:
    words = ["scan", str(result.folder), "--report", "--out", str(tmp_path / "scan"), "--json"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--model", str(run)])
    assert ended.value.code == 1  # one photo is broken
    record = json.loads(capsys.readouterr().out)
    assert record["near_duplicates"] == [["a/1.png", "copy.png"]]
    assert record["near_leaks"] == []
    assert len(record["quality"]["tiny"]) == len(result.findings.files)
    assert (tmp_path / "scan" / "report.html").stat().st_size > 1000


def test_a_map_by_umap_has_a_button_where_there_is_one(result, text, monkeypatch) -> None:
    assert "UMAP" not in text
    monkeypatch.setattr("sslgh.report.look_page.umap_map", lambda rows: 0 * rows[:, :2])
    assert 'data-map="umap"' in look_page(result)
