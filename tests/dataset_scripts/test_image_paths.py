"""Image paths of records: whatever is accepted stays below the root, in every way it may be read."""

import ntpath
import os.path
import unicodedata
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataset_scripts.image_paths import IMAGE_SUFFIXES, MAX_PATH, check_image_path, is_image_name


ROOT = "/data/images"
PIECES = (
    ".. . / \\ %2e %2E %2f %5c %25 % 25 ２Ｆ ． ／ ％ ‥ a ~ C: ： %EF%BC%8F %EF%BC%85 %00 é e\u0301 猫 :// ∕ ℀".split()
)
PIECES += [" ", "\0", "\ud800"]
PATHS = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
READERS = (unquote, *(lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFKC", "NFKD", "NFC")))


@settings(deadline=None, max_examples=800)
@given(PATHS, st.lists(st.sampled_from(READERS), max_size=6))
@example("a%2f..%2f..%2f..%2fb.jpg", [unquote])
@example("％2e％2e/％2e％2e/％2e％2e/b.jpg", [READERS[1], unquote])
@example("%EF%BC%852e./%EF%BC%852e./%EF%BC%852e./b.jpg", [unquote, READERS[1], unquote])
def test_an_accepted_path_stays_below_the_root_however_it_is_decoded(path, readers):
    try:
        assert check_image_path(path) == path
    except ValueError:
        return
    reading = path
    for read in readers:
        reading = read(reading)
    joined = os.path.normpath(os.path.join(ROOT, reading))
    assert joined.startswith(ROOT + "/")
    assert joined.count("/") == ROOT.count("/") + 1 + path.count("/")
    windows = ntpath.normpath(ntpath.join("D:\\images", reading))
    assert windows.startswith("D:\\images\\")
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in reading)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "1 to 1024 characters, got 0"),
        ("a" * (MAX_PATH + 1), "1 to 1024 characters, got 1025"),
        *((path, "relative, with forward slashes") for path in ("/etc/passwd", "~/a.jpg", "~root/a.jpg")),
        *((path, "relative, with forward slashes") for path in ("C:/a.jpg", "1:a.jpg", "Ｃ：/a.jpg", "a\\b.jpg")),
        *((path, "relative, with forward slashes") for path in ("\\\\server\\share\\a.jpg", "a%5cb.jpg", "%2fa.jpg")),
        *((path, "relative, with forward slashes") for path in ("http://a/b.jpg", "file:///a.jpg", "s3+x://a/b")),
        *(
            (path, "'.' or '..' part")
            for path in ("..", "../a.jpg", "a/../b.jpg", "a/..", ".", "./a.jpg", "a/./b.jpg")
        ),
        *((path, "'.' or '..' part") for path in ("a//b.jpg", "a/", "%2e%2e/a.jpg", "%2E./a.jpg", "．．/a.jpg")),
        *((path, "'.' or '..' part") for path in ("%252e%252e/a.jpg", "%25252e./a.jpg", "％2e％2e/a.jpg", "‥/a.jpg")),
        *((path, "hides a separator") for path in ("a%2fb.jpg", "a%252fb.jpg", "a／b.jpg", "a%EF%BC%8Fb.jpg")),
        *((path, "control character") for path in ("a\0.jpg", "a\n.jpg", "a%00.jpg", "a\x7f.jpg", "a\x85.jpg")),
        *((path, "surrogate pair") for path in ("a\ud800.jpg", "\udcff.jpg")),
        ("%" + "25" * 60 + "2e%2e/a.jpg", "encoded many times over"),
    ],
)
def test_a_dangerous_path_is_refused_with_its_reason(path, reason):
    with pytest.raises(ValueError) as error:
        check_image_path(path)
    assert reason in str(error.value)
    assert str(error.value).encode()  # can be written to a report
    if 0 < len(path) <= MAX_PATH:
        assert repr(path) in str(error.value)


@pytest.mark.parametrize(
    "path",
    [
        "a.jpg",
        "coco/train2017/000000000009.jpg",
        *("web-celebrity/images/Caf%C3%A9.jpg", "a/50%_off.jpg", "a/100%25.jpg", "a/%zz.jpg", "a/%.jpg"),
        *("wikiart/images/félix.jpg", "wikiart/images/fe\u0301lix.jpg", "a/猫.jpg", "a/😀👩\u200d👩.jpg"),
        *(
            "a b/c (1), d & e's.jpg",
            "a/.hidden.jpg",
            "...",
            "a/...jpg",
            "a..b/c..jpg",
            "a/~b.jpg",
            "a/b:c.jpg",
            "½.jpg",
        ),
        "a" * MAX_PATH,
    ],
)
def test_a_harmless_path_is_accepted_as_it_is(path):
    assert check_image_path(path) == path


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_images_are_known_by_their_suffix_in_any_case(suffix):
    assert is_image_name(f"a/b{suffix}") and is_image_name(f"a{suffix.upper()}")


@pytest.mark.parametrize("name", ["a/b.txt", "a.jpg/b", "jpg", "__MACOSX/a/._b.jpg", "._b.jpg", "a.jpg.json"])
def test_other_files_are_no_images(name):
    assert not is_image_name(name)
