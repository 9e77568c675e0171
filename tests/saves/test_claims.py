"""One run at a time writes to a folder; a process that is killed leaves it free."""

import errno
import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import sdnb
from sdnb import Recipe, training
from sdnb.saves import folders
from sdnb.saves.claims import LOCK, Claim, Claimed

from ..conftest import ROOT

fcntl = pytest.importorskip("fcntl")
QUICK = Recipe(train_batch_size=1, lr_scheduler="constant", lr_warmup_steps=0, learning_rate=1e-3, resolution=32)
HOLDER = "import sys, pathlib; from sdnb.saves.claims import Claim; one = Claim(pathlib.Path(sys.argv[1])); print(1, flush=True); input()"


def is_free(folder):
    """Whether another would get it: a second handle is as good as a second process."""
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
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
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "step-00000001"]


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


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK])
def test_a_drive_without_locks_refuses_nothing(number, tmp_path, monkeypatch):
    def broken(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", broken)
    earlier, later = Claim(tmp_path), Claim(tmp_path)
    assert earlier.is_lost and not later.is_lost
    later.release()
    later.release()


def test_where_the_file_cannot_be_opened_nothing_is_refused(tmp_path):
    (tmp_path / LOCK).mkdir()
    Claim(tmp_path).release()


FORKING = """
import gc, os, pathlib, sys
from sdnb.saves.claims import Claim
claim = Claim(pathlib.Path(sys.argv[1]))
if (child := os.fork()) == 0:
    claim.release()
    del claim
    gc.collect()
    sys.exit()
os.waitpid(child, 0)
print(1, flush=True)
input()
"""


def test_a_process_that_was_forked_off_ends_without_the_claim(tmp_path):
    command = [sys.executable, "-c", FORKING, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"1\n"
        assert not is_free(tmp_path)
        other.kill()
    assert is_free(tmp_path)


def test_the_folder_is_the_same_by_any_name(tmp_path):
    (tmp_path / "saves").mkdir()
    (tmp_path / "link").symlink_to("saves")
    earlier, later = Claim(tmp_path / "saves"), Claim(tmp_path / "link")
    assert earlier.is_lost
    earlier.release()
    assert not is_free(tmp_path / "saves")
    later.release()
    assert is_free(tmp_path / "saves")


def test_a_claim_that_is_made_in_one_thread_is_released_in_another(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        claim = pool.submit(Claim, tmp_path).result()
    assert not is_free(tmp_path)
    claim.release()
    assert is_free(tmp_path)
