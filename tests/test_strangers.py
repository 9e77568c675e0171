"""`benchmarks.doctor_against_strangers`: made-up files, right and wrong verdicts, and repairs that do harm."""

from __future__ import annotations

import hashlib
import json

import pytest

from benchmarks import doctor_against_strangers as strangers
from sdnb import diagnose

LORA = "accelerate launch train_network.py --network_module=networks.lora --learning_rate=1e-4 --sdpa"


def verdict(status, rules=(), never=(), repair=None, **more):
    return {"status": status, "rules": list(rules), "never": list(never), "repair": repair, **more}


@pytest.mark.parametrize(
    ("text", "said", "faults"),
    [
        (LORA, verdict(0), []),
        (LORA, verdict(1, ["needless-warmup"]), ["status 1", "needless-warmup"]),
        (f"{LORA} --lr_warmup_steps=100", verdict(1, ["needless-warmup"], repair=True), []),
        (f"{LORA} --lr_warmup_steps=100", verdict(1, never=["needless-warmup"], repair=False), ["needless-warmup said", "repair False"]),
        ("x: 1\n", verdict(2), []),
    ],
)
def test_verdicts_are_compared(text, said, faults):
    found = strangers.wrong(diagnose(text), said, "settings")
    assert len(found) == len(faults)
    assert all(fault in one for one, fault in zip(found, faults, strict=True))


def test_the_error_of_a_log_is_looked_for():
    log = diagnose("Traceback (most recent call last):\n  File 'a.py', line 1\nValueError: the moon is full\n")
    assert not strangers.wrong(log, verdict(None, error="the moon is full"), "logs")
    assert strangers.wrong(log, verdict(None, error="the sun is out"), "logs")


@pytest.mark.parametrize(
    ("before", "lost"),
    [
        (f"{LORA} --lr_warmup_steps=100", []),
        (f"{LORA} --lr_warmup_steps=100 --max_grad_norm=1.0", []),
        ("# mine\n" + LORA + " --lr_warmup_steps=100", []),
        ('learning_rate = 1e-4 # mine\nlr_warmup_steps = 100\nnetwork_module = "networks.lora"', []),
    ],
)
def test_repairs_do_no_harm(before, lost):
    diagnosis = diagnose(before)
    assert strangers.repaired(diagnosis) != before
    assert strangers.harm(diagnosis, before) == lost


def test_harm_is_noticed(monkeypatch):
    before = f"# mine\n{LORA} --lr_warmup_steps=100 --max_grad_norm=0.5"
    diagnosis = diagnose(before)
    monkeypatch.setattr(strangers, "repaired", lambda _: f"{LORA} --lr_scheduler=constant_with_warmup --lr_warmup_steps=100")
    assert {"lost mine", "lost --max_grad_norm", "lost 0.5"} <= set(strangers.harm(diagnosis, before))
    toml = 'learning_rate = 1e-4\nlr_warmup_steps = 100\nmax_grad_norm = 0.5\nnetwork_module = "networks.lora"'
    monkeypatch.setattr(strangers, "repaired", lambda _: 'learning_rate = 1e-4\nnetwork_module = "networks.lora"')
    assert any(one.startswith("max_grad_norm") for one in strangers.harm(diagnose(toml), toml))


def test_files_are_known_by_their_contents(tmp_path, monkeypatch, capsys):
    (tmp_path / "settings").mkdir()
    files = {"a.sh": LORA, "b.sh": f"{LORA} --lr_warmup_steps=100", "c.sh": "changed"}
    entries = []
    for name, text in files.items():
        (tmp_path / "settings" / name).write_text(text, encoding="utf-8")
        digest = hashlib.sha256((text if name != "c.sh" else "as it was").encode()).hexdigest()
        entries.append({"file": f"settings/{name}", "sha256": digest, "verdict": verdict(0), "why": "made up"})
    entries.append({"file": "settings/gone.sh", "sha256": "", "verdict": verdict(0), "why": "made up"})
    entries[1] |= {"first": verdict(1)}
    (tmp_path / "settings.json").write_text(json.dumps(entries), encoding="utf-8")
    monkeypatch.setattr(strangers, "LISTS", tmp_path)
    monkeypatch.setattr(strangers.entries, "__defaults__", (tmp_path,))
    monkeypatch.setattr("sys.argv", ["benchmark", str(tmp_path), "--json", str(tmp_path / "out.json")])
    with pytest.raises(SystemExit) as left:
        strangers.main()
    (row,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["rows"]
    assert left.value.code == 1
    assert (row["judged"], row["right"], row["right by the verdicts as first written"], row["missing"]) == (2, 1, 2, 2)
    said = capsys.readouterr().out
    assert "settings/b.sh: status 0 expected, said 1" in said and "gone.sh: not in the folder" in said and "c.sh: not the file" in said
