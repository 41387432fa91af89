"""Tables of labels as people write them."""

import pytest

from sslgh.data import DataError
from sslgh.explore.label_table import read_labels

FILES = ["a.jpg", "b/b 1.jpg", "b/c,d.jpg", 'e"f.jpg', "g\nh.jpg"]
EXPECTED = {"a.jpg": "red fox", "b/b 1.jpg": "owl"}


def read(tmp_path, content, files=FILES):
    table = tmp_path / "labels.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_labels(table, tmp_path / "photos", files)


@pytest.mark.parametrize(
    "content",
    [
        "file,kind\na.jpg,red fox\nb/b 1.jpg,owl\n",
        "file;kind\r\na.jpg;red fox\r\nb/b 1.jpg;owl\r\n",
        "file\tkind\na.jpg\tred fox\nb/b 1.jpg\towl\n",
        "a.jpg,red fox\nb/b 1.jpg,owl\n",
        "red fox,a.jpg\nowl,b/b 1.jpg",
        "\ufefffile,kind\n./a.jpg, red fox \nb\\b 1.jpg,owl\n\n",
        "image;species;group\na.jpg;red fox;7\nb/b 1.jpg;owl;2\n",
        "sep=;\r\nfile;kind\r\na.jpg;red fox\r\nb/b 1.jpg;owl\r\n",
        'group,file,kind,reason\n1,a.jpg,red fox,"first of group 1, typical"\n2,b/b 1.jpg,owl,\n3,"b/c,d.jpg",,no\n',
        '"file","kind"\n"a.jpg","red fox"\n"b/b 1.jpg","owl"\n',
        "file,kind\na.jpg,red fox\na.jpg,red fox\nb/b 1.jpg,owl\n",
        "file,kind\na.jpg,red fox\nb/b 1.jpg,owl\ngone.jpg,\n",
        "file,kind\na.jpg,red fox\nb/b 1.jpg,owl\n".encode("utf-16"),
    ],
)
def test_tables_of_spreadsheets_pages_and_editors_are_read(tmp_path, content) -> None:
    assert read(tmp_path, content).kinds == EXPECTED


def test_names_that_hold_separators_quotes_and_line_breaks_are_read(tmp_path) -> None:
    content = 'file,kind\n"b/c,d.jpg",fox\n"e""f.jpg","a ""b"""\n"g\nh.jpg",<script>\n'

    assert read(tmp_path, content).kinds == {
        "b/c,d.jpg": "fox",
        'e"f.jpg': 'a "b"',
        "g\nh.jpg": "<script>",
    }


def test_of_two_columns_that_name_photos_the_first_is_the_file(tmp_path) -> None:
    assert read(tmp_path, "a,b\nb,a\n", ["a", "b"]).kinds == {"a": "b", "b": "a"}
    assert read(tmp_path, "a.jpg,b/b 1.jpg\n").kinds == {"a.jpg": "b/b 1.jpg"}


def test_absolute_names_and_rows_without_a_kind(tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    content = f"file,kind\n{tmp_path}/photos/a.jpg,fox\nb/b 1.jpg,\n"

    found = read(tmp_path, content)

    assert (found.kinds, found.unlabeled, found.names) == ({"a.jpg": "fox"}, 1, ["fox"])


NFC, NFD = "M\u00fcll/\u00e9.jpg", "Mu\u0308ll/e\u0301.jpg"


@pytest.mark.parametrize(("photo", "cell"), [(NFC, NFD), (NFD, NFC)])
@pytest.mark.parametrize("way", ["{}", "./{}", "{folder}/{}"])
def test_names_that_macos_writes_decomposed_are_found(tmp_path, photo, cell, way) -> None:
    name = way.format(cell, folder=tmp_path / "photos")
    expected = {photo: "fox", "a.jpg": "owl"}

    assert read(tmp_path, f"file,kind\n{name},fox\na.jpg,owl\n", [photo, "a.jpg"]).kinds == expected


def test_of_two_names_that_look_the_same_each_means_the_exact_one(tmp_path) -> None:
    content = f"file,kind\n{NFC},fox\n{NFD},owl\n"
    assert read(tmp_path, content, [NFC, NFD]).kinds == {NFC: "fox", NFD: "owl"}

    half = "Mu\u0308ll/\u00e9.jpg"  # neither of them
    with pytest.raises(DataError, match="labels a file not among the photos"):
        read(tmp_path, f"file,kind\n{NFC},fox\n{half},owl\n", [NFC, NFD])


def test_names_that_are_no_text_are_matched_by_their_bytes(tmp_path) -> None:
    photo = "d/\udcfc \udcff.jpg"  # as Python names such a file
    found = read(
        tmp_path, b"file,kind\nd/\xfc \xff.jpg,f\xc3\xbcchs\na.jpg,owl\n", [photo, "a.jpg"]
    )

    assert found.kinds == {photo: "f\u00fcchs", "a.jpg": "owl"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,kind\nx.jpg,fox\ny.jpg,owl\na.jpg,owl\n", r"labels 2 files not among the photos of .*: x.jpg, y.jpg; give the"),
        ("file,kind\n" + "".join(f"{n}.jpg,fox\n" for n in range(9)), r"labels 9 files .*: 0.jpg, 1.jpg, 2.jpg and 6 more; "),
        ("file,kind\na.jpg,fox\na.jpg,owl\n", r"gives a file two kinds: a.jpg \(line 3: owl, before it fox\); keep one"),
        ("file,kind\na.jpg,\nb/b 1.jpg,\n", r"holds no label \(2 rows, all without a kind\); fill"),
        ("a.jpg\nb/b 1.jpg\n", r"has 1 column and none called 'kind'; name the columns"),
        ("a.jpg,fox,3\nb/b 1.jpg,owl,4\n", r"has 3 columns and none called 'kind'"),
        ('file,kind\n"a.jpg,fox\n', r"cannot be read \(unexpected end of data\); close its quotes"),
        ("", r"is empty; it needs a line 'file,kind'"),
        (b"file,kind\na.jpg,f\xfcchs\n", r"is not UTF-8 text; save it as CSV in UTF-8"),
        (b"file,kind\na.jpg,owl\n\xfc.jpg,fox\n", r"is not UTF-8 text; save it as CSV in UTF-8"),
        (b"\xff\xfea", r"is not UTF-8 text; save it as CSV in UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_sentence_with_the_way_out(tmp_path, content, message) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, content)

    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there_is_one_sentence(tmp_path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\); give a"):
        read_labels(tmp_path / "none.csv", tmp_path, FILES)


def test_kinds_that_differ_in_case_only_are_named(tmp_path) -> None:
    content = 'file,kind\na.jpg,Fox\nb/b 1.jpg,fox\n"b/c,d.jpg",owl\n'

    assert read(tmp_path, content).alike == ["Fox", "fox"]
