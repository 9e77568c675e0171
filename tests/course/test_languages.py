"""Which language the course speaks, and its texts in it."""

import pytest

from sdnb.course import languages


@pytest.fixture(autouse=True)
def nothing_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(languages.VARIABLE, raising=False)
    monkeypatch.setattr(languages, "_spoken", [])


def test_it_is_english_where_nothing_says_another():
    assert languages.language() == "en"


def test_the_set_up_comes_before_the_variable_and_that_before_the_folder(tmp_path, monkeypatch):
    (tmp_path / "zh").mkdir()
    monkeypatch.chdir(tmp_path / "zh")
    assert languages.language() == "zh"
    monkeypatch.setenv(languages.VARIABLE, "en")
    assert languages.language() == "en"
    languages.speak("zh")
    assert languages.language() == "zh"


def test_a_variable_that_names_no_language_of_the_course_says_nothing(monkeypatch):
    monkeypatch.setenv(languages.VARIABLE, "fr")
    assert languages.language() == "en"


def test_a_language_that_the_course_does_not_have_is_refused():
    with pytest.raises(ValueError, match="does not speak 'fr': there are en, zh"):
        languages.speak("fr")
    assert languages.language() == "en"


def test_a_text_is_that_of_the_language(monkeypatch):
    text = {"en": "steps", "zh": "步"}
    assert (languages.said(text), languages.said("GiB"), languages.said(None)) == ("steps", "GiB", "")
    languages.speak("zh")
    assert (languages.said(text), languages.said("GiB"), languages.said({"en": "new"})) == ("步", "GiB", "new")


def test_sentences_are_joined_as_the_language_does():
    assert languages.joined("One.", "", "Two.") == "One. Two."
    languages.speak("zh")
    assert languages.joined("一。", "二。") == "一。二。"
