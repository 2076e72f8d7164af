"""Sets up what the tests need, then runs all checks: ruff, mypy, pytest. Nothing but Python has to be there.

    python3 tests/run.py                      everything
    python3 tests/run.py -k mpd -x            what follows goes to pytest
    python3 tests/run.py --no_apt             install no Debian packages, even as root

Needs: Python 3.10 or newer; network the first time, and when a requirements file has changed.
State: .venv/ in the top folder, with a stamp that tells when it has to be renewed. Deleting it is always safe.
Exit status: that of the first check that failed; all three run in any case.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OLDEST_PYTHON = (3, 10)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "installed_for"  # holds fingerprint(), or UNFINISHED while pip is at work
UNFINISHED = "unfinished"  # found at the start it means that pip was killed
REQUIREMENTS = (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt")
MISSING_VARIABLE = "TESTS_MISSING_PROGRAMS"  # read by conftest.py, which says what was therefore not tested
APT_TIMEOUT_SEC = 600


@dataclass(frozen=True)
class DebianPart:
    """A program that some tests need and pip cannot bring."""

    package: str  # or several, with spaces between them
    program: str
    why: str
    files: str = ""  # for what is not on PATH: a pattern below / of which one file has to be there

    def absent(self) -> bool:
        return not any(Path("/").glob(self.files)) if self.files else shutil.which(self.program) is None


DEBIAN_PARTS = (
    DebianPart("curl", "curl", "the peer that tests/benchmarks/bench_copy.py measures against"),
    DebianPart("ffmpeg", "ffmpeg", "the FFmpeg that most installations have; recordings are made with it too"),
    DebianPart("rsync", "rsync", "nas_sync.py copies to the NAS with it"),
    DebianPart("openssh-server openssh-client", "sshd", "a NAS that is reached over ssh", "usr/sbin/sshd"),
    DebianPart("faketime", "faketime", "clocks that jump and change to summer time while a recorder runs"),
    DebianPart("exfat-fuse exfatprogs", "mkfs.exfat", "a disk without hard links, to record on"),
    DebianPart("postgresql", "postgres", "incidents of capture_analyzer.py in a database of others",
               "usr/lib/postgresql/*/bin/initdb"),  # fmt: skip
    DebianPart("systemd", "systemd-analyze", "checks the units that rtsp_recorder.py services writes"),
    DebianPart("chromium", "chromium", "shows the page of capture_analyzer.py report as a browser does"),
    DebianPart(
        "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good glib-networking",
        "gst-rtsp-server",
        "the RTSP server of others that is recorded from, for TCP, UDP, TLS and logins as they are in the wild",
        "usr/lib/*/girepository-1.0/GstRtspServer-1.0.typelib",
    ),
)


def say(sentence: str) -> None:
    print(f"run.py: {sentence}", flush=True)


def call(command: list[str], *, quiet: bool = False, timeout_sec: float | None = None) -> int:
    """Run a command in the top folder, without stdin; the status, 127 when it cannot be started or takes too long."""
    output = subprocess.DEVNULL if quiet else None
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")}
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=timeout_sec,
            check=False,
        ).returncode
    except (OSError, subprocess.TimeoutExpired) as problem:
        if not quiet:
            say(f"{command[0]}: {problem}")
        return 127


# --- environment ---


def python_version() -> str:
    return "{}.{}".format(*sys.version_info)


def fingerprint() -> str:
    """What an environment was made for: both requirements files, and this version of Python."""
    digest = hashlib.sha256(python_version().encode())
    for file in REQUIREMENTS:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def stamp() -> str:
    try:
        return STAMP.read_text(encoding="utf-8")
    except OSError:
        return ""


def usable() -> bool:
    """Whether the environment starts, has pip and is of this Python's version; an interrupted one is not trusted."""
    check = f"import pip, sys; sys.exit('{{}}.{{}}'.format(*sys.version_info) != '{python_version()}')"
    return stamp() != UNFINISHED and call([str(VENV_PYTHON), "-c", check], quiet=True) == 0


def make_environment(may_apt: bool) -> int:
    """An empty environment in place of whatever is there."""
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    status = call(command, quiet=may_apt)
    if status and may_apt:  # Debian keeps a part of Python's venv in a package of its own
        apt_install("python3-venv")
        status = call(command)
    if status:
        say("the environment could not be made; on Debian and Ubuntu: apt-get install python3-venv")
    return status


def prepare_environment(may_apt: bool) -> int:
    """Make .venv fit this Python and both requirements files; does nothing when it already does."""
    if not usable():
        say(f"{'making' if not VENV.exists() else 'making anew'} {VENV}")
        status = make_environment(may_apt)
        if status:
            return status
    if stamp() == fingerprint():
        return 0
    say("installing tests/requirements.txt")
    STAMP.write_text(UNFINISHED, encoding="utf-8")
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    status = call([str(VENV_PYTHON), "-m", "pip", "install", *options, "-r", str(REQUIREMENTS[-1])])
    if status:
        STAMP.unlink()  # pip has undone what it began; only after a crash is the environment not to be trusted
        say("pip could not install the packages (see above); without them nothing can be tested")
        return status
    STAMP.write_text(fingerprint(), encoding="utf-8")
    return 0


def prepare_swift() -> None:
    """OpenStack Swift, in an environment of its own because its packages would hold ours back.

    archive_servers.py installs it; here it happens before the tests, so that it counts against no test's time."""
    code = "import sys; sys.path.insert(0, 'tests'); import archive_servers; archive_servers.swift_environment()"
    if call([str(VENV_PYTHON), "-c", code]):
        say("OpenStack Swift could not be installed (see above): uploads will not be tested against it")


# --- Debian packages ---


def can_apt() -> bool:
    return os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(*packages: str) -> None:
    """Try it; whether it worked is seen by looking for the program."""
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    say(f"installing with apt-get: {' '.join(packages)}")
    call(["apt-get", "-qq", "update"], timeout_sec=APT_TIMEOUT_SEC)
    call(["apt-get", "-qq", "install", "--yes", "--no-install-recommends", *packages], timeout_sec=APT_TIMEOUT_SEC)


def absent_parts() -> list[DebianPart]:
    return [part for part in DEBIAN_PARTS if part.absent()]


def prepare_programs(may_apt: bool) -> None:
    if may_apt and absent_parts():
        apt_install(*(name for part in absent_parts() for name in part.package.split()))
    for part in absent_parts():
        say(f"{part.program} is missing (Debian package {part.package}): {part.why}")
    os.environ[MISSING_VARIABLE] = "\n".join(f"{part.program}: {part.why}" for part in absent_parts())


# --- checks ---


def checks(pytest_arguments: list[str]) -> int:
    """Run all three; the status of the first that failed."""
    failed: list[tuple[str, int]] = []
    for name, arguments in (("ruff", ["check", "."]), ("mypy", []), ("pytest", pytest_arguments)):
        say(" ".join([name, *arguments]))
        status = call([str(VENV_PYTHON), "-m", name, *arguments])
        if status:
            failed.append((name, status))
    say("all passed" if not failed else "FAILED: " + ", ".join(f"{name} ({status})" for name, status in failed))
    return failed[0][1] if failed else 0


def main(argv: list[str]) -> int:
    if argv[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if sys.version_info < OLDEST_PYTHON:
        say("Python {}.{} or newer is needed, this is {}".format(*OLDEST_PYTHON, python_version()))
        return 3
    may_apt = can_apt() and "--no_apt" not in argv
    status = prepare_environment(may_apt)
    if status:
        return status
    prepare_programs(may_apt)
    prepare_swift()
    return checks([argument for argument in argv if argument != "--no_apt"])


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
