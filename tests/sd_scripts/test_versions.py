"""Versions of sd-scripts: their names, what each brought, where cited lines stand, and which one a traceback fits."""

import pytest

from sdnb import diagnose
from sdnb.sd_scripts import arguments, versions

LORA = "accelerate launch train_network.py --learning_rate=1e-4 "
TRACEBACK = """Traceback (most recent call last):
  File "/opt/sd-scripts/train_network.py", line {end}, in <module>
    trainer.train(args)
  File "/opt/sd-scripts/library/{file}.py", line {line}, in wrap_check_needless_num_warmup_steps
    raise ValueError(f"{{name}} does not require `num_warmup_steps`. Set None or 0.")
ValueError: adafactor:0.0001 does not require `num_warmup_steps`. Set None or 0.
"""


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.11", "0.11.1"), ("v0.10.2", "0.10.2"), ("0.9", "0.9.1"), ("6721028", "0.11.1"), ("0.10.1", "0.10.1"), (" 0.10. ", "0.10.6")],
)
def test_a_version_is_named_by_its_number_or_commit(text, version):
    assert versions.chosen(text) == version


@pytest.mark.parametrize("text", ["1.0", "0.1", "672", "", "newest"])
def test_what_names_no_version_is_refused(text):
    with pytest.raises(ValueError, match=r"the doctor does not know sd-scripts .*: it knows 0\.9\.1, "):
        versions.chosen(text)
    if text:
        with pytest.raises(ValueError, match="the doctor does not know sd-scripts"):
            diagnose(LORA, version=text)


def test_the_rules_are_those_of_the_recorded_version():
    commit, _ = versions.table()["versions"][versions.recorded()]
    assert arguments.facts()["source"]["commit"].startswith(commit)


def test_the_version_of_arguments_scripts_and_modules():
    assert versions.since("train_network.py", "train_inpainting") == "0.10.4"
    assert versions.since("train_network.py", "learning_rate") == "0.9.1"
    assert versions.since("flux_train.py", "learning_rate") == versions.since("flux_train.py") == "0.10.0"
    assert versions.module_since("networks.loha") == "0.10.2"
    assert set(versions.table()["scripts"]) <= set(arguments.facts()["scripts"])
    assert arguments.arguments("train_leco.py")["prompts_file"].type == "str"


def test_a_cited_line_is_followed_into_another_file():
    assert versions.place("library/train_util.py:5296", "0.10.1") == "library/train_util.py:5296"
    assert versions.place("library/train_util.py:5296", "0.11.1") == "library/optimizer.py:505"
    assert versions.place("library/train_util.py:3362", "0.11.0") is None
    assert versions.reference("torch/optim/optimizer.py:952", "0.11.1") == "torch/optim/optimizer.py:952"
    assert versions.reference("library/train_util.py:3362", "0.11.0").endswith("(sd-scripts 0.10.1; not found in 0.11.0)")


@pytest.mark.parametrize(
    ("end", "file", "line", "version"),
    [
        (2047, "optimizer", 505, "0.11.1"),
        (1898, "train_util", 5359, "0.10.3"),
        (1242, "train_util", 4421, "0.9.1"),
        (7, "train_util", 5296, None),  # somebody's own version
    ],
)
def test_the_version_is_guessed_from_a_traceback(end, file, line, version):
    log = TRACEBACK.format(end=end, file=file, line=line)
    diagnosis = diagnose(log)
    assert diagnosis.as_dict()["version"] == version
    assert f"(sd-scripts {version or versions.recorded()})" in diagnosis.findings[0].source
    if version:
        assert f"library/{file}.py:{line} " in diagnosis.findings[0].source


def test_a_newer_argument_is_a_matter_of_the_version():
    text = LORA + "--train_inpainting"
    effects = {version: [one.effect for one in diagnose(text, version=version).findings] for version in ("0.10.1", "0.10.4", "")}
    assert effects == {"0.10.1": ["raises"], "0.10.4": [], "": ["note"]}
    assert "--train_inpainting" not in diagnose(text, version="0.10.1").fixed_text()
    ignored = diagnose("learning_rate = 1e-4\ntrain_inpainting = true", script="train_network.py", version="0.10.1").findings
    assert [one.effect for one in ignored] == ["overrides"]


def test_a_script_and_a_module_that_a_version_lacks():
    assert "no flux_train.py" in diagnose("accelerate launch flux_train.py --learning_rate=1e-5", version="0.9.1").findings[0].what
    loha = LORA + "--network_module=networks.loha"
    assert [one.rule for one in diagnose(loha, version="0.10.1").findings] == ["network-unknown"]
    assert diagnose(loha, version="0.11").findings == ()
    assert [one.effect for one in diagnose(loha).findings] == ["note"]
