"""What README tells people to type works: commands are parsed and run against stand-ins, Python is executed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest

import omokage
from omokage.cli import app as cli
from omokage.trust.release import release_text

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SHELL_LINES = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
OMOKAGE_LINES = [line for line in SHELL_LINES if line.startswith("omokage ")]
OMOKAGE_LINES += re.findall(r"^\| `(omokage [^`]+)`", README, flags=re.MULTILINE)
PYTHON_BLOCKS = [text for kind, text in BLOCKS if kind == "python"]


class AnyResult(SimpleNamespace):
    """What a stand-in for a pipeline gives back."""

    verdict, exit_code = "good", 0
    warnings = notes = sentences = ("yaw was limited",)
    files = (Path("report.html"),)
    path, data = Path("folder"), SimpleNamespace(records=())
    evaluation = SimpleNamespace(to_text=lambda: "text", caution="a toy")

    def to_text(self) -> str:
        return "text"


@pytest.mark.parametrize("line", sorted(set(OMOKAGE_LINES)))
def test_commands_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    monkeypatch.chdir(tmp_path)
    Path("me.mp4").write_bytes(b"a recording")
    Path("secret.txt").write_text("four words that differ\n")
    if line.startswith("omokage audit"):
        release_text("a report", Path("report.txt"))  # the log begins with what leaves

    def pipeline(*_: Any, **__: Any) -> AnyResult:
        ran.append(line)
        return AnyResult()

    class AnyModule(ModuleType):
        __file__ = "any.py"  # what is imported meanwhile may look at every loaded module
        CreateConfig = PaperCreateConfig = LearnSpeechConfig = ReenactConfig = SpeakConfig = AnimateConfig = (
            TrainConfig
        ) = ImportConfig = staticmethod(lambda **_: None)
        needs_passphrase = staticmethod(lambda _: True)
        small_portrait, PORTRAIT_FILE = staticmethod(lambda *_: None), "portrait.png"

        def __getattr__(self, name: str) -> Any:
            return pipeline

    for name in (
        "check", "create", "create_paper", "reenact", "evaluate", "evaluate_video", "rehearse", "bench", "demo",
        "weights", "animate", "train_portrait", "small_portrait", "animate_queue", "import_styleavatar", "speak",
        "licences", "speak_live", "verify", "learn_speech", "carry",
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, f"omokage.pipelines.{name}", AnyModule(name))
    code = cli.run(shlex.split(line)[1:])
    assert code == 0, capsys.readouterr().err
    needs_pipeline = not line.startswith(
        ("omokage labels", "omokage consent", "omokage identity", "omokage audit")
    )
    assert ran == ([line] if needs_pipeline else [])


def test_every_command_is_in_the_table() -> None:
    told = set(re.findall(r"^\| `omokage ([\w-]+)", README, flags=re.MULTILINE))
    assert told == set(cli.app.commands)


def test_the_first_two_commands_are_the_two_make_targets() -> None:
    assert SHELL_LINES[:2] == ["make demo", "make test"]
    for line in SHELL_LINES[:2]:
        # This test may itself run under make, which would add lines of its own.
        done = subprocess.run(
            [*line.split(), "--dry-run", "--no-print-directory"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stdout.startswith("scripts/setup\n")


@pytest.mark.parametrize("block", PYTHON_BLOCKS)
def test_python_runs_with_the_real_signatures(
    block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("animate", "check_recording", "create_avatar", "reenact", "speak"):
        stand_in = create_autospec(getattr(omokage, name), return_value=AnyResult())
        monkeypatch.setattr(omokage, name, stand_in)
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out == "text\nyaw was limited\n"


def test_linked_files_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{document} links to {target}"


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(
        r"`((?:src/omokage|media|geometry|tracking|pipelines|render|trust|cli)/\w+\.py)`", text
    ):
        file = ROOT / name if name.startswith("src/") else ROOT / "src" / "omokage" / name
        assert file.exists(), name
