"""The libraries still take every call that the course makes: those installed, and the oldest that pyproject allows.

What the oldest take was recorded by `python -m benchmarks.record_signatures`, which is to be run again for a call that is new.
"""

import json
import re
import tomllib
from importlib.metadata import version

import pytest

from .conftest import ROOT
from .tools import drift

RECORDED = json.loads((ROOT / "tests" / "recorded" / "signatures.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def uses():
    return drift.in_the_course(ROOT)


def misfits(uses, describe, versions):
    """One line for each call that a set of libraries does not take: where it is, the call, what is wrong, with which version."""
    lines = []
    for use in uses:
        library = use.path.partition(".")[0]
        try:
            wrong = drift.complaint(use, describe(use.path))
        except LookupError as error:
            wrong = str(error.args[0])
        if wrong:
            lines.append(f"{use.where}: {use.text}: in {library} {versions[library]}, {use.path} {wrong}")
    return lines


def installed(path):
    try:
        return drift.describe(path)
    except LookupError as error:
        raise LookupError(f"is missing ({error.args[0]})") from None


def oldest(path):
    if path not in RECORDED["signatures"]:
        raise LookupError("is not recorded: python -m benchmarks.record_signatures")
    if RECORDED["signatures"][path] == "missing":
        raise LookupError("is missing")
    return drift.read(RECORDED["signatures"][path])


def test_the_installed_libraries_take_every_call(uses):
    assert misfits(uses, installed, {library: version(library) for library in drift.LIBRARIES}) == []


def test_the_oldest_libraries_take_every_call(uses):
    """torch is left out: only the version that is installed was there to record."""
    asked = [use for use in uses if use.path.partition(".")[0] in RECORDED["versions"]]
    assert len(asked) > 200
    assert misfits(asked, oldest, RECORDED["versions"]) == []


def test_the_recorded_libraries_are_the_oldest_that_are_allowed():
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    floors = dict(re.match(r"([a-z]+)>=([\d.]+)", line).groups() for line in lines if line.partition(">")[0] in RECORDED["versions"])
    assert floors.keys() == RECORDED["versions"].keys() == set(drift.LIBRARIES) - {"torch"}
    for library, floor in floors.items():
        assert RECORDED["versions"][library].startswith(floor), library


def test_it_sees_what_the_notebooks_and_the_package_call(uses):
    """A sample of each kind, so that a gate that has gone blind is noticed."""
    seen = {(use.where.partition(",")[0], use.path): use for use in uses if use.positional is not None}
    step = seen["01_one_training_step.ipynb", "diffusers.UNet2DConditionModel.forward"]  # of what an annotation of sdnb's says
    assert (step.positional, step.keywords, step.bound) == (2, {"encoder_hidden_states"}, True)
    assert "lr" in seen["04_adafactor.ipynb", "torch.optim.Adafactor"].keywords
    assert seen["01_one_training_step.ipynb", "transformers.optimization.Adafactor"].keywords >= {"relative_step", "scale_parameter"}
    assert seen["08_your_pictures.ipynb", "diffusers.StableDiffusionPipeline.load_lora_weights"].bound
    assert "verbose" in seen["sdnb/models/prompts.py", "transformers.CLIPTokenizer.__call__"].keywords
    assert seen["sdnb/lora/adapters.py", "peft.LoraConfig"].keywords >= {"r", "lora_alpha", "target_modules"}
    assert seen["sdnb/system/processes.py", "accelerate.Accelerator"].keywords
    assert len({use.where for use in uses if ".ipynb" in use.where}) > 60


MADE_UP = {
    "torch.nn.Linear(4, 4, bia=False)": "torch.nn.Linear has no parameter bia",
    "torch.optim.AdamW([], 1e-3, learning_rate=1)": "torch.optim.AdamW has no parameter learning_rate",
    "torch.randn(2, generater=None)": "torch.randn has no parameter generater",
    "torch.utils.checkpoint.check_point": "torch.utils.checkpoint.check_point is missing",
    "from torch.optim import Adafaktor": "torch.optim.Adafaktor is missing",
    "F.mse_loss(torch.zeros(2))": "missing a required argument: 'target'",
    "sd.unet(x, t, context=1)": "diffusers.UNet2DConditionModel.forward has no parameter context",
    "sd.unet(*x, context=1)": "diffusers.UNet2DConditionModel.forward has no parameter context",
    "sd.unet(x, t, **{'context': 1})": "diffusers.UNet2DConditionModel.forward has no parameter context",
    "sd.unet.enable_checkpointing()": "diffusers.UNet2DConditionModel.enable_checkpointing is missing",
    "sd.unet.enable_gradient_checkpointing(1, 2)": "takes 1 arguments by position, not 2",
    "sd.text_encoder.encoders": "transformers.CLIPTextModel.encoders is missing",
    "sdnb.load('tiny').unet(x)": "missing a required argument: 'timestep'",
    "def twin(model: sdnb.StableDiffusion):\n    return copy.deepcopy(model).unet(x, t, context=1)": "has no parameter context",
    "(twin := copy.deepcopy(sd.unet).requires_grad_(True)).train(modus=1)": "has no parameter modus",
    "UNet.from_config({}, 2, 3)": "takes 2 arguments by position, not 3",
    "patch('torch.utils.checkpoint.chekpoint')": "torch.utils.checkpoint.chekpoint is missing",
    "[sd.unet(each) for each in x]": "missing a required argument: 'timestep'",
    "for p in sd.unet.parameters(): p.gradient": "torch.nn.parameter.Parameter.gradient is missing",
}
FIRST = (
    "import copy\nimport torch, sdnb\nimport torch.nn.functional as F\nfrom diffusers import UNet2DConditionModel as UNet\n"
    "from unittest.mock import patch\nsd, x, t = sdnb.load('tiny'), None, None\nif x:\n    sd = sdnb.load('sdxl')"
)


@pytest.mark.parametrize("call", MADE_UP)
def test_a_call_that_a_library_does_not_take_is_found(call):
    uses = drift.in_code([("made_up.ipynb, cell 1", FIRST), ("made_up.ipynb, cell 2", call)])
    lines = misfits(uses, installed, dict.fromkeys(drift.LIBRARIES, "9.9"))
    assert len(lines) == 1
    assert lines[0].startswith("made_up.ipynb, cell 2: ")
    assert MADE_UP[call] in lines[0]
    assert " 9.9, " in lines[0]


@pytest.mark.parametrize(
    "call",
    [
        "sd.unet(*x)",
        "sd.unet(x, **t)",
        "unet = sd.unet if x else sd.vae\nunet(context=1)",
        "if x:\n    part = sd.unet\nelse:\n    part = sd.vae\npart(x, t, context=1)",
        "torch.nn.Module.to(sd.unet, torch.bfloat16)",
        "def f(sd):\n    sd.unet(context=1)",
        "for sd in x:\n    sd.unet(context=1)",
        "(lambda sd: sd.unet(context=1))(x)",
        "sd.unet.config.anything",
        "torch.randn(2, 3, generator=x, dtype=torch.float16)",
    ],
)
def test_what_may_be_right_is_let_through(call):
    uses = drift.in_code([("made_up.ipynb, cell 1", FIRST), ("made_up.ipynb, cell 2", call)])
    assert misfits(uses, installed, dict.fromkeys(drift.LIBRARIES, "9.9")) == []


def test_a_signature_is_written_and_read_back():
    for path in ("torch.nn.Linear", "diffusers.UNet2DConditionModel.forward", "torch.optim.AdamW", "transformers.CLIPTokenizer.__call__"):
        words = drift.written(drift.describe(path))
        assert drift.written(drift.read(words)) == words
    assert drift.written(drift.read(["/a", "b", "c=", "*d", "-e", "-f=", "**g"])) == ["/a", "b", "c=", "*d", "-e", "-f=", "**g"]
    assert drift.read(None) is None
