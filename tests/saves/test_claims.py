"""One run at a time writes to a folder; a process that is killed leaves it free."""

import gc
import os
import subprocess
import sys

import pytest

import sdnb
from sdnb import Recipe, training
from sdnb.saves import folders
from sdnb.saves.claims import Claim, Claimed

from ..conftest import ROOT

fcntl = pytest.importorskip("fcntl")
QUICK = Recipe(train_batch_size=1, lr_scheduler="constant", lr_warmup_steps=0, learning_rate=1e-3, resolution=32)
HOLDER = "import sys, pathlib; from sdnb.saves.claims import Claim; one = Claim(pathlib.Path(sys.argv[1])); print(1, flush=True); input()"


def is_free(folder):
    """Whether another would get it: a second handle is as good as a second process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def test_a_second_process_is_refused_until_the_first_is_killed(fresh, ink, tmp_path, monkeypatch):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    (tmp_path / "step-00000009.partial").mkdir()  # which the other is writing
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with monkeypatch.context() as patched:
            patched.setattr(training, "Cache", lambda *args, **kwargs: pytest.fail("the pictures were encoded first"))
            with pytest.raises(Claimed, match=r"another run writes to .* at this moment: wait.*another folder for save_to"):
                sdnb.train(fresh, ink[:2], QUICK, steps=1, save_to=tmp_path)
        assert (tmp_path / "step-00000009.partial").exists()
        other.kill()
    assert [step.saved.name for step in sdnb.train(fresh, ink[:2], QUICK, steps=1, save_to=tmp_path)] == ["step-00000001"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_run_holds_its_folder_until_it_ends_is_closed_or_forgotten(fresh, ink, tmp_path):
    def run(**changes):
        return sdnb.train(fresh, ink[:2], QUICK.replace(**changes), steps=2, save_to=tmp_path)

    closed = run()
    assert not is_free(tmp_path)
    next(closed)
    closed.close()
    assert is_free(tmp_path)
    never_begun = run()
    assert not is_free(tmp_path)
    del never_begun
    gc.collect()
    assert is_free(tmp_path)
    list(run())
    assert is_free(tmp_path)
    with pytest.raises(ValueError, match="another run"):
        run(learning_rate=0.5)
    assert is_free(tmp_path)


def test_in_one_process_the_later_run_takes_over(fresh, ink, tmp_path):
    """A cell that was interrupted is run again, while its traceback holds the first run."""
    earlier, later = (sdnb.train(fresh, ink[:2], QUICK, steps=3, save_to=tmp_path, save_every=2) for _ in range(2))
    next(earlier)
    assert not is_free(tmp_path)
    with pytest.raises(RuntimeError, match="a later run of this process"):
        next(earlier)
    assert not is_free(tmp_path)  # it is the later one's
    assert len(list(later)) == 3
    assert folders.latest(tmp_path).steps == 3


def test_a_drive_without_locks_refuses_nothing(tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", broken)
    Claim(tmp_path).release()
