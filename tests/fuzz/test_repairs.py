"""Scripts around a command, damaged: what the doctor mends loses nothing that it does not name."""

import re

from hypothesis import strategies as st

from sdnb import diagnose

from ..doctor.test_repairs import POWERSHELL, SCRIPTS
from .doors import fuzz, only
from .test_settings import EDITS, VALID, damaged

CMD = """@echo off\r\nREM don't\r\nset "OUT=D:\\out\\"\r
accelerate launch train_db.py ^\r\n --output_dir="%OUT%" --seed=%1 --lr_warmup_steps=9\r\npause"""
SHELL = [
    *"$( ) ${ } ` ' \" # <# #> <<EOF \nEOF\n if then fi ( @( args=( REM :: ^ % %1 $1 { } ; | & > \\ ~ \r\n".split(" "),
    "\\\n",
    "`\n",
    "^\n",
]
INSERTS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(SHELL)), max_size=3)


def with_inserts(text, edits, inserts):
    for share, odd in inserts:
        place = int(share * len(text))
        text = text[:place] + odd + text[place:]
    return damaged(text, edits)


@fuzz(
    st.builds(with_inserts, st.sampled_from([*SCRIPTS.values(), POWERSHELL, CMD, *VALID[:5]]), st.lists(EDITS, max_size=1), INSERTS),
    share=3,
)
def test_scripts(text):
    with only(ValueError, seconds=6):
        diagnosis = diagnose(text)
        fixed = diagnosis.fixed_text()
        again = diagnose(fixed, script=diagnosis.settings.script)
        named = " ".join(diagnosis.changes())
        assert again.settings.prefix == (diagnosis.settings.repaired or diagnosis.settings).prefix
        for name, value in diagnosis.settings.given.items():
            kept = again.settings.given.get(name)
            assert repr(kept) == repr(value) or re.search(rf"\b{name}\b", named), (name, value, kept)
        assert sorted(again.settings.unread) == sorted(diagnosis.settings.unread) or diagnosis.settings.repaired
        if diagnosis.settings.form == "command" and not diagnosis.settings.repaired and fixed != diagnosis.settings.original:
            start, end = diagnosis.settings.span
            assert fixed.startswith(diagnosis.settings.original[:start])
            assert fixed.rstrip("\r\n").endswith(diagnosis.settings.original[end:].rstrip("\r\n"))
