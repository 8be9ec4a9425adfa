"""The rules of the house that no linter holds: light imports, the public names, doors and forbidden calls."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import omokage

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src" / "omokage").rglob("*.py"))
HEAVY = {
    "torch",
    "cv2",
    "mediapipe",
    "av",
    "numpy",
    "scipy",
    "numba",
    "onnx",
    "onnxruntime",
    "openvino",
    "skimage",
}

PUBLIC = [
    "Avatar",
    "BundleError",
    "CaptureRefusedError",
    "FaceTrack",
    "InputError",
    "InternalError",
    "LiveReenactor",
    "LiveSpeaker",
    "MediaError",
    "MissingDependencyError",
    "NoFaceError",
    "OmokageError",
    "OutputError",
    "WeightsError",
    "__version__",
    "animate",
    "check_recording",
    "create_avatar",
    "reenact",
    "rehearse",
    "speak",
    "verify",
]

# What must not appear -> a pattern, and where it may appear all the same.
FORBIDDEN = {
    "printing in library code": (r"(?<![\w.])print\(", ()),
    "pickles, which run code": (
        r"\b(import|from) pickle|\bpickle\.|torch\.load\(|allow_pickle=True|\bjoblib\b",
        ("official.py",),
    ),
    "running text as code": (r"(?<![\w.])(eval|exec)\(|shell=True|os\.system\(", ()),
    "writing media around trust.release": (
        r"cv2\.(VideoWriter|imwrite)\b|\bimageio\b|\bplt\.savefig\(",
        ("media/",),
    ),
    "decoding around the sandbox": (
        r"\bav\.open\(|(?<!\w)Image\.open\(|\bcv2\.(VideoCapture|imread)\b|\bimread\(",
        ("media/demux.py", "media/still.py", "media/encode.py"),
    ),
    "paths of one machine": (r"[\"'/](home|Users|root|tmp|work|mnt|opt)/", ()),
    # Such an import of our own modules would be invisible to the import rules.
    "hidden imports": (r"__import__\(|import_module\((?!f?[\"'](?!omokage))", ("__init__.py",)),
    "words about later": (r"\b(TODO|FIXME|XXX|HACK)\b", ()),
}


def in_fresh_python(script: str, **environment: str) -> str:
    settings = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | environment
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=settings, check=True
    )
    return done.stdout.strip()


def test_public_names_are_frozen() -> None:
    assert sorted(omokage.__all__) == PUBLIC
    assert dir(omokage) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_used(name: str) -> None:
    assert getattr(omokage, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        omokage.nothing  # noqa: B018


def test_import_is_light_and_sets_the_wait_policy() -> None:
    script = "import sys, os, json, omokage; print(json.dumps([sorted(sys.modules), os.environ['OMP_WAIT_POLICY']]))"
    modules, policy = json.loads(in_fresh_python(script))
    assert not HEAVY & set(modules)
    assert policy == "PASSIVE"
    assert json.loads(in_fresh_python(script, OMP_WAIT_POLICY="ACTIVE"))[1] == "ACTIVE"


def test_rendering_loads_no_training_code() -> None:
    script = "import sys, omokage.render.retarget; print([m for m in sys.modules if m.startswith('omokage.avatar')])"
    assert in_fresh_python(script) == "[]"


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_nothing_forbidden_in_the_sources(rule: str) -> None:
    pattern, allowed = FORBIDDEN[rule]
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in SOURCES
        if not str(file.relative_to(ROOT / "src" / "omokage")).startswith(allowed or ("\0",))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert found == []


def test_results_name_no_folder_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    absolute = re.compile(r"(?<![\w./])/(home|Users|root|tmp|work|mnt|opt)/")
    assert results and absolute.search('"python /home/me/x.py"')
    assert [file.name for file in results if absolute.search(file.read_text(encoding="utf-8"))] == []
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from reports import command

    monkeypatch.setattr("sys.argv", [str(ROOT / "benchmarks" / "live.py"), "/home/me/a.mp4", "--size", "256"])
    assert command() == "python benchmarks/live.py a.mp4 --size 256"


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("printing in library code", "    print(x)"),
        ("pickles, which run code", "weights = torch.load(path)"),
        ("running text as code", "eval(text)"),
        ("writing media around trust.release", "cv2.imwrite(path, image)"),
        ("paths of one machine", 'DATA = "/home/me/data"'),
        ("hidden imports", "importlib.import_module(name)"),
        ("hidden imports", 'importlib.import_module("omokage.pipelines")'),
    ],
)
def test_the_patterns_catch_what_they_should(rule: str, line: str) -> None:
    assert re.search(FORBIDDEN[rule][0], line)


def test_official_files_are_read_in_the_restricted_way_only() -> None:
    """The one file in which tensors may be unpickled does it once, and runs no code."""
    code = (ROOT / "src" / "omokage" / "official.py").read_text(encoding="utf-8")
    loads = re.findall(r"torch\.load\(.*", code)
    assert len(loads) == 1 and loads[0].endswith("weights_only=True)")
    assert not re.search(r"\b(import|from) pickle|\bpickle\.|allow_pickle=True|\bjoblib\b", code)


def test_pillow_saves_only_in_media_and_trust() -> None:
    """Encoding into a memory `buffer`, for a page that is then released, is allowed."""
    found = []
    for file in SOURCES:
        text = file.read_text(encoding="utf-8")
        if file.relative_to(ROOT / "src" / "omokage").parts[0] not in ("media", "trust") and "PIL" in text:
            found += [
                f"{file}: {line.strip()}"
                for line in text.splitlines()
                if re.search(r"\.save\((?!buffer\b)", line)
            ]
    assert found == []


def test_files_stay_small() -> None:
    sizes = {str(f.relative_to(ROOT)): len(f.read_text(encoding="utf-8").splitlines()) for f in SOURCES}
    assert {name: size for name, size in sizes.items() if size > 450} == {}


def test_import_rules_hold() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0].lower(): line.split("==")[1] for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [
        *project["dependencies"],
        *(n for extra in project["optional-dependencies"].values() for n in extra),
    ]
    names = {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in needed}
    assert names - pins.keys() == set()
    assert not [
        version for version in pins.values() if "+" in version
    ]  # a local build nobody else can install


# scripts/setup on machines that lack something


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of the set-up script, and a folder of commands without any Python or apt-get."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("bash", "cat", "dirname", "env", "rm", "sha256sum"):
        found = shutil.which(name)
        assert found is not None
        (commands / name).symlink_to(found)
    write_command(commands / "id", "echo 1000")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup", tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def write_command(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def set_up(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [folder / "scripts" / "setup"],
        env={"PATH": str(folder / "bin")},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_setup_names_the_missing_python(bare: Path) -> None:
    done = set_up(bare)
    assert done.returncode != 0
    assert done.stderr == (
        "omokage: something is missing; run this, then the same command again: "
        "sudo apt-get install -y python3.11-venv\n"
    )


def test_setup_names_the_missing_venv_package(bare: Path) -> None:
    # A Python 3.12 without ensurepip, as Ubuntu ships it.
    write_command(
        bare / "bin" / "python3.12",
        'case "$2" in *ensurepip*) exit 1;; *print*) echo python3.12-venv;; *) exit 0;; esac',
    )
    done = set_up(bare)
    assert done.returncode != 0
    assert done.stderr.endswith("sudo apt-get install -y python3.12-venv\n")


def test_setup_names_all_missing_system_libraries_in_one_line(bare: Path) -> None:
    # A Python whose every library is missing.
    write_command(
        bare / "bin" / "python3.11",
        f'case "$1" in -) sed "s/ctypes.CDLL(library)/raise OSError/" | exec {sys.executable} -;; *) exit 0;; esac',
    )
    (bare / "bin" / "sed").symlink_to(shutil.which("sed") or "")
    done = set_up(bare)
    assert done.returncode != 0
    assert done.stderr.endswith("sudo apt-get install -y libgl1 libglib2.0-0 libxcb1 libstdc++6\n")
    assert not (bare / ".venv").exists()
