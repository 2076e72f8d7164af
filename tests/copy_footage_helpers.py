"""What the tests of copy_footage.py share: a cloud with a folder beside it, and eyes for what lies in a finished file.

A test module makes itself a fixture of `Clouds`. What a camera recorded is known frame by frame and packet by packet,
so a finished file is compared with what it has to hold. Every run is searched for secrets, whatever else is tested.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import imageio_ffmpeg
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import rhombus_simulator as rs
from rhombus_simulator import Camera, Gateway, Location, Simulator, Switches, World, ruuid

import copy_footage
from rhombus_logging import ProgramError

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "copy_footage.py"
NOW = 1_754_400_000.0  # an even second: 2025-08-05T13:20:00Z
SEGMENT_SEC = 2
FRAME_SEC = 1 / rs.MediaKit.fps
CAMERA, GATEWAY, SITE, SUB = ruuid("camera"), ruuid("gateway"), ruuid("site"), ruuid("sub")
# Faults become quick, and no setting of this machine decides a result.
RHOMBUS = {"retry_wait": 0.02, "tries": 3, "read_timeout": 0.7, "connect_timeout": 0.7, "timezone": "UTC"}
real_time, real_monotonic = time.time, time.monotonic


class Clock:
    """A time that a test sets; it stands still unless `ticking`."""

    def __init__(self, now: float, *, ticking: bool = False) -> None:
        self.base, self.ticking, self.since = now, ticking, real_monotonic()

    def __call__(self) -> float:
        return self.base + (real_monotonic() - self.since if self.ticking else 0)

    def advance(self, seconds: float) -> None:
        self.base += seconds


@dataclass
class Run:
    """What a finished run of the program said."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Of --json: every line of stdout, the last one is {"summary": …}."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        last = self.lines[-1]
        assert list(last) == ["summary"], "the last line of --json is the summary"
        return dict(last["summary"])

    def sentence(self) -> str:
        """The one ERROR line of a run that was refused; a traceback, or more than one, is a failure."""
        assert "Traceback" not in self.err
        errors = [line for line in self.err.splitlines() if " ERROR " in line]
        assert len(errors) == 1, self.err
        return errors[0].partition(" ERROR ")[2]


@dataclass
class Cloud:
    """A simulated cloud, the folder that footage goes to, and the program between them."""

    sim: Simulator
    work: Path
    clock: Callable[[], float]
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    secrets: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder = self.work / "footage"
        self.config = self.work / "config.yaml"
        self.configure()
        self.start = int(self.clock()) // 2 * 2 - 7200

    def configure(self, **rhombus: Any) -> None:
        """Settings of the section `rhombus`; `notify` is a section of its own."""
        notify = rhombus.pop("notify", {})
        self.config.write_text(json.dumps({"rhombus": {**RHOMBUS, **rhombus}, "notify": notify}))  # JSON is YAML

    def words(self, *words: Any) -> list[str]:
        return [*map(str, words), "--config", str(self.config), "--output_dir", str(self.folder)]

    def copy(self, *words: Any, ok: int | None = 0, key: str | None = None) -> Run:
        """Call the program in this process; `ok` is the status it has to end with (None: any)."""
        self.monkeypatch.setenv("RHOMBUS_API_KEY", self.sim.api_key if key is None else key)
        self.monkeypatch.setenv("RHOMBUS_API_URL", self.sim.api_url)
        self.capsys.readouterr()
        try:
            status = copy_footage.main(self.words(*words))
        except ProgramError as problem:  # what run() makes of it is tested with whole processes
            logging.getLogger("copy_footage").error("%s", problem)
            status = int(problem.status)
        except SystemExit as end:  # argparse
            status = int(end.code or 0)
        out, err = self.capsys.readouterr()
        return self.checked(Run(status, out, err), ok)

    def clip(self, seconds: int = 20, *words: Any, ok: int | None = 0, start: int | None = None) -> Run:
        """Copy a range that begins at `self.start`."""
        return self.copy("-s", self.start if start is None else start, "-u", seconds, *words, ok=ok)

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "RHOMBUS_API_KEY": self.sim.api_key, "RHOMBUS_API_URL": self.sim.api_url, **more}

    def spawn(self, *words: Any, **environment: str) -> subprocess.Popen[str]:
        """Start the program as a process of its own."""
        return subprocess.Popen(
            [sys.executable, str(PROGRAM), *self.words(*words)],
            env=self.environment(**environment),
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str], ok: int | None = 0, timeout: float = 60) -> Run:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return self.checked(Run(process.returncode, out or "", err), ok)

    def checked(self, run: Run, ok: int | None) -> Run:
        self.secrets |= {*self.sim.keys, *self.sim.tokens}
        check_no_secret(self.secrets, run, self.work)
        assert ok is None or run.status == ok, f"status {run.status}, expected {ok}\n{run.err}"
        return run

    # what lies in the folder, and what was asked for

    def files(self, pattern: str = "*") -> list[str]:
        """Names in the output folder, without the state folder."""
        return sorted(path.name for path in self.folder.glob(pattern) if path.name != ".copy_footage")

    def only(self, pattern: str = "*.mp4") -> Path:
        found = self.files(pattern)
        assert len(found) == 1, f"one {pattern} is expected: {self.files()}"
        return self.folder / found[0]

    def ledger(self) -> list[dict[str, Any]]:
        path = self.folder / ".copy_footage" / "clips.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def asked(self, regex: str) -> list[str]:
        """Requests that match, as "KIND METHOD PATH"."""
        return [record.line for record in list(self.sim.requests) if re.search(regex, record.line)]

    def media(self) -> list[str]:
        """Every request to a media host."""
        return self.asked("^(lan|wan) ")

    def segments(self, suffix: str = "m4v", kind: str = "") -> list[int]:
        """Numbers of the media segments that were asked for, in order, repeats included."""
        found = (re.search(r"/seg_(\d+)\." + suffix, line) for line in self.asked(f"^{kind}"))
        return sorted(int(match[1]) for match in found if match)

    # what a camera recorded

    def pictures(
        self, start: int, end: int, facet: int = 0, gaps: Iterable[tuple[int, int]] = ()
    ) -> list[tuple[float, str]]:
        """(seconds since `start`, hash) of every frame recorded in [start, end), without what lies in `gaps`."""
        bank, per_segment = frame_bank(), round(SEGMENT_SEC / FRAME_SEC)
        found = []
        for at in range(start, end, SEGMENT_SEC):
            if not any(low <= at < high for low, high in gaps):
                first = (at // SEGMENT_SEC + 7 * facet) % rs.MediaKit.bank * per_segment
                found += [(at - start + n * FRAME_SEC, bank[first + n]) for n in range(per_segment)]
        return found

    def sounds(self, start: int, end: int) -> list[tuple[float, str]]:
        """(seconds since `start`, hash) of every Opus packet recorded in [start, end)."""
        bank = packet_bank(self.sim.media)
        return [
            (at - start + n * 0.02, packet)
            for at in range(start, end, SEGMENT_SEC)
            for n, packet in enumerate(bank[at // SEGMENT_SEC % len(bank)])
        ]


class Clouds:
    """Makes clouds, and ends them with the test."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.tmp_path, self.monkeypatch, self.capsys = tmp_path, monkeypatch, capsys
        self._open = contextlib.ExitStack()
        self.count = 0

    def __enter__(self) -> Clouds:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()
        logging.getLogger().handlers[:] = [
            handler for handler in logging.getLogger().handlers if type(handler).__module__ != "rhombus_logging"
        ]

    def __call__(
        self,
        world: World | None = None,
        switches: Switches | None = None,
        *,
        clock: Clock | None = None,
        real: bool = False,
        tls: bool = False,
        **changes: Any,
    ) -> Cloud:
        """A cloud with `world`; `changes` are switches. The program's clock is set to the cloud's, unless `real`."""
        now: Callable[[], float] = real_time if real else clock or Clock(NOW)
        if not real:
            self.monkeypatch.setattr(time, "time", now)
        switches = switches or Switches()
        for name, value in changes.items():
            assert hasattr(switches, name), name
            setattr(switches, name, value)
        sim = self._open.enter_context(Simulator(world or one_camera(), switches, clock=now, tls=tls))
        self.count += 1
        work = self.tmp_path / f"cloud{self.count}"
        work.mkdir()
        return Cloud(sim, work, now, self.monkeypatch, self.capsys)


def one_camera(audio: bool = True, **camera: Any) -> World:
    """A site with one camera; with `audio` a gateway is paired with it."""
    found = Camera(**{"uuid": CAMERA, "name": "Loading Dock / East", "location_uuid": SITE, **camera})
    gateways = [Gateway(GATEWAY, "Dock mic", SITE, cameras=[f"{found.uuid}.v0"])] if audio else []
    return World([found], gateways, [Location(SITE, "Site", "UTC", [Location(SUB, "Cold store", "UTC")])])


def silent_camera(**camera: Any) -> World:
    return one_camera(audio=False, **camera)


def eventually(condition: Callable[[], Any], what: str, seconds: float = 20) -> None:
    """Wait until `condition` holds."""
    deadline = real_monotonic() + seconds
    while not condition():
        assert real_monotonic() < deadline, f"did not happen in {seconds} s: {what}"
        time.sleep(0.005)


# --- secrets ---


def check_no_secret(secrets: Iterable[str], run: Run, folder: Path) -> None:
    """No key and no token in what the program said or wrote, nor in a file name."""
    forms = [form.encode() for secret in secrets for form in {secret, quote(secret, safe="")}]
    texts = [("stderr", run.err.encode()), ("stdout", run.out.encode())]
    for path in folder.rglob("*"):
        texts.append(("the name of a file", path.name.encode()))
        if path.is_file():
            texts.append((str(path), path.read_bytes()))
    for where, text in texts:
        assert not any(form in text for form in forms), f"a secret in {where}"


# --- what a finished file holds ---


def ffmpeg(*words: str, status: int | None = 0) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-xerror", *words]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert status is None or (done.returncode, done.stderr) == (status, ""), done.stderr
    return done.stdout


def hashes(text: str) -> list[tuple[float, str]]:
    """(presentation time in seconds, hash) of the lines of FFmpeg's framemd5."""
    base = next(
        tuple(map(int, line.split(":")[1].strip().split("/"))) for line in text.splitlines() if line.startswith("#tb")
    )
    rows = [line.split(",") for line in text.splitlines() if line and line[0] != "#"]
    return [(int(row[2]) * base[0] / base[1], row[5].strip()) for row in rows]


def frames(file: Path) -> list[tuple[float, str]]:
    """(seconds, hash) of every decoded frame; any complaint of the decoder is a failure."""
    return hashes(ffmpeg("-i", str(file), "-map", "0:v", "-fps_mode", "passthrough", "-f", "framemd5", "-"))


def packets(file: Path) -> list[tuple[float, str]]:
    """(seconds, hash) of every audio packet as it lies in the file."""
    return hashes(ffmpeg("-i", str(file), "-map", "0:a", "-c", "copy", "-copyts", "-f", "framemd5", "-"))


def media_info(file: Path) -> str:
    """What FFmpeg says about a file: streams, duration, metadata."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-i", str(file)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stderr


def duration_sec(file: Path) -> float:
    match = re.search(r"Duration: (\d+):(\d+):([\d.]+)", media_info(file))
    assert match, file
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def close_to(found: list[tuple[float, str]], wanted: list[tuple[float, str]], slack_sec: float = 0.005) -> None:
    """The same hashes at the same times."""
    assert [one for _, one in found] == [one for _, one in wanted]
    late = [(seen, at) for (seen, _), (at, _) in zip(found, wanted, strict=True) if abs(seen - at) > slack_sec]
    assert not late, f"{len(late)} at another time, first (found, wanted): {late[0]}"


def top_boxes(file: Path) -> list[str]:
    return [kind.decode("latin-1") for kind, _, _ in rs.boxes(file.read_bytes())]


@functools.cache
def frame_bank() -> list[str]:
    """Hashes of the frames of the simulator's bank, in order."""
    media = rs.MediaKit().load()
    data = media.video_init + b"".join(
        bytes(piece) for n, one in enumerate(media.video) for piece in one.at(n + 1, 2 * n)
    )
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-i",
        "-",
        "-fps_mode",
        "passthrough",
        "-f",
        "framemd5",
        "-",
    ]
    done = subprocess.run(command, input=data, capture_output=True, check=True)
    found = [one for _, one in hashes(done.stdout.decode())]
    assert len(found) == rs.MediaKit.bank * SEGMENT_SEC * rs.MediaKit.fps
    return found


def packet_bank(media: rs.Media) -> list[list[str]]:
    """Hashes of the Opus packets of each segment of the simulator's bank."""
    found = []
    for segment in media.audio:
        rest, at, packets_here = bytes(segment.rest), 0, []
        while at < len(rest):
            size = struct.unpack_from(">I", rest, at + 1)[0] & 0x0FFFFFFF
            packets_here.append(hashlib.md5(rest[at + 5 + 4 : at + 5 + size]).hexdigest())
            at += 5 + size
        found.append(packets_here)
    return found


def sidecar(file: Path) -> dict[str, Any]:
    """The sidecar of a clip, after everything in it that can be checked was checked."""
    side = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    assert side["schema"] == 1
    assert side["file"] == file.name
    assert side["bytes"] == file.stat().st_size
    assert side["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    segments = side["segments"]
    assert segments["received"] + len(segments["missing"]) == segments["expected"]
    return dict(side)


def content(cloud: Cloud) -> dict[str, str]:
    """Name → hash of every finished clip."""
    return {name: hashlib.sha256((cloud.folder / name).read_bytes()).hexdigest() for name in cloud.files("*.mp4")}


@contextlib.contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the test."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
