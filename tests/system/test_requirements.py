"""How to install what is missing: from where sdnb came from, and never by a name that anybody may own on a package index."""

import json
import re
from importlib import metadata

import pytest

from sdnb.system import files, requirements

from ..conftest import ROOT

WHEEL = "sdnb-0.1.0-py3-none-any.whl"


@pytest.mark.parametrize(
    ("came", "command"),
    [
        ({"url": f"file:///data/my%20files/{WHEEL}", "archive_info": {}}, f'pip install "/data/my files/{WHEEL}[lab]"'),
        ({"url": "file:///data/sdnb", "dir_info": {}}, 'pip install "/data/sdnb[lab]"'),
        ({"url": f"https://example.org/{WHEEL}", "archive_info": {}}, f'pip install "sdnb[lab] @ https://example.org/{WHEEL}"'),
        (
            {"url": "https://github.com/someone/course", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            'pip install "sdnb[lab] @ git+https://github.com/someone/course@abc"',
        ),
        (None, 'pip install "jupyterlab>=4.2" "ipykernel>=6"'),
    ],
    ids=["wheel", "folder", "address", "repository", "unknown"],
)
def test_an_extra_is_installed_from_where_sdnb_came_from(came, command, tmp_path, monkeypatch):
    record = tmp_path / "sdnb-0.1.0.dist-info"
    record.mkdir()
    needs = ["torch>=2.8", "jupyterlab>=4.2; extra == 'lab'", 'ipykernel>=6 ; extra == "lab"', "pytest>=8; extra == 'dev'"]
    lines = ["Metadata-Version: 2.1", "Name: sdnb", "Version: 0.1.0", *(f"Requires-Dist: {need}" for need in needs)]
    (record / "METADATA").write_text("\n".join(lines), encoding="utf-8")
    if came:
        (record / "direct_url.json").write_text(json.dumps(came), encoding="utf-8")
    monkeypatch.setattr(metadata, "distribution", lambda _: metadata.PathDistribution(record))
    monkeypatch.setattr(files, "PACKAGE", tmp_path / "sdnb")
    assert requirements.extra("lab") == command


def test_a_checkout_is_named_by_its_path():
    assert requirements.extra("lab") == f'pip install "{ROOT}[lab]"'


def test_readers_are_never_told_to_install_sdnb_by_its_bare_name():
    bare = re.compile(r"""(?:pip|pipx|uv|conda|mamba)\s+(?:add|install|tool install)\s[^\n"'`]*["'`\\]*\bsdnb\b(?!\[[\w{}]+\] @|[\w./-])""")
    assert bare.search('pip install "sdnb[lab]"')
    assert bare.search("uv pip install --quiet sdnb")
    shown = [ROOT / "Makefile", ROOT / "environment.yml", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    shown += [*(ROOT / "notebooks").rglob("*.md"), *(ROOT / "notebooks").rglob("*.ipynb"), *(ROOT / "sdnb").rglob("*.py")]
    shown += (ROOT / "sdnb").rglob("*.toml")
    assert [str(path) for path in shown if bare.search(path.read_text(encoding="utf-8"))] == []
