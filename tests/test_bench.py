"""The bench as a program: what it takes and refuses, a whole run, and its end."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers
from test_bench_fake_memtier import install

from benchmarks import __main__ as bench
from benchmarks import processes
from benchmarks.results import Results
from benchmarks.shapes import SHAPES, Measure

ROOT = Path(__file__).parent.parent


@pytest.fixture
def fake_memtier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@pytest.fixture
def run() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the bench."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=servers.PATIENCE)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The last line of what is said to these arguments."""
    with pytest.raises(SystemExit) as ended:
        bench.main([str(each) for each in arguments])
    if isinstance(ended.value.code, str):
        return ended.value.code
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# What it takes


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many", ""])
@pytest.mark.parametrize("name", ["--rounds", "--seconds"])
def test_numbers_are_above_zero(capsys: pytest.CaptureFixture[str], name: str, number: str) -> None:
    said = refusal(capsys, f"{name}={number}")
    assert said.endswith(f"argument {name}: {number} is no whole number above 0")


def test_names_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert "argument --shapes: no 60x1 in idle, 1x1" in refusal(capsys, "--shapes=50x1,60x1")
    assert "no squid in none" in refusal(capsys, "--contenders=memtunnel,squid")


def test_a_name_counts_once() -> None:
    chosen = bench.options(["--contenders=memtunnel,none,memtunnel", "--shapes=1x1"])
    assert chosen.contenders == ["memtunnel", "none"]
    assert chosen.shapes == ["1x1"]
    assert bench.options([]).shapes == [shape.name for shape in SHAPES]


@pytest.mark.parametrize("name", ["--json", "--svg"])
def test_files_can_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    for path in (tmp_path / "none" / "file", tmp_path):
        said = refusal(capsys, name, path)
        assert said.endswith(f"argument {name}: {path} cannot be written")


def test_results_that_are_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert f"No such file or directory: '{path}'" in refusal(capsys, "--from", path)
    path.write_text('{"rounds": []}')
    assert f"{path} does not hold a bench's results" in refusal(capsys, "--from", path)


def test_without_memtier_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    said = refusal(capsys, "--contenders=none")
    assert said.startswith("memtier_benchmark is not on PATH; it is to be had here: https://")


def test_what_cannot_be_drawn_is_said_before_it_is_measured(
    capsys: pytest.CaptureFixture[str], fake_memtier: None, tmp_path: Path
) -> None:
    said = refusal(capsys, "--contenders=none,memtunnel", "--svg", tmp_path / "bench.svg")
    assert said == "a picture needs the throughput of haproxy and of another contender"


def test_each_round_begins_with_another_one() -> None:
    rounds = ["".join(bench.rotated("abc", number)) for number in range(1, 5)]
    assert rounds == ["bca", "cab", "abc", "bca"]


# A whole run


def test_a_run(
    fake_memtier: None, run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    who = "--contenders=none,memtunnel"
    process = run("--rounds=1", "--seconds=1", "--shapes=1x1", who, f"--json={path}")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    results = Results.load(path)
    assert [each.void for each in results.rounds] == ["", ""]
    figures = {each.contender: each.figures[0] for each in results.rounds}
    own = {Measure.CPU, Measure.MEMORY}
    assert set(figures["none"]) == set(Measure) - own
    assert set(figures["memtunnel"]) == set(Measure)
    assert figures["none"][Measure.CONNECTIONS] == 1
    assert figures["memtunnel"][Measure.CONNECTIONS] == 2
    assert figures["memtunnel"][Measure.MEMORY] > 10 << 20
    assert re.search(r"^\| 1 client \| requests/s, more is better \| \*\*", out, re.MULTILINE)
    assert "1x1, round 1, memtunnel: requests/s " in err

    # And once more from what was saved.
    again = run("--from", path)
    assert again.communicate(timeout=60)[0] == out
    assert again.returncode == 0


def test_an_interrupt_keeps_the_results_and_leaves_no_process(
    fake_memtier: None, run: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    who = "--contenders=none,memtunnel"
    process = run("--rounds=99", "--seconds=1", "--shapes=1x1", who, f"--json={path}")
    assert process.stderr is not None
    for line in process.stderr:
        if "round 1, " in line:
            break
    family = servers.wait_until(lambda: with_memtier(process.pid), "the next load runs")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert len(Results.load(path).rounds) == 1
    assert "| 1 of 1 |" in out
    assert [pid for pid in family if Path(f"/proc/{pid}").exists()] == []


def test_a_child_that_nobody_knows_is_ended() -> None:
    program = """
import subprocess
from benchmarks.__main__ import no_child_left
with no_child_left():
    print(subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL).pid)
"""
    command = [sys.executable, "-c", program]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def with_memtier(root: int) -> list[int]:
    """A process and its children, once one of them is memtier."""
    family = processes.tree(root)
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family]
    return family if any(b"fake_memtier" in command for command in commands) else []
