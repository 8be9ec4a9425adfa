"""Results on disk are complete or not there, whatever goes wrong while they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file

from clips import small_disk
from omokage.errors import OutputError
from omokage.files import result_folder, saving


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with saving(path) as part:
        part.write_text("new")
        assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("ours")])
def test_an_error_keeps_the_old_file_and_goes_on_unchanged(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, saving(path) as part:
        part.write_text("half")
        raise error
    assert caught.value is error
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "old"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    (tmp_path / "a.txt.part").symlink_to("/dev/full")  # where every write finds the disk full
    with (
        pytest.raises(OutputError, match=r"a\.txt cannot be written: the disk is full"),
        saving(path) as part,
    ):
        part.write_text("x" * 100)
    assert not list(tmp_path.iterdir())


def test_errors_of_the_library_that_writes_are_named_too(tmp_path: Path) -> None:
    with (
        small_disk(40_000),
        pytest.raises(OutputError, match="cannot be written: the file grew"),
        saving(tmp_path / "a.track", SafetensorError) as part,
    ):
        save_file({"x": np.zeros(10_000)}, part)
    assert not list(tmp_path.iterdir())


def test_a_new_folder_goes_away_with_its_parents_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ours"), result_folder(tmp_path / "new" / "report") as folder:
        (folder / "page.html").touch()
        raise ValueError("ours")
    assert not list(tmp_path.iterdir())
    with result_folder(tmp_path / "new" / "report") as folder:
        (folder / "page.html").touch()
    with pytest.raises(KeyboardInterrupt), result_folder(folder):
        raise KeyboardInterrupt
    assert (folder / "page.html").exists()  # a folder that was there stays


def test_a_folder_that_cannot_be_used_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place, words in (("file", "a folder is needed"), ("file/x", "its folder is a file")):
        with pytest.raises(OutputError, match=words), result_folder(tmp_path / place):
            raise AssertionError
    monkeypatch.setattr("tempfile.TemporaryFile", _no_permission)
    with pytest.raises(OutputError, match="no permission"), result_folder(tmp_path / "locked"):
        raise AssertionError
    assert [place.name for place in tmp_path.iterdir()] == ["file"]


def _no_permission(**_: object) -> None:
    raise PermissionError(13, "Permission denied")
