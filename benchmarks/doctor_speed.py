"""How long the doctor takes: in a process of its own, beside an interpreter that does nothing, and for a text of 10 MB.

python -m benchmarks.doctor_speed

Takes less than a minute on two cores.
"""

import statistics
import subprocess
import sys
import time

from sdnb import diagnose

from .report import parser, show

FAMOUS = ["--optimizer_type=Adafactor", "--max_grad_norm=0", "--lr_scheduler=constant_with_warmup", "--lr_warmup_steps=100"]
LOG = "steps:   1%|▏ | 16/1600 [00:21<35:12,  1.33s/it, avr_loss=0.0912]\r" * 150_000 + "\nRuntimeError: CUDA out of memory.\n"


def seconds(*words: str) -> float:
    """The median of seven runs of a process."""
    runs = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, check=False)
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)


def once(text: str, repeat: int = 1) -> float:
    """Seconds of one diagnosis in this process, printed as a table."""
    start = time.perf_counter()
    for _ in range(repeat):
        str(diagnose(text))
    return (time.perf_counter() - start) / repeat


def main() -> None:
    options = parser(__doc__).parse_args()
    idle, doctor = seconds("-c", "pass"), seconds("-m", "sdnb", "doctor", *FAMOUS)
    once(" ".join(FAMOUS))  # its tables are read once
    rows = [
        {
            "measured": "sdnb doctor, in a process of its own",
            "seconds": f"{doctor:.2f}",
            "beside an idle interpreter": f"{doctor / idle:.1f}x",
        },
        {"measured": "one more diagnosis in the same process", "seconds": f"{once(' '.join(FAMOUS), 200):.4f}"},
        {"measured": f"a log of {len(LOG.encode()) / 1e6:.0f} MB", "seconds": f"{once(LOG):.2f}"},
    ]
    show(rows, options.json)


if __name__ == "__main__":
    main()
