"""Training logs, damaged: the doctor answers each soon and shortly."""

from hypothesis import strategies as st

from ..doctor.test_logs import BILINGUAL, COMMAND
from .doors import fuzz, only
from .test_settings import ODD, answers, damaged

TRACEBACK = 'Traceback (most recent call last):\n  File "train_network.py", line 3, in <module>\n    raise ValueError("x")\n'
PROGRESS = "".join(f"steps:  {step}%|##   | {step}/1600 [00:12<20:13,  1.31it/s, avr_loss=nan]\r" for step in range(100))
VALID = [
    f"{COMMAND}\n{PROGRESS}\n{TRACEBACK}{english} / {japanese}\n\x1b[31m{english}\x1b[0m"
    for english, japanese in list(BILINGUAL.values())[::5]
]
EDITS = st.tuples(
    st.sampled_from(["insert", "repeat", "cut", "end", "replace"]),
    st.floats(0, 1),
    st.integers(0, 300),
    st.sampled_from([*ODD, "Error: ", "\x1b]8;", "[0m", "│", "[rank0]:", " x.py:1\n", "accelerate launch ", TRACEBACK, PROGRESS]),
    st.sampled_from([1, 1, 2, 30, 1000, 20_000]),
)


@fuzz(st.builds(damaged, st.sampled_from(VALID), st.lists(EDITS, min_size=1, max_size=4)), share=2)
def test_logs(text):
    with only(seconds=6):
        answers(text)
