"""What a reader is told of an answer."""

import re

import pytest

import sdnb
from sdnb.course import building, languages


@pytest.fixture
def told(capsys, tmp_path, monkeypatch):
    """Function of an exercise and an answer: what `sdnb.check` prints in English. There has to be a Chinese text, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(languages, "_spoken", [])

    def tell(exercise, answer):
        languages.speak("zh")
        assert re.search(r"[\u4e00-\u9fff]", building.verdict(exercise, answer))
        languages.speak("en")
        sdnb.check(exercise, answer)
        said = capsys.readouterr().out
        assert said.startswith("✗ Not yet. ")
        return said

    return tell
