"""What holds for every test: where the programs lie, a clean environment, and a summary that hides nothing.

A test that cannot do without a program calls `need("curl")`, imported from here: it returns the path, or skips the
test, and the summary says loudly what was not tested.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from archive_servers import ServerMissing, SwiftS3, Tls, make_tls
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
MISSING_VARIABLE = "TESTS_MISSING_PROGRAMS"  # set by run.py
FULL_LENGTH = "takes very long, so it runs by hand only: "
NOT_TESTED = "not tested, because this program is missing: "
# A developer's keys, proxies and certificates must neither be used by a test nor decide its result.
UNWANTED_PREFIXES = ("RHOMBUS_", "SMTP_", "AWS_")
UNWANTED_VARIABLES = (
    "ALERT_TO",
    "INVOCATION_ID",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
)

sys.path.insert(0, str(ROOT))  # the programs, also for a bare `pytest` from any folder

for _name in list(os.environ):
    if _name.upper() in UNWANTED_VARIABLES or _name.upper().startswith(UNWANTED_PREFIXES):
        del os.environ[_name]

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would ours
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the same for `nohup`

# The same examples in every run and on every machine; a busy machine is not a failure.
settings.register_profile("here", derandomize=True, deadline=None, database=None)
settings.load_profile("here")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full_length", action="store_true", help="also run the tests that take ten minutes and more")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked full_length need the flag; the summary names those that therefore did not run."""
    if not config.getoption("--full_length"):
        for item in items:
            if item.get_closest_marker("full_length"):
                item.add_marker(pytest.mark.skip(reason=FULL_LENGTH + "--full_length"))


def need(program: str) -> str:
    """The path of a program that a test cannot do without; skips the test where it is missing."""
    beside = str(Path(sys.executable).parent)  # what pip brought along; sshd is in no user's PATH
    found = shutil.which(program) or shutil.which(program, path=os.pathsep.join([beside, "/usr/sbin", "/sbin"]))
    if found is None:
        pytest.skip(NOT_TESTED + program)
    return found


def seen_on_a_terminal(command: Sequence[str], *, stdout_too: bool = False, cwd: Path,
                       env: Mapping[str, str] | None = None) -> tuple[int, str, str]:  # fmt: skip
    """(status, what a terminal of 100 columns got, stdout) of a program as a process."""
    import fcntl  # here, because Windows has none of them
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    seen = b""
    env = {**(env or os.environ), "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs if stdout_too else subprocess.PIPE,
                          stderr=theirs, cwd=cwd, env=env) as process:  # fmt: skip
        try:
            os.close(theirs)
            with suppress(OSError):  # the other end is closed
                while piece := os.read(ours, 65536):
                    seen += piece
            out = b"" if stdout_too else process.communicate(timeout=30)[0]
            status = process.wait(30)
        finally:
            process.kill()
            os.close(ours)
    return status, seen.decode(), out.decode()


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate for loopback and the authority that signed it."""
    return make_tls(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftS3]:
    """The strict S3 server, one for all tests of a process; a test takes a bucket of its own from it."""
    try:
        with SwiftS3(tmp_path_factory.mktemp("swift")) as server:
            yield server
    except ServerMissing as problem:
        pytest.skip(NOT_TESTED + str(problem))


@pytest.fixture
def site(tmp_path: Path) -> Any:
    """An installation of nas_sync.py with a NAS in a folder, prepared."""
    return _installation(tmp_path, organize=True)


@pytest.fixture
def in_place(tmp_path: Path) -> Any:
    """The same without a ready folder: files are archived where they are."""
    return _installation(tmp_path, organize=False)


def _installation(folder: Path, *, organize: bool) -> Any:
    from nas_sync_helpers import Site  # only the tests of one program need it

    need("rsync")
    made = Site(folder, organize=organize)
    made.init()
    return made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which tests did not run for want of a program: a green run must not look as if they had passed."""
    skipped: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _, found, program = reason.partition(NOT_TESTED)
        if found:
            skipped.setdefault(program, []).append(report.nodeid)
    lines = [line for line in os.environ.get(MISSING_VARIABLE, "").splitlines() if line]
    if not skipped and not lines:
        return
    terminalreporter.section("NOT TESTED", sep="!", red=True, bold=True)
    for line in lines:
        terminalreporter.write_line(f"missing program {line}")
    for program, tests in sorted(skipped.items()):
        terminalreporter.write_line(f"{program} is missing, therefore not run ({len(tests)}):")
        for test in tests:
            terminalreporter.write_line(f"    {test}")
