"""What happens to a training from outside: killed, run twice, with a full disk, with leftovers of earlier kills."""

import csv
import errno
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import small_data

from regloss.errors import FailedWrite, ReglossError, UsageError
from regloss.hooks import manager
from regloss.registry import create
from regloss.training.config import parse
from regloss.training.loader import EpochOrder, TrainingLoader, TrainingSet
from regloss.training.output_lock import LOCK, OutputLock, check_idle
from regloss.training.proposals import ProposalStore
from regloss.training.sample_reader import SampleReader
from regloss.training.trainer import train
from regloss_plugins import tensorboard_log

HERE = Path(__file__).parent
LINUX = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")


def wait_until(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def logged_steps(folder):
    path = folder / "log" / "steps.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def descendants(pid):
    """Processes that ``pid`` started, directly or not."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, new = [], [pid]
    while new:
        new = [child for one in new for child in parents.get(one, [])]
        found += new
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- Ends --------------------------------------------------------------------------------------------------------------


def loaders():
    """Processes that came out of this one's fork server, which processes that it started share."""
    return [pid for pid in descendants(multiprocessing.forkserver._forkserver._forkserver_pid) if is_alive(pid)]


@LINUX
@pytest.mark.parametrize("kill", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_loader_processes_end_with_a_killed_training(kill, images, tmp_path):
    """And its fork server; and what --overwrite and --resume say while it lives, and do afterwards."""
    run = tmp_path / "run"
    table = small_data.settings(images, run, "data.workers=2", "training.epochs=1000", loop="gradient-descent")
    job = {"job": {"table": table, "moment": None, "countdown": 0}}
    context = multiprocessing.get_context("forkserver")
    training = context.Process(target=runpy.run_path, args=(str(HERE / "killed_training.py"), job, "job"))
    training.start()
    try:
        wait_until(lambda: logged_steps(run) > 1)
        for options in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(UsageError, match=rf"in use: process {training.pid} on .*, begun .* trains there"):
                train(parse(table), **options)
        with pytest.raises(UsageError, match="in use"):
            check_idle(run)
        wait_until(lambda: len(descendants(training.pid)) >= 3)  # server and loaders
        started = descendants(training.pid)
        os.kill(training.pid, kill)
        training.join(300)
        assert training.exitcode == -kill
        wait_until(lambda: not any(map(is_alive, started)))
    finally:
        training.kill()
        training.join()
    check_idle(run)
    train(parse(small_data.settings(images, run, "training.epochs=1", loop="gradient-descent")), overwrite=True)
    assert not (run / LOCK).exists()


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_a_killed_command(kill, devices, images, tmp_path):
    """Fork server and tracker, too, and the further processes of a training with their own loaders."""
    several = ("data.workers=1", f"training.devices={devices}", "training.threads=1", "training.batch-size=1")
    table = small_data.settings(images, tmp_path / "run", *several, "training.epochs=1000")
    config = tmp_path / "config.toml"
    config.write_text(small_data.toml(table))
    training = subprocess.Popen([sys.executable, "-m", "regloss_cli.main", "train", str(config), "--quiet"])
    try:
        wait_until(lambda: logged_steps(tmp_path / "run") > 1 and len(descendants(training.pid)) >= 3 * devices)
        started = descendants(training.pid)
        training.send_signal(kill)
        assert training.wait(60) != 0
        wait_until(lambda: not any(map(is_alive, started)))
        check_idle(tmp_path / "run")
    finally:
        training.kill()
        training.wait()


def batches(images, tmp_path, workers, generation=-1):
    parsed = parse(small_data.settings(images, tmp_path / "run", loop="gradient-descent"))
    source = create("dataset", "folder", **parsed.data.component_settings())
    store = ProposalStore(tmp_path / "none")
    made = TrainingSet(SampleReader(source), source.ids("train"), parsed.data, 0, store)
    return TrainingLoader(made, EpochOrder(6, 1, 0), workers).batches(0, generation)


def idle(pid):
    """Whether a process has done nothing for half a second."""
    found = set()
    for _ in range(6):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found.add((fields[0], fields[11], fields[12]))  # state, and time in user and kernel mode
        time.sleep(0.1)
    return len(found) == 1 and found.pop()[0] == "S"


@LINUX
@pytest.mark.parametrize("sent", [False, True], ids=["at work", "its batches sent"])
def test_a_killed_loader_process_is_said(sent, images, tmp_path):
    """Nothing of it can be had, neither what it was at nor batches that it has sent but nobody has received."""
    multiprocessing.forkserver.ensure_running()
    before = set(loaders())
    found = batches(images, tmp_path, 1)
    next(found)
    (loader,) = set(loaders()) - before
    if sent:
        wait_until(lambda: idle(loader))
    os.kill(loader, signal.SIGKILL)
    with pytest.raises(ReglossError, match=r"^A process that loads images was killed.*Lower data.workers.*--resume\.$"):
        list(found)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), ConnectionRefusedError(), EOFError()]
)
def test_a_killed_loader_process_that_is_not_reaped_yet_is_said(images, tmp_path, monkeypatch, error):
    """The fork server may be slow to notice, and the connection is broken already."""

    class Broken:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __iter__(self):
            raise error
            yield

    monkeypatch.setattr("regloss.training.loader.DataLoader", Broken)
    with pytest.raises(ReglossError, match=r"^A process that loads images was killed.*--resume\.$"):
        list(batches(images, tmp_path, 1))


def test_an_error_of_the_data_set_is_the_same_from_a_loader_process(images, tmp_path):
    """One sentence, not a traceback of another process."""
    for workers in (0, 1):
        with pytest.raises(ReglossError, match=r"^The proposals of .*generation-0000 are not complete\.$"):
            list(batches(images, tmp_path, workers, generation=0))


# -- The lock ----------------------------------------------------------------------------------------------------------


def test_the_lock_excludes_and_is_released(tmp_path):
    told = []
    with OutputLock(tmp_path, told.append) as first:
        first.acquire()
        first.acquire()
        with OutputLock(tmp_path, told.append) as second, pytest.raises(UsageError, match=f"process {os.getpid()} on"):
            second.acquire()
        assert (tmp_path / LOCK).exists()
    assert not (tmp_path / LOCK).exists()
    with OutputLock(tmp_path, told.append) as third:
        third.acquire()
    assert told == []


def test_nothing_is_made_where_there_is_no_folder(tmp_path):
    with OutputLock(tmp_path / "absent", print) as lock:
        lock.acquire()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_of_its_lock_means_nothing(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).write_text('[1, "elsewhere", "long ago"]')
    train(config("training.epochs=1"))
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_file_system_without_locks_is_said(config, tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("regloss.training.output_lock._take", refuse)
    told = []
    train(config("training.epochs=1"), callback=told.append)
    assert "Nothing keeps another training out of" in told[0]


def test_two_that_begin_at_once(config, tmp_path, monkeypatch):
    """The second has seen no folder before the first made it."""
    from regloss.training import trainer

    prepare = trainer.prepare_output

    def late(folder, *arguments, **options):
        folder.mkdir()
        with OutputLock(folder, print) as other:
            other.acquire()
            prepare(folder, *arguments, **options)

    monkeypatch.setattr(trainer, "prepare_output", late)
    with pytest.raises(UsageError, match="is in use"):
        train(config("training.epochs=1"))
    assert list((tmp_path / "run").iterdir()) == []


# -- Full disks --------------------------------------------------------------------------------------------------------


@contextmanager
def files_end_at(size):
    """As on a disk that is full: writing more than ``size`` bytes to a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def model_of(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def straight(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    manager().unregister(name="regloss:tensorboard")
    train(parse(small_data.settings(images, folder, "training.epochs=2")))
    return folder


@pytest.mark.parametrize("file", ["config.json", "network.safetensors", "optimizer.safetensors"])
def test_a_full_disk_is_one_message_and_the_run_goes_on(file, straight, config, tmp_path):
    """Whatever is smaller is written first."""
    parsed, run = config("training.epochs=2"), tmp_path / "run"
    size = next(straight.rglob(file)).stat().st_size - 1
    kind, named, way_out = FailedWrite, "checkpoints/00000003", "go on with --resume"
    if file == "config.json":  # as where no folder can be made
        size, kind, named, way_out = 200, UsageError, "run", ""
    words = rf"{named} cannot be written: .*(File too large|os error 27).*{way_out}"
    with files_end_at(size), pytest.raises(kind, match=words):
        train(parsed)
    assert list(run.rglob(".*")) == []
    train(parsed, resume=True)
    assert model_of(run) == model_of(straight)


@pytest.mark.parametrize("failing", ["log", "proposal", "picture"])
def test_whatever_cannot_be_written_is_named(failing, straight, config, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if failing == "log":
            patch.setattr(csv.DictWriter, "writerow", fail)
        elif failing == "proposal":
            patch.setattr("regloss.training.proposals.Image.Image.save", fail)
        else:
            patch.setattr("regloss.training.trainer.evaluate_samples", fail)
        expected = {
            "log": r"log/steps\.csv",
            "proposal": r"generation-0000/i\d\.png",
            "picture": "The training stopped",
        }
        with pytest.raises(FailedWrite, match=expected[failing] + ".*No space left on device.*--resume"):
            train(config("training.epochs=2"))
    train(config("training.epochs=2"), resume=True)
    assert model_of(tmp_path / "run") == model_of(straight)


# -- Leftovers ---------------------------------------------------------------------------------------------------------


def test_leftovers_of_killed_runs_are_swept_by_the_next(straight, config, tmp_path):
    train(config("training.epochs=1"))
    run = tmp_path / "run"
    names = [
        ".config.json.11",
        ".model.safetensors.12",
        "log/.steps.csv.13",
        "proposals/generation-0000/.i0.png.14",
        "checkpoints/.00000005.15/network.safetensors",
        "checkpoints/00000001/network.safetensors",  # half removed
        "modules/.encoder.safetensors.16",
        "report/.loss.png.17",
    ]
    for name in names:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("half")
    train(config("training.epochs=1"), resume=True)
    assert [name for name in names if (run / name).exists()] == []
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["00000003"]
    (run / names[0]).write_text("half")
    train(config("training.epochs=2"), overwrite=True)
    assert not (run / names[0]).exists()
    assert model_of(run) == model_of(straight)


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def test_curves_are_closed_with_their_run(config, tmp_path):
    pytest.importorskip("tensorboard")
    manager().register(tensorboard_log, name="regloss:tensorboard")
    try:
        for _ in range(2):  # in one process, into one folder
            train(config("training.epochs=1"), overwrite=True)
            assert tensorboard_log._writers == {}
            assert len(list((tmp_path / "run" / "log" / "tensorboard").iterdir())) == 1
        with pytest.raises(ReglossError):
            train(config("training.epochs=1", "training.optimizer.lr=1e30"), overwrite=True)
        assert tensorboard_log._writers == {}
    finally:
        manager().unregister(name="regloss:tensorboard")
