"""The JSON of a diagnosis is what its schema says, field by field."""

import json
from pathlib import Path

import jsonschema
import pytest

import sdnb.doctor.diagnosis
from sdnb import __main__, diagnose
from sdnb.doctor.diagnosis import SCHEMA
from sdnb.doctor.languages import LANGUAGES
from sdnb.sd_scripts.findings import EFFECTS

from ..fuzz.doors import fuzz
from .test_diagnosis import FAMOUS, FLAGS, JSON, LOG, LONG, TOML
from .test_logs import SAMPLES
from .test_rules import CASES

PATH = Path(sdnb.doctor.diagnosis.__file__).with_name("diagnosis.schema.json")
DESCRIBED = json.loads(PATH.read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(DESCRIBED)
GOOD = diagnose("accelerate launch train_network.py --learning_rate=1e-4 --clip_skip=2 --lr_warmup_steps=0 --v2").as_dict()


def validated(text, language="en"):
    said = json.dumps(diagnose(text, language=language).as_dict(), allow_nan=False)
    VALIDATOR.validate(json.loads(said))
    return json.loads(said)


def test_the_schema_is_one_and_describes_each_field():
    jsonschema.Draft202012Validator.check_schema(DESCRIBED)
    for part in (DESCRIBED, *DESCRIBED["$defs"].values()):
        assert part["required"] == list(part["properties"])
        assert not part["additionalProperties"]
        for name, field in part["properties"].items():
            assert field["description"] or name == "schema", name
    assert DESCRIBED["properties"]["schema"]["const"] == SCHEMA
    assert DESCRIBED["properties"]["language"]["enum"] == list(LANGUAGES)
    assert DESCRIBED["$defs"]["finding"]["properties"]["effect"]["enum"] == list(EFFECTS)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    "texts", [CASES, SAMPLES, LONG, {"nothing": "", "famous": FAMOUS, "log": LOG}], ids=["rules", "logs", "long", "few"]
)
def test_every_known_text_validates(texts, language):
    forms = set()
    for text in texts.values():
        for one in text if isinstance(text, (list, tuple)) else [text]:
            said = validated(one, language)
            assert said["language"] == language
            forms.add(said["form"])
    assert forms & {"command", "log", "none"}


@fuzz(FLAGS | TOML | JSON, share=4)
def test_generated_settings_validate(text):
    validated(text)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schema": 2}, "1 was expected"),
        ({"raises": 1}, "boolean"),
        ({"form": "yaml"}, "is not one of"),
        ({"script": "train"}, "does not match"),
        ({"more": 1}, "Additional properties"),
        ({"effective": {"optimizer": "AdamW"}}, "is not valid under any"),
        ({"findings": [{**GOOD["findings"][0], "effect": "error"}]}, "is not one of"),
        ({"findings": [{**GOOD["findings"][0], "values": {}}]}, "Additional properties"),
    ],
)
def test_the_schema_refuses_what_is_none(change, fault):
    VALIDATOR.validate(GOOD)
    with pytest.raises(jsonschema.ValidationError, match=fault):
        VALIDATOR.validate({**GOOD, **change})
    for name in GOOD:
        with pytest.raises(jsonschema.ValidationError, match="required"):
            VALIDATOR.validate({key: value for key, value in GOOD.items() if key != name})


def test_not_a_number_is_null():
    said = validated(CASES["not-finite"])
    assert set(said["effective"]["learning_rates"].values()) == {None}


def test_names_and_numbers_are_the_same_in_all_languages():
    for text in (FAMOUS, LOG, *CASES.values()):
        english, chinese = (diagnose(text, language=language).as_dict() for language in ("en", "zh"))
        for said in (english, chinese):
            del said["language"], said["verdict"]
            said["findings"] = [{name: one[name] for name in ("rule", "effect", "source", "lesson", "repair")} for one in said["findings"]]
        assert english == chinese


def test_the_command_prints_it(capsys, monkeypatch):
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert __main__.main(["doctor", "--json", *FAMOUS.replace('"', "").split()]) == 1
    said = json.loads(capsys.readouterr().out)
    VALIDATOR.validate(said)
    assert said["language"] == "en"
    assert __main__.main(["doctor", "--json", "--language", "zh", *FAMOUS.replace('"', "").split()]) == 1
    assert json.loads(capsys.readouterr().out)["language"] == "zh"
