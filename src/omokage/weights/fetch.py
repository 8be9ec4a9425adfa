"""The only network connection of the product: files of published weights, on the user's word alone.

A download goes on where it stopped (HTTP ranges, RFC 9110 section 14), also after the program was ended: beside
`x` lie `x.partial` and `x.partial.json`, which says of which version of the file it is a part. Proxies are those of the
environment.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from omokage import __version__
from omokage.config import Config, Progress, ProgressCallback, ignore_progress
from omokage.errors import WeightsError
from omokage.files import file_digest, output_error
from omokage.weights.registry import PublishedFile

CHUNK_BYTES = 1024**2
# How web pages begin, which servers send in place of a file to who is not logged in, and notes of where a file is kept.
NO_WEIGHTS = (b"<!doctype", b"<html", b"<?xml", b"version https://git-lfs")
# Characters of an address that stay as they are (RFC 3986 section 2).
KEPT = "/%:=&~+!$,;@'()*"
RANGE_REFUSED, NOT_FOUND, TOO_MANY, SERVER_FAULT = 416, 404, 429, 500

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchConfig(Config):
    """timeout_s: of a silent connection.  attempts: without a byte gained, before giving up.
    pause_s: before the second attempt, doubled before each further one."""

    timeout_s: float = 30.0
    attempts: int = 5
    pause_s: float = 2.0


class _Interrupted(Exception):
    """The connection ended too early; what has come is kept."""


@dataclass(frozen=True, slots=True)
class _Version:
    """Which version of a file a part is of: the server's tag, '' where it gives none, and the whole size."""

    tag: str
    size: int


def file_address(base: str, path: str) -> str:
    """The address of a file under a base address, in ASCII.

    Raises WeightsError when that is no web address, or holds a password, which would end up in histories and logs.
    """
    if "@" in re.split(r"[/?#]", base.partition("://")[2] or base)[0]:
        raise WeightsError(
            "an address with a user name or a password in it is not taken; give one without, "
            "of a server that needs none"
        )
    try:
        parts = urllib.parse.urlsplit(base)
        host = (parts.hostname or "").encode("idna").decode()
        if parts.scheme not in ("http", "https") or not re.fullmatch(r"[!-~]+", host):
            raise ValueError("no scheme or no host")
        host = f"[{host}]" if ":" in host else host
        place = host if parts.port is None else f"{host}:{parts.port}"
        folder = urllib.parse.quote(parts.path.rstrip("/"), safe=KEPT)
        query = urllib.parse.quote(parts.query, safe=f"{KEPT}?")
    except ValueError as error:  # of the libraries too: brackets, ports, names and characters that cannot be
        shown = base.partition("?")[0]  # what follows may be a key
        named = f"'{shown}'" if shown.isprintable() and "@" not in shown else "what was given"
        raise WeightsError(f"{named} is no web address; give one that begins with https://") from error
    path = f"{folder}/{urllib.parse.quote(path)}"
    return urllib.parse.urlunsplit((parts.scheme, place, path, query, ""))


def fetch_text(address: str, config: FetchConfig) -> str | None:
    """A small text file, or None when the server has none there. Raises WeightsError when it cannot be asked."""
    try:
        with _asked(address, {}, config) as answer:
            content: bytes = answer.read(CHUNK_BYTES)
            return content.decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        if error.code == NOT_FOUND:
            return None
        raise _refused(address, error) from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(address, error) from error


def fetch_file(
    address: str,
    path: Path,
    expected: PublishedFile,
    config: FetchConfig,
    progress: ProgressCallback = ignore_progress,
) -> str:
    """Bring a file to `path`, going on with what an earlier call left; its SHA-256.

    A file that is there already is only checked. Raises WeightsError when the server has no such file, when it is of
    another size or digest than expected (what came is thrown away then) or when the connection keeps failing (what came
    is kept); OutputError when it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    if path.is_file() and _fits(path, expected) and not _is_page(path):
        digest = file_digest(path)
        if expected.sha256 in (None, digest):
            return digest
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _complete(address, partial, expected, config, progress)
        if expected.sha256 is None and _is_page(partial):
            _forget(partial)
            raise WeightsError(
                f"what came from {_host(address)} as {expected.path} is a web page or a note, not the file, and was "
                "thrown away; ask its owner for access, or use another address"
            )
        digest = file_digest(partial)
        if expected.sha256 not in (None, digest):
            _forget(partial)
            raise WeightsError(
                f"{expected.path} from {_host(address)} has a wrong checksum and was thrown away; "
                "run the same command again, and if it fails again use another address"
            )
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _forget(partial)
    except _WriteFailed as error:
        raise output_error(path, error.reason) from error.reason
    except OSError as error:
        raise output_error(path, error) from error
    return digest


class _WriteFailed(Exception):
    """Our own disk failed, not the connection."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _complete(
    address: str, partial: Path, expected: PublishedFile, config: FetchConfig, progress: ProgressCallback
) -> None:
    """Attempt after attempt, until all bytes are there."""
    failures, gained = 0, partial.stat().st_size if partial.exists() else 0
    while True:
        try:
            _attempt(address, partial, expected, config, progress)
            return
        except urllib.error.HTTPError as error:
            if error.code != TOO_MANY and error.code < SERVER_FAULT:
                raise _refused(address, error) from error
            reason: Exception = error
        except (_Interrupted, http.client.HTTPException, OSError) as error:
            reason = error
        now = partial.stat().st_size if partial.exists() else 0
        failures = 1 if now > gained else failures + 1
        gained = now
        if failures >= config.attempts:
            raise _unreachable(address, reason) from reason
        _log.info("attempt %d at %s failed: %s", failures, expected.path, reason)
        time.sleep(config.pause_s * 2 ** (failures - 1))


def _attempt(
    address: str, partial: Path, expected: PublishedFile, config: FetchConfig, progress: ProgressCallback
) -> None:
    """One request for what is missing; raises what the connection raises, or _Interrupted."""
    have, known = (partial.stat().st_size if partial.exists() else 0), _known(partial)
    if known is None:
        have = 0
    elif have == known.size:
        return
    headers = {}
    if have and known:
        headers["Range"] = f"bytes={have}-"
        if known.tag:
            headers["If-Range"] = known.tag
    try:
        with _asked(address, headers, config) as answer:
            begin, size = _extent(answer, have)
            version = _Version(_tag(answer), size)
            if (
                begin and known and version != known
            ):  # another version of the file: its parts do not fit together
                _forget(partial)
                raise _Interrupted("the file changed on the server")
            _check_size(address, expected, size, partial)
            with _own_disk():
                file = partial.open("r+b" if begin else "wb")
            with file:
                with _own_disk():
                    file.truncate(begin)
                    _note(partial, version)  # not before: the note would name bytes of another version
                _receive(answer, file, begin, size, expected, progress)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_REFUSED:
            raise
        _forget(partial)
        raise _Interrupted("the server has less than was there before") from error


def _receive(
    answer: Any, file: IO[bytes], begin: int, size: int, expected: PublishedFile, progress: ProgressCallback
) -> None:
    file.seek(begin)
    done = begin
    while done < size:
        progress(Progress("pulling", done, size, expected.path))
        chunk = answer.read(min(CHUNK_BYTES, size - done))
        if not chunk:
            raise _Interrupted(f"the connection ended after {done} of {size} bytes")
        with _own_disk():
            file.write(chunk)
            file.flush()
        done += len(chunk)
    progress(Progress("pulling", done, size, expected.path))


@contextmanager
def _own_disk() -> Iterator[None]:
    """OSErrors of our disk, apart from those of the connection."""
    try:
        yield
    except OSError as error:
        raise _WriteFailed(error) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A server may send us elsewhere, but not from an encrypted connection to an open one."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (req.type == "https" or scheme != "http"):
            raise WeightsError(
                f"{_host(req.full_url)} redirects to an address that is not encrypted; use another address"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _asked(address: str, headers: dict[str, str], config: FetchConfig) -> Iterator[Any]:
    """One request by http or https, and nothing else, whatever the server redirects to."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(address, headers={"User-Agent": f"omokage/{__version__}", **headers})
    try:
        opened = opener.open(request, timeout=config.timeout_s)
    except ValueError as error:  # a proxy or a redirection to what is no address
        raise http.client.InvalidURL("it leads to an address that cannot be") from error
    with opened as answer:
        yield answer


def _extent(answer: Any, have: int) -> tuple[int, int]:
    """First byte of an answer and bytes of the whole file."""
    if answer.status == http.client.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18})", answer.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != have:
            raise _Interrupted("the server sent another part than it was asked for")
        return have, int(found[2])
    length = answer.headers.get("Content-Length", "")
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise _Interrupted("the server does not say how large the file is")
    return 0, int(length)


def _tag(answer: Any) -> str:
    """What names this version of the file; weak tags do not (RFC 9110 section 13.1.5)."""
    tag = answer.headers.get("ETag", "")
    return (tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")) or ""


def _check_size(address: str, expected: PublishedFile, size: int, partial: Path) -> None:
    if expected.size not in (None, size):
        _forget(partial)
        raise WeightsError(
            f"{expected.path} has {size} bytes at {_host(address)} and {expected.size} in the release; "
            "give the address of the official files"
        )


def _fits(path: Path, expected: PublishedFile) -> bool:
    return expected.size in (None, path.stat().st_size)


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(NO_WEIGHTS)


def _notes(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _note(partial: Path, version: _Version) -> None:
    _notes(partial).write_text(json.dumps({"tag": version.tag, "size": version.size}), encoding="utf-8")


def _known(partial: Path) -> _Version | None:
    try:
        content = json.loads(_notes(partial).read_text(encoding="utf-8"))
        return _Version(str(content["tag"]), int(content["size"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _notes(partial).unlink(missing_ok=True)


def _host(address: str) -> str:
    """For messages: never the rest of an address, which may hold a password."""
    return urllib.parse.urlsplit(address).hostname or "the server"


def _refused(address: str, error: urllib.error.HTTPError) -> WeightsError:
    name = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rsplit("/", 1)[-1])
    match error.code:
        case 404 | 410:
            advice = "give the address of the folder with the official files"
        case 401 | 403:
            advice = "ask its owner for access, or use another address"
        case 407:
            advice = "the proxy wants a password; put it into HTTPS_PROXY"
        case _:
            advice = "try again later, or use another address"
    return WeightsError(f"{_host(address)} does not give {name} (HTTP {error.code}); {advice}")


def _unreachable(address: str, error: Exception) -> WeightsError:
    reason = getattr(error, "reason", None) or error
    said = str(getattr(reason, "strerror", None) or reason or type(error).__name__).rstrip(".")
    return WeightsError(
        f"the connection to {_host(address)} failed ({said}); check network and proxy and run the same command "
        "again, it goes on where it stopped"
    )
