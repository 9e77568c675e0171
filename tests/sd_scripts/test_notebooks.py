"""Of a notebook the cell is read that starts the run, and what that printed."""

import json

import pytest

from sdnb import diagnose

COMMAND = "!accelerate launch train_network.py --network_module=networks.lora --lr_scheduler=constant --lr_warmup_steps=100"
FAILED = ["prepare tokenizer\n", "Traceback (most recent call last):\n", '  File "a.py", line 1\n', "KeyError: 'a'\n"]


def notebook(source, outputs=(), indent=None) -> str:
    cells = [{"cell_type": "markdown", "source": ["# A title"]}, {"cell_type": "code", "source": "print(1)", "outputs": []}]
    cells.append({"cell_type": "code", "source": source, "outputs": list(outputs)})
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4}, indent=indent)


@pytest.mark.parametrize("source", [COMMAND, [COMMAND], "import os\n" + COMMAND, "%%bash\n" + COMMAND[1:]])
@pytest.mark.parametrize("indent", [None, 1])
def test_the_command_of_a_cell(source, indent, tmp_path):
    text = notebook(source, indent=indent)
    (tmp_path / "a.ipynb").write_text(text)
    for diagnosis in (diagnose(text), diagnose(tmp_path / "a.ipynb")):
        assert [finding.rule for finding in diagnosis.findings if finding.effect == "raises"] == ["needless-warmup"]


def test_what_the_cell_printed():
    log = diagnose(notebook([COMMAND], [{"output_type": "stream", "text": FAILED}], 1))
    assert log.findings[0].what == "The run stopped with KeyError: 'a'" and log.settings.form == "command"
    error = {
        "output_type": "error",
        "traceback": ["\x1b[31mKeyError\x1b[0m   Traceback (most recent call last)", "\x1b[31mKeyError\x1b[0m: 'b'"],
    }
    assert diagnose(notebook("train()", [error])).findings[0].what == "The run stopped with KeyError: 'b'"


@pytest.mark.parametrize(
    "text", ['{"cells": 3}', '{"cells": [[]]}', '{"cells": [{"cell_type": "code", "outputs": 3}]}', '{"cells": ' + "[" * 99_000]
)
def test_what_is_no_notebook_is_answered_as_before(text):
    assert diagnose(text).findings[0].rule == "no-settings"
