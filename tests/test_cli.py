"""The command line with fakes in place of the pipelines: flags, messages, exit codes."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from omokage.cli import app as cli
from omokage.cli.progress import ProgressBar
from omokage.config import Progress
from omokage.errors import (
    CaptureRefusedError,
    InternalError,
    MemoryShortageError,
    MissingDependencyError,
    NoFaceError,
    OutputError,
)

# Every command and flag. Whoever changes one changes it here, in README and in CHANGELOG.
FLAGS = {
    "": ["--debug", "--help", "--version", "-h"],
    "animate": [
        "--any-face", "--compile", "--device", "--guidance", "--guidance-interval", "--help", "--label", "--lora",
        "--memory", "--no-resume", "--output", "--plan", "--prompt", "--purpose", "--quiet", "--resume", "--reuse",
        "--seed", "--separator", "--steps", "--weights", "-h", "-o", "PORTRAIT", "SPEECH",
    ],
    "animate-queue": [
        "--any-face", "--compile", "--device", "--guidance", "--guidance-interval", "--help", "--label", "--lora",
        "--memory", "--no-resume", "--output", "--prompt", "--purpose", "--quiet", "--ray", "--resume", "--reuse",
        "--seed", "--separator", "--steps", "--weights", "-h", "-o", "JOBS",
    ],
    "audit": ["--help", "-h"],
    "audit export": ["--help", "--output", "--personal", "-h", "-o"],
    "audit show": ["--help", "--json", "--last", "-h"],
    "audit verify": ["--against", "--help", "--json", "--quiet", "-h", "[LOG]"],
    "bench": ["--help", "--json", "--quiet", "--size", "-h"],
    "check": ["--help", "--json", "--output", "--quiet", "-h", "-o", "RECORDING"],
    "create": [
        "--batch", "--compile", "--evaluate", "--force", "--help", "--keep-training", "--label", "--minutes",
        "--no-evaluate", "--no-resume", "--no-speech", "--output", "--perceptual", "--precision", "--preset", "--quiet",
        "--resume", "--seed", "--size", "--speech", "--start", "-h", "-o", "VIDEO",
    ],
    "demo": ["--help", "--minutes", "--output", "--quiet", "-h", "-o"],
    "evaluate": [
        "--help", "--json", "--output", "--quiet", "--recording", "--speech", "--window-frames", "-h", "-o", "AVATAR",
    ],
    "reenact": [
        "--background", "--blink", "--expression-strength", "--gaze", "--help", "--label", "--mouth-only", "--output",
        "--purpose",
        "--pose-strength", "--quiet", "--runtime", "-h", "-o", "AVATAR", "DRIVER",
    ],
    "learn-speech": ["--help", "--no-resume", "--quiet", "--resume", "-h", "AVATAR", "RECORDING"],
    "speak": [
        "--audio", "--background", "--blinks", "--channels", "--cues", "--curves", "--driver", "--energy", "--gaze",
        "--head", "--help", "--label", "--live", "--microphone", "--mood", "--output", "--purpose", "--quiet",
        "--rate", "--runtime", "--seed", "--text", "--voice", "--write-curves", "-h", "-o", "AVATAR",
    ],
    "consent": ["--help", "-h"],
    "consent new": [
        "--agreed", "--answer", "--channel", "--heard", "--help", "--language", "--me", "--no-voice", "--nobody",
        "--output", "--paper", "--purpose", "--to", "--until", "--uses", "--witness", "-h", "-o", "MEDIA...",
    ],
    "consent challenge": ["--help", "-h"],
    "consent list": ["--help", "--json", "-h"],
    "consent show": ["--help", "--json", "-h", "RECORD"],
    "consent verify": ["--channel", "--help", "--language", "--purpose", "-h", "RECORD", "MEDIA"],
    "consent revoke": ["--help", "--reason", "-h", "RECORD"],
    "consent export": ["--help", "--output", "-h", "-o"],
    "consent import": ["--help", "--trust", "-h", "PATH"],
    "consent key": ["--help", "-h"],
    "identity": ["--help", "-h"],
    "identity show": ["--help", "-h"],
    "identity new": ["--help", "--organization", "-h"],
    "identity export": ["--help", "--output", "-h", "-o"],
    "identity trust": ["--help", "-h", "ROOT"],
    "identity external": ["--help", "-h", "CHAIN", "PROGRAM...", "ROOT"],
    "identity stamps": ["--help", "-h", "[AUTHORITY]"],
    "labels": ["--help", "-h"],
    "licences": ["--bill", "--help", "--json", "-h", "[COMMAND]"],
    "voices": ["--help", "-h"],
    "import": ["--help", "-h"],
    "import styleavatar": ["--help", "--keep-training", "--output", "--quiet", "-h", "-o", "CHECKPOINT"],
    "import avatar": ["--help", "--output", "--passphrase-file", "-h", "-o", "SOURCE"],
    "export": ["--help", "--output", "--passphrase-file", "--plain", "-h", "-o", "AVATAR"],
    "rehearse": ["--help", "--output", "--quiet", "--seconds", "-h", "-o", "PHOTO"],
    "train-portrait": [
        "--batch", "--device", "--help", "--lora", "--minutes", "--output", "--preset", "--quiet", "--seed", "--shards",
        "--stage", "--steps", "--weights", "-h", "-o", "VIDEOS",
    ],
    "verify": ["--help", "--json", "--key", "--quiet", "-h", "FILE_OR_FOLDER"],
    "weights": ["--help", "-h"],
    "weights add": ["--help", "--quiet", "-h", "NAME", "FOLDER"],
    "weights list": ["--help", "--json", "--quiet", "--verify", "-h"],
    "weights pull": ["--accept-licence", "--from", "--help", "--quiet", "--timeout", "-h", "NAME"],
    "weights remove": ["--help", "-h", "NAME"],
}  # fmt: skip


@dataclass
class Config:
    """A stand-in for a pipeline's configuration: remembers what it was given."""

    values: dict[str, Any]

    def __init__(self, **values: Any) -> None:
        self.values = values


class Calls:
    """Fake pipelines: remembers how they were called, and lets a test decide what they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arguments: tuple[Any, ...] = ()
        self.keywords: dict[str, Any] = {}
        self.result: Any = None
        self.act: Callable[[], None] = lambda: None
        names = {
            "check": "check", "create": "create_avatar", "reenact": "reenact", "evaluate": "evaluate_avatar",
            "rehearse": "rehearse", "bench": "bench", "demo": "demo", "animate": "animate",
            "animate_queue": "animate_queue", "train_portrait": "train_portrait", "speak": "speak",
            "learn_speech": "learn_speech",
        }  # fmt: skip
        for module_name, function in names.items():
            module = ModuleType(f"omokage.pipelines.{module_name}")
            setattr(module, function, self)
            module.CreateConfig = module.ReenactConfig = module.SpeakConfig = Config  # type: ignore[attr-defined]
            module.TrainConfig = module.LearnSpeechConfig = Config  # type: ignore[attr-defined]
            module.AnimateConfig, module.plan = Config, self.plan  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.arguments, self.keywords = arguments, keywords
        keywords["on_progress"](Progress("working", 1, 2))
        self.act()
        return self.result

    def plan(self, *arguments: Any, **keywords: Any) -> Any:
        self.arguments, self.keywords = arguments, keywords
        return SimpleNamespace(to_text=lambda: "hours and gigabytes")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def run(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.run(line.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_flags_are_frozen() -> None:
    commands = {"": cli.app, **cli.app.commands}
    groups = [name for name, command in commands.items() if name and isinstance(command, cli.click.Group)]
    commands |= {f"{group} {name}": c for group in groups for name, c in commands[group].commands.items()}
    found = {}
    for name, command in commands.items():
        parameters = command.get_params(cli.click.Context(command))
        shown = [
            p.make_metavar(cli.click.Context(command)) for p in parameters if p.param_type_name == "argument"
        ]
        options = [o for p in parameters for o in p.opts + p.secondary_opts if p.param_type_name == "option"]
        found[name] = {*options, *shown, "-h", "--help"}
    assert found == {name: set(flags) for name, flags in FLAGS.items()}


HELP = """
import contextlib, io, json, sys
from omokage.cli.app import run
def helped(command):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = run([*command.split(), "--help"])
    return code, said.getvalue(), sorted(sys.modules)
print(json.dumps({command: helped(command) for command in sys.argv[1:]}))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str, list[str]]]:
    """What every command's help gives in a Python of its own, one after the other, and what is loaded after it."""
    command = [sys.executable, "-c", HELP, *FLAGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("command", FLAGS)
def test_help_needs_nothing_heavy(command: str, helps: dict[str, tuple[int, str, list[str]]]) -> None:
    code, said, loaded = helps[command]
    assert code == 0 and said.startswith(f"Usage: {' '.join(['omokage', *command.split()])}")
    heavy = {"torch", "cv2", "mediapipe", "av", "numpy", "scipy", "numba", "onnxruntime"}
    assert not heavy & set(loaded)


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("", capsys)
    assert (code, err) == (0, "") and out.startswith("Usage: omokage") and "rehearse" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from omokage import __version__

    assert run("--version", capsys) == (0, f"omokage {__version__}\n", "")


def test_check(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.result = SimpleNamespace(
        verdict="good", to_text=lambda: "all is well", to_json=lambda: {"verdict": "good"}
    )
    assert run("check me.mp4 --quiet", capsys) == (0, "all is well\n", "")
    assert calls.arguments == (Path("me.mp4"),)
    assert calls.keywords["output"] is None
    assert run("check me.mp4 -o sheets --quiet", capsys)[1].endswith(
        "\ncontact sheet: sheets/contact-sheet.png\n"
    )
    code, out, _ = run("check me.mp4 --json -o sheets", capsys)
    assert (code, json.loads(out)) == (0, {"verdict": "good"})
    assert calls.keywords["output"] == Path("sheets")
    calls.result.verdict = "refuse"
    assert run("check me.mp4 --quiet", capsys)[0] == 2


def test_create(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    said = "avatar: here/me.avatar\nreport: here/me-report/report.html\n"
    assert run("create me.mp4 -o here/me.avatar --quiet", capsys) == (0, said, "")
    assert run("create me.mp4 -o me.avatar --quiet --no-evaluate", capsys)[1] == "avatar: me.avatar\n"
    assert run("create me.mp4 -o me.avatar --quiet", capsys)[0] == 0
    assert calls.arguments == (Path("me.mp4"),)
    assert calls.keywords["output"] == Path("me.avatar")
    defaults = {
        "minutes": 10.0,
        "size": 256,
        "seed": 0,
        "force": False,
        "evaluate": True,
        "resume": True,
        "speech": True,
        "label": None,
    }
    assert calls.keywords["config"].values == defaults
    run(
        "create a -o b --minutes 1 --size 128 --seed 7 --force --no-evaluate --no-resume --no-speech --label hi",
        capsys,
    )
    assert calls.keywords["config"].values == {
        "minutes": 1.0,
        "size": 128,
        "seed": 7,
        "force": True,
        "evaluate": False,
        "resume": False,
        "speech": False,
        "label": "hi",
    }


def test_create_at_the_papers_scale(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from omokage.pipelines import create_paper as pipeline

    given: dict[str, Any] = {}

    def create(source: Path, **keywords: Any) -> Any:
        given.update(keywords, source=source)
        keywords["on_progress"](Progress("plan", 1, 1, "hours"))
        return SimpleNamespace(to_text=lambda: "known")

    monkeypatch.setattr(pipeline, "create_paper_avatar", create)
    said = "avatar: me.avatar\nknown\n"
    assert run("create me -o me.avatar --quiet --preset paper", capsys) == (0, said, "")
    assert run("create me -o me.avatar --preset paper", capsys) == (0, said, "plan: hours\n")
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "1")  # as torchrun does
        assert run("create me -o me.avatar --preset paper", capsys) == (0, "", "")
    config = given["config"]
    assert given["source"] == Path("me") and config == pipeline.PaperCreateConfig()
    options = (
        "--minutes 60 --seed 3 --batch 6 --precision bf16 --compile --start all.avatar --perceptual vgg.pth"
    )
    assert (
        run(f"create me -o me.avatar --quiet --preset paper --keep-training --force {options}", capsys)[0]
        == 0
    )
    config, training = given["config"], given["config"].training
    assert (training.minutes, training.seed, training.batch, training.micro_batch) == (60.0, 3, 6, 3)
    assert (training.precision, training.compiled, config.force, config.keep_training) == (
        "bf16",
        True,
        True,
        True,
    )
    assert training.channels_last  # as the matrix units of 16 bits read features
    assert (config.start, config.perceptual) == (Path("all.avatar"), Path("vgg.pth"))
    code, _, err = run("create me.mp4 -o me.avatar --compile", capsys)
    assert code == 2 and "--compile is an option of the paper's networks; add --preset paper" in err


def test_reenact(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.result = SimpleNamespace(warnings=("yaw was limited",))
    code, out, err = run("reenact me.avatar d.mp4 -o out.mp4 --quiet", capsys)
    assert (code, out, err) == (0, "video: out.mp4\n", "note: yaw was limited\n")
    assert calls.arguments == (Path("me.avatar"), Path("d.mp4"))
    assert calls.keywords["config"].values == {
        "expression_strength": 1.0, "pose_strength": 1.0, "mouth_only": False, "gaze": "driver", "blink": 1.0,
        "background": "own", "label": None, "runtime": "auto", "purpose": None,
    }  # fmt: skip
    run("reenact a b -o c --gaze camera --blink 0 --background #00ff00 --mouth-only --runtime torch", capsys)
    values = calls.keywords["config"].values
    assert (values["gaze"], values["blink"], values["background"]) == ("camera", 0, "#00ff00")
    assert (values["mouth_only"], values["runtime"]) == (True, "torch")


def test_speak(calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    calls.result = SimpleNamespace(warnings=("no speech was found",))
    code, out, err = run("speak me.avatar --audio a.wav -o out.mp4 --quiet", capsys)
    assert (code, out, err) == (0, "video: out.mp4\n", "note: no speech was found\n")
    assert calls.arguments == (Path("me.avatar"),)
    asked = {name: calls.keywords[name] for name in ("audio", "text", "voice", "curves", "curves_output")}
    assert asked == {
        "audio": Path("a.wav"),
        "text": None,
        "voice": "en-us",
        "curves": None,
        "curves_output": None,
    }
    assert calls.keywords["config"].values == {
        "mood": "neutral", "energy": 1.0, "head": 1.0, "blinks_per_minute": 14.0, "gaze": "free", "seed": 0,
        "background": "own", "label": None, "runtime": "auto", "purpose": None, "driver": "auto",
    }  # fmt: skip
    assert calls.keywords["cues"] is None
    script = tmp_path / "script.txt"
    script.write_text("hello there", encoding="utf-8")
    run(
        f"speak a --text @{script} -o c --voice ja --mood friendly --write-curves c.csv --cues q.json", capsys
    )
    assert (calls.keywords["text"], calls.keywords["voice"]) == ("hello there", "ja")
    assert (calls.keywords["curves_output"], calls.keywords["cues"]) == (Path("c.csv"), Path("q.json"))
    code, _, err = run("speak a --text hi -o c.mp4 --write-curves c.mp4", capsys)
    assert (code, len(err.splitlines())) == (3, 1)


def test_learn_speech(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.result = SimpleNamespace(sentences=("this person's own way of speaking was learned",))
    code, out, err = run("learn-speech me.avatar me.mp4 --no-resume --quiet", capsys)
    said = "this person's own way of speaking was learned\navatar: me.avatar\n"
    assert (code, out, err) == (0, said, "")
    assert calls.arguments == (Path("me.avatar"), Path("me.mp4"))
    assert calls.keywords["config"].values == {"resume": False}


def test_animate(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.result = SimpleNamespace(notes=("the speech is silent",))
    code, out, err = run("animate p.jpg s.wav -o out.mp4 --quiet", capsys)
    assert (code, out, err) == (0, "video: out.mp4\n", "note: the speech is silent\n")
    assert calls.arguments == (Path("p.jpg"), Path("s.wav"))
    assert calls.keywords["output"] == Path("out.mp4")
    assert calls.keywords["config"].values == {
        "prompt": "a person talks to the camera", "seed": 0, "steps": 50, "guidance": 3.5, "any_face": False,
        "label": None, "purpose": None, "device": "auto", "resume": True, "weights": None, "lora": None,
        "memory": "auto",
        "guidance_interval": (0.0, 1.0), "reuse": 0.0, "compile": False, "separator": None,
    }  # fmt: skip
    run(
        "animate p s -o o --memory grouped --guidance-interval 0.2 0.8 --reuse 0.1 --compile --separator quiet",
        capsys,
    )
    values = calls.keywords["config"].values
    assert values["compile"] and values["separator"] == "quiet"
    assert (values["memory"], values["guidance_interval"], values["reuse"]) == ("grouped", (0.2, 0.8), 0.1)
    run(
        "animate p s -o o --prompt sea --seed 7 --steps 20 --guidance 1 --any-face --device cpu --no-resume",
        capsys,
    )
    values = calls.keywords["config"].values
    assert (values["prompt"], values["seed"], values["steps"], values["guidance"]) == ("sea", 7, 20, 1)
    assert (values["any_face"], values["device"], values["resume"]) == (True, "cpu", False)


def test_animate_queue(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.result = SimpleNamespace(to_text=lambda: "a.mp4 done", exit_code=0)
    assert run("animate-queue jobs.csv -o videos --quiet", capsys) == (0, "a.mp4 done\n", "")
    assert calls.arguments == (Path("jobs.csv"),)
    assert (calls.keywords["output"], calls.keywords["ray"]) == (Path("videos"), None)
    calls.result.exit_code = 2
    assert (
        run("animate-queue jobs.csv -o videos --quiet --ray local --steps 20 --memory grouped", capsys)[0]
        == 2
    )
    assert calls.keywords["ray"] == "local"
    values = calls.keywords["config"].values
    assert (values["steps"], values["memory"], "ray" in values) == (20, "grouped", False)


def test_only_the_first_process_speaks(
    calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    calls.result = SimpleNamespace(notes=("the speech is silent",))
    assert run("animate p.jpg s.wav -o out.mp4 --quiet", capsys) == (0, "", "")
    assert run("animate p.jpg s.wav --plan", capsys) == (0, "", "")
    calls.act = fail(NoFaceError("no face"))
    assert run("animate p.jpg s.wav -o out.mp4 --quiet", capsys) == (2, "", "")
    calls.act = fail(MemoryShortageError("memory ran out in process 2 of 2"))  # of this process alone
    assert run("animate p.jpg s.wav -o out.mp4 --quiet", capsys)[2].startswith("omokage: memory ran out")


def test_memory_profiles_are_those_of_the_library() -> None:
    from omokage.cli.animate import PROFILES
    from omokage.talking.placement import profiles

    assert ("auto", *(profile.name for profile in profiles())) == PROFILES


def test_train_portrait(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    clip, good = (
        SimpleNamespace(name="a.mp4", skipped="it shows 2 faces"),
        SimpleNamespace(name="b.mp4", skipped=""),
    )
    data = SimpleNamespace(records=(clip, good))
    calls.result = SimpleNamespace(path=Path("out"), data=data, notes=("nobody has a face",))
    code, out, err = run("train-portrait clips -o out --stage 2 --preset tiny --lora --quiet", capsys)
    assert (code, out) == (0, "model: out\nuse it with: omokage animate --weights out ...\n")
    assert err == "note: a.mp4 was left out: it shows 2 faces\nnote: nobody has a face\n"
    assert calls.arguments == (Path("clips"),) and calls.keywords["output"] == Path("out")
    assert calls.keywords["config"].values == {
        "stage": 2, "preset": "tiny", "weights": None, "lora": 16, "steps": None, "minutes": None, "batch": None,
        "seed": 0, "shards": None, "device": "auto",
    }  # fmt: skip
    run("train-portrait a -o b --lora 4 --weights w --steps 3 --minutes 2 --batch 8 --shards s", capsys)
    values = calls.keywords["config"].values
    assert (values["lora"], values["stage"], values["preset"]) == (4, 1, "official")
    assert (values["steps"], values["minutes"], values["batch"]) == (3, 2, 8)
    assert (values["weights"], values["shards"]) == (Path("w"), Path("s"))


def test_a_plan_needs_no_output(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("animate p.jpg s.wav --plan", capsys) == (0, "hours and gigabytes\n", "")
    assert "output" not in calls.keywords
    code, _, err = run("animate p.jpg s.wav", capsys)
    assert (code, err) == (2, "omokage: Missing option '-o' / '--output' (see 'omokage animate --help')\n")


def test_evaluate_rehearse_bench_demo(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.result = SimpleNamespace(
        to_text=lambda: "numbers",
        to_json=dict,
        files=(Path("demo-output/report.html"), Path("x.mp4")),
    )
    folder = Path("here/me-report")
    assert run("evaluate here/me.avatar --quiet", capsys) == (
        0,
        f"numbers\nreport: {folder}/report.html\n",
        "",
    )
    assert calls.keywords["output"] == folder
    assert run("evaluate me.avatar --quiet --json --recording me.mp4", capsys) == (0, "{}\n", "")
    assert calls.keywords["recording"] == Path("me.mp4")
    assert run("rehearse p.jpg -o c.mp4 --seconds 12 --quiet", capsys) == (0, "video: c.mp4\n", "")
    assert calls.keywords["seconds"] == 12
    assert run("bench --quiet --size 512", capsys) == (0, "numbers\n", "")
    assert calls.keywords["size"] == 512
    code, out, _ = run("demo --quiet", capsys)
    assert (code, out) == (0, "Open these files:\n  demo-output/report.html\n  x.mp4\n")
    assert (calls.arguments, calls.keywords["minutes"]) == ((Path("demo-output"),), 3.0)


def fail(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NoFaceError("no face in me.mp4; record again"), 2, "no face in me.mp4; record again"),
        (CaptureRefusedError("hopeless"), 2, "hopeless"),
        (OutputError("no room"), 3, "no room"),
        (MissingDependencyError("pip install it"), 4, "pip install it"),
        (InternalError("broken promise"), 70, "broken promise"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x"),
            3,
            "the disk is full; make room and run the same",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "locked/x"),
            3,
            "cannot use locked/x: Permission denied",
        ),
        (MemoryError(), 71, "ran out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 71, "ran out of memory"),
        (
            ZeroDivisionError("float division\nby zero"),
            70,
            "unexpected error (ZeroDivisionError: float division)",
        ),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(
    calls: Calls, capsys: pytest.CaptureFixture[str], error: Exception, code: int, message: str
) -> None:
    calls.act = fail(error)
    got, out, err = run("create me.mp4 -o me.avatar --quiet", capsys)
    assert (got, out) == (code, "")
    assert err.startswith("omokage: ")
    assert message in err
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(calls: Calls, capsys: pytest.CaptureFixture[str], caplog: Any) -> None:
    calls.act = fail(ZeroDivisionError("here"))
    assert run("--debug bench --quiet", capsys)[0] == 70
    assert "Traceback" in caplog.text
    caplog.clear()
    assert run("bench --quiet", capsys)[0] == 70
    assert "Traceback" not in caplog.text


def test_ctrl_c_says_what_is_kept(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.act = fail(KeyboardInterrupt())
    code, out, err = run("create me.mp4 -o me.avatar --quiet", capsys)
    assert (code, out) == (130, "")
    assert "goes on from what was done" in err
    code, _, err = run("bench --quiet", capsys)
    assert code == 130
    assert "run the same command to start again" in err


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_run_the_clean_up(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    script = f"""
import signal, sys, time, types
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with it ignored
def bench(**_):
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        Path({str(tmp_path / "cleaned")!r}).touch()
sys.modules["omokage.pipelines.bench"] = module = types.ModuleType("bench")
module.bench = bench
sys.argv = ["omokage", "bench", "--quiet"]
from omokage.cli.app import main
main()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(sent)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert (tmp_path / "cleaned").exists()
    assert b"Traceback" not in err


@pytest.mark.parametrize("debug", [False, True])
def test_native_code_does_not_talk_between_our_words(debug: bool) -> None:
    script = f"""
import os, sys, types
def bench(on_progress, **_):
    os.write(2, b"W0000 from C++")
    raise RuntimeError("ours")
sys.modules["omokage.pipelines.bench"] = module = types.ModuleType("bench")
module.bench = bench
sys.argv = ["omokage", *{["--debug"] if debug else []}, "bench"]
from omokage.cli.app import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 70
    assert "unexpected error (RuntimeError: ours)" in done.stderr
    assert ("W0000" in done.stderr) == ("Traceback" in done.stderr) == debug


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("create", "Missing argument 'VIDEO' (see 'omokage create --help')"),
        ("create me.mp4", "Missing option '-o' / '--output' (see 'omokage create --help')"),
        ("create me.mp4 -o x --size 300", "'300' is not one of"),
        ("create me.mp4 -o x --minutes 0", "0.0 is not in the range"),
        ("create me.mp4 -o x --preset paper --size 256", "--size is an option of the compact preset"),
        ("reenact a b -o c --blink 5", "5.0 is not in the range"),
        ("fly", "No such command 'fly'"),
        ("check me.mp4 --loud", "No such option"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    calls: Calls, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    code, out, err = run(line, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("omokage: ")
    assert message in err
    assert err.count("\n") == 1
    assert calls.keywords == {}


def test_a_result_never_replaces_its_input(
    calls: Calls, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    driver = tmp_path / "driver.mp4"
    driver.write_bytes(b"precious")
    code, _, err = run("reenact me.avatar driver.mp4 -o ./driver.mp4", capsys)
    assert code == 3
    assert "is also an input" in err
    assert calls.keywords == {}
    assert driver.read_bytes() == b"precious"


# Progress


def test_progress_lines_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with ProgressBar(is_terminal=False) as show:
        for done in range(101):
            show(Progress("tracking", done, 100, f"frame {done}"))
            now += 0.5
        show(Progress("reading", 3, 0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tracking: 0 %, frame 0"
    assert lines[1] == "tracking: 20 %, 00:40 left, frame 20"
    assert lines[-2] == "tracking: 100 %, frame 100"
    assert lines[-1] == "reading: 3"
    assert len(lines) == 7


def test_progress_bar_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(is_terminal=True) as show:
        show(Progress("tracking", 1, 2))
        show(Progress("tracking", 2, 2, "loss 0.1"))
        show(Progress("training", 1, 4))
    err = capsys.readouterr().err
    assert "tracking: 100 %" in err
    assert "left, loss 0.1" in err
    assert "training:  25 %" in err


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_fact_is_a_line_and_nothing_runs_over(
    is_terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar(is_terminal=is_terminal) as show:
        show(Progress("plan", 1, 1, "about 3 minutes"))
        show(Progress("training", 0.5, 1))
        show(Progress("training", 1.02, 1))  # the last step ends after the budget
    err = capsys.readouterr().err
    assert err.startswith("plan: about 3 minutes\n")
    assert "training: 100 %" in err and "102" not in err and "Warning" not in err


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(is_quiet=True, is_terminal=True) as show:
        show(Progress("tracking", 1, 2))
    assert capsys.readouterr().err == ""


# The check pipeline


def test_check_releases_its_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from omokage.errors import MediaError
    from omokage.pipelines import check as pipeline

    report = SimpleNamespace(samples=(), to_text=lambda: "fine\n", to_json=lambda: {"verdict": "good"})
    monkeypatch.setattr(pipeline, "check_recording", lambda *_, **__: report)
    monkeypatch.setattr(pipeline, "contact_sheet", lambda *_: Image.new("RGB", (64, 32), "white"))
    folder = tmp_path / "new" / "sheets"
    pipeline.check(tmp_path / "me.mp4", output=folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        "capture.json",
        "capture.txt",
        "contact-sheet.png",
    ]
    assert json.loads((folder / "capture.json").read_text()) == {"verdict": "good"}
    sheet = Image.open(folder / "contact-sheet.png")
    assert sheet.size == (64, 32) and "AI-generated" not in str(sheet.info)

    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a folder is needed"):
        pipeline.check(tmp_path / "me.mp4", output=tmp_path / "file")

    def broken(*_: Any, **__: Any) -> None:
        raise MediaError("no video")

    monkeypatch.setattr(pipeline, "check_recording", broken)
    with pytest.raises(MediaError):
        pipeline.check(tmp_path / "me.mp4", output=tmp_path / "other")
    assert not (tmp_path / "other").exists()
