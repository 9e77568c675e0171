"""A file from a stranger is read, or refused by name."""

import os

import pytest

from sdnb.system import untrusted


def write(folder, content):
    (folder / "a.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / "a.json"


def test_what_is_well_formed_is_read(tmp_path):
    assert untrusted.read_json(write(tmp_path, b'\xef\xbb\xbf{"a": [1, "\\ud83d\\ude00"]}')) == {"a": [1, "😀"]}
    assert untrusted.read_json(write(tmp_path, "[1]"), list) == [1]
    assert untrusted.read_toml(write(tmp_path, 'a.b = "1.2.' + "3." * 25 + '"\n# ' + "." * 99 + "\n")) == {"a": {"b": "1.2." + "3." * 25}}
    assert untrusted.read_text(write(tmp_path, b"\xef\xbb\xbfone\r\ntwo\rthree")) == "one\ntwo\nthree"


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"\xff{}", "not UTF-8 .*save it again"),
        (b"", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 102 + "]" * 102, "nested too deeply"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' stands there twice"),
        ("{" + ", ".join(f'"{i % 99_999}": 1' for i in range(100_000)) + "}", "'0' stands there twice"),
        ('{"a": "\\ud800"}', "lone surrogate"),
        ('{"\\uDFFF": 1}', "lone surrogate"),
        ("1" * 5000, "is no JSON"),
        ("[" + "1" * 101 + "]", "more than 100 digits"),
        ("[1]", r"must be an object \{…\}, not a list"),
        ("true", "must be an object"),
        ("x" * 2_000_001, "it has 2,000,001 bytes, and at most 2,000,000 are read"),
    ],
    ids=range(14),
)
def test_json_that_is_refused(tmp_path, content, wrong):
    with pytest.raises(ValueError, match=rf"(?s)a\.json.*{wrong}"):
        untrusted.read_json(write(tmp_path, content), most=2_000_000)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("a = 1\na = 2", "is no TOML"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "[" * 101 + "]" * 101, "nested too deeply"),
        ("a" + ".a" * 20_000 + " = 1", "line 1 has more than 32 dots"),
        ('a = {b = """\n""", ' + "c." * 20_000 + "c = 1}", "line 2 has more than 32 dots"),
        ('"\\"' * 20_000, "is no TOML"),
        ("[" + "'a'. " * 20_000 + "a]", "line 1 has more than 32 dots"),
        ("a = " + "1" * 5000, "is no TOML"),
        ("a = 0x" + "1" * 9999, "more than 100 digits"),
        ('a = "C:\\Users"', "single quotes"),
        ('a = "\\ud800"', "is no TOML"),
    ],
    ids=range(11),
)
def test_toml_that_is_refused(tmp_path, content, wrong):
    with pytest.raises(ValueError, match=rf"(?s)a\.json.*{wrong}"):
        untrusted.read_toml(write(tmp_path, content))


def test_a_number_is_not_a_truth_value(tmp_path):
    with pytest.raises(ValueError, match="must be a whole number, not True"):
        untrusted.read_json(write(tmp_path, "true"), int)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        untrusted.read_text(tmp_path / "nothing")
    for path in (tmp_path, tmp_path / ("x" * 5000), tmp_path / "a\0b", tmp_path / "a\x1b[2Jb\0"):
        with pytest.raises(ValueError, match=tmp_path.name) as caught:
            untrusted.read_text(path)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files in folders")
def test_a_pipe_a_device_and_a_loop_of_links_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "zero", "loop"):
        with pytest.raises(ValueError, match=f"{name}: (it is no regular file|Too many levels)"):
            untrusted.read_bytes(tmp_path / name)
