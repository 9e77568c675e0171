"""What the fuzzers share.

Each runs a few seconds in the suite, always with the same inputs. `make fuzz` gives each more of them, and others each time: `FUZZ` is the
number of inputs for each fuzzer. A file named by `FUZZ_REPORT` gets a line for each fuzzer, its name and its number of inputs.
"""

import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis

INPUTS = int(os.environ.get("FUZZ", "40"))
SUPPRESSED = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large, hypothesis.HealthCheck.function_scoped_fixture]


def fuzz(*strategies, share: float = 1.0, **named):
    """Run a test on `INPUTS` times `share` inputs drawn from `strategies`; 0.1 for one that takes ten times as long as others."""
    settings = hypothesis.settings(
        max_examples=max(1, round(INPUTS * share)),
        deadline=None,
        derandomize="FUZZ" not in os.environ,
        database=None,
        suppress_health_check=SUPPRESSED,
    )

    def decorate(test):
        count = 0

        @functools.wraps(test)
        def counted(*args, **kwargs):
            nonlocal count
            count += 1
            return test(*args, **kwargs)

        given = settings(hypothesis.given(*strategies, **named)(counted))

        @functools.wraps(given)
        def reported(*args, **kwargs):
            try:
                return given(*args, **kwargs)
            finally:
                if "FUZZ_REPORT" in os.environ:
                    with open(os.environ["FUZZ_REPORT"], "a") as report:
                        report.write(f"{test.__module__.rpartition('.')[2]}.{test.__name__} {count}\n")

        return reported

    return decorate


@contextmanager
def only(*promised: type[BaseException], seconds: float = 2.0) -> Iterator[None]:
    """Hold that a block raises nothing but `promised` errors, each with a message, and takes at most so many `seconds` of the processor."""
    began = time.process_time()
    try:
        yield
    except promised as error:
        assert str(error).strip(), f"{type(error).__name__} without a message"
    took = time.process_time() - began
    assert took <= seconds, f"{took:.1f} s of the processor, at most {seconds} are promised"
