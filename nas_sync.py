"""Bring finished footage to a NAS and to S3, prove that it is there, and only then delete it here.

Examples:
  nas_sync.py target init                    mark the NAS and the bucket as ours, once
  nas_sync.py run                            organize, backup, upload, verify and cleanup, as configured (for cron)
  nas_sync.py backup --dry_run               what would be sent to the NAS, in files and bytes
  nas_sync.py status                         what waits, since when, and how long the disk lasts
  nas_sync.py verify --max_duration 2h       is the archive still what was archived? longest unverified first
  nas_sync.py find Gate --at 2026-11-20T09:30                     where the footage of that moment is
  nas_sync.py export Gate 2026-11-20T09:00 2026-11-20T10:00 /tmp/case     a folder to hand over
  nas_sync.py hold add Gate 2026-11-20T09:00 2026-11-20T10:00     cleanup spares this stretch

Needs: config.yaml with `storage.local_path` or `rhombus.output_dir`, and a target: `nas.nas_target_dir` (rsync 3.1 or
newer; a mounted path, user@host:/path or rsync://host/module) and/or `s3.bucket` (boto3).
State: `nas.success_log_dir` holds the sync log (what is where, and how it was proven); `.nas_sync/` beside the footage
holds what the targets are called, holds, known hashes and the lock. Losing any of it only repeats work.
"""

from __future__ import annotations

import argparse
import base64
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone, tzinfo
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import unquote_to_bytes

from rhombus_logging import (
    Busy,
    CannotStart,
    ProgramError,
    Status,
    Terminated,
    UsageError,
    absolute,
    add_common_flags,
    append_line,
    find_program,
    fsync_folder,
    hide_secret,
    load_config,
    mask,
    notify,
    parse_duration,
    parse_rate,
    parse_time,
    parse_zone,
    part_file,
    progress_bars,
    read_json,
    read_overlay,
    remember_told,
    run,
    run_lock,
    sha256_of,
    size_text,
    start_logging,
    utc_day,
    write_json,
)

TAB = ord("\t")
STATE_FOLDER = ".nas_sync"
TARGET_FILE = ".nas_sync_target"  # in the root of a target: its random id
CAMERA_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CLIP_NAME = re.compile(
    r"([A-Za-z0-9]+_[A-Za-z0-9_-]{22})(?:\.[va][0-9])?_(?:(\d{9,11})|(\d{8}_\d{6})_alert_[^/]+)"
    r"_(?:video|videoWithAudio|combined)(?:_partial)?\.(mp4|json)"
)
NAME_TIME = re.compile(r"(?<![0-9])(\d{4})(\d\d)(\d\d)[T_](\d\d)(\d\d)(\d\d)(Z?)(?![0-9])")
UUID_LENGTH = 22
DAY_FOLDER = re.compile(r"\d{4}-\d{2}-\d{2}")
FOOTAGE_SUFFIXES = (".mkv", ".mp4")
SECTIONS = ("rhombus", "notify", "storage", "cameras", "recording", "nas", "s3", "upload", "retention", "status",
            "analysis")  # fmt: skip

RECORDER_JOURNAL = ".rtsp_recorder/journal"
EVIDENCE_PREFIX, JOURNAL_PREFIX = "alerts/", "journal/"  # on the targets; the rest is CAMERA/...
LOST = "lost"  # in place of a proof: the target no longer has it
RETENTION_NUMBERS = ("keep_days", "max_bytes", "min_free_bytes", "grace_sec", "unusual_files", "verify_days")
READ_BYTES = 1 << 20
STALE_PART_SEC = 86400  # a younger .part is being made
SIDECAR_PATIENCE_SEC = 600  # a clip without a sidecar waits so long for it
STILL_SEC = 2.0  # a file that nobody writes must also be unchanged so long
UNSEEN_STILL_SEC = 10.0  # where nobody can tell who writes
JOURNAL_OPEN_SEC = 2 * 86400  # a segment's line is written at its end, to the day of its start
F_SETSIG = 10  # of Linux; Python's fcntl has no name for it
ODD_SHOWN, CAMERAS_SHOWN = 3, 20
BATCH_FILES, BATCH_BYTES = 2000, 16 << 30  # records are written after each batch
READ_BACK_BYTES = 1 << 30  # at once, through a temporary folder
# Of a shell on the target, which is given names on its standard input: a line for each, in their order.
HASH_ALL = """exec env LC_ALL=C xargs -0 sh -c 'for f; do if [ -f "./$f" ]; then h=$(sha256sum <"./$f") || h=unreadable
echo "${h%% *}"; else echo missing; fi; done' sh"""
HERE_IS_OTHER = "the file here is no longer what was archived; what the target holds was not judged by it"
SSH = "ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
ROOM_BYTES = 64 << 20  # stays free where something is read back or fetched to
DAY_SEC = 86400
SEAM_SEC = 2  # names and times of files are whole seconds: less between two files is no gap
TINY_SEC = 0.001  # a moment as a stretch
LAST_RUN = "last_run.json"
FETCH_FOLDER = ".nas_sync-fetch-"  # in the folder that is fetched to; with our process id
PLACES = ("local", "ready", "clips", "nas", "s3")  # nearest first
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font-family:sans-serif;margin:2em}}table{{border-collapse:collapse}}
td,th{{border:1px solid #999;padding:.3em .6em;text-align:left;vertical-align:top}}code{{word-break:break-all}}</style>
</head><body><h1>{title}</h1>
<p>Made {made} by nas_sync.py export. All times are UTC. To check that no file was changed: <code>sha256sum -c
SHA256SUMS</code>.</p>
<table><tr><th>file</th><th>kind</th><th>start</th><th>end</th><th>bytes</th><th>SHA-256</th><th>notes</th></tr>
{rows}
</table><h2>Without footage</h2>
{gaps}
</body></html>
"""
LOOK_SEC = 0.5  # the progress bar moves so often
STEP_SEC = 0.01  # between two looks at a running rsync
QUIET_MORE_SEC = 3  # rsync's own timeout comes first
KEEP_ALIVE_BYTES = 1024  # within one timeout; less is no progress
KILL_AFTER_SEC = 2.0  # from TERM to KILL
PROOF_BYTES_PER_SEC = 10_000_000  # a target that reads slower than this counts as hanging
HORIZON_SEC = 86400  # a proof from later than this ahead is of a clock that stood wrong, and made anew
LAST_SEC = 253_370_764_800.0  # 9999-01-01, a year before Python's calendar ends
LOST_AND_FOUND = "lost+found"  # of a filesystem, for root only
UNCERTAIN_SEC = 86400  # a file of ours is not longer than a day
HOLD_WAIT_SEC = 10.0
FAILURES_TOLD = 50  # in a notification
SETTLED_STATES = ("organized", "proven", "deleted", "fetched", "there")
FAILED_STATES = ("conflict", "vanished", "changed", "failed", "lost")  # the run ends with status 1
S3_PART_BYTES = 16 << 20  # from this size a file goes in parts of it: measured to cost least
S3_MOST_PARTS = 10_000  # of the protocol
S3_LARGEST_PUT_BYTES = 5 << 30  # of the protocol, where an endpoint knows no parts
S3_AT_ONCE, S3_MOST_AT_ONCE = 4, 10  # requests side by side: large files, many small ones
S3_READERS = 2  # files hashed side by side: a disk with heads to move goes no faster with more
S3_TRIES = 5
S3_CONNECT_SEC, S3_READ_SEC = 10, 60
S3_STEP_SEC = 0.5  # between two looks at the clock
S3_CLOSE_SEC = 4  # SIGTERM ends us within seconds
S3_PROBE_KEY, S3_PROBE_BYTES = ".nas_sync_probe", 4096
S3_PROBED_FOR_SEC = 30 * 86400  # an endpoint is replaced now and then, or gets a proxy in front
S3_REFUSALS = (400, 405, 409, 411, 412, 422, 501)  # the statuses that judge what was sent
S3_KEY_REFUSED = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
                  "Unauthorized")  # fmt: skip
CONTENT_TYPES = {".mp4": "video/mp4", ".mkv": "video/x-matroska", ".json": "application/json", ".jpg": "image/jpeg",
                 ".jsonl": "application/x-ndjson", ".wav": "audio/wav", ".png": "image/png"}  # fmt: skip
UNSYNCED_GRACE_SEC = 3600  # where a power cut of the target may take back what it has confirmed
TIMED_OUT = -1000  # in place of rsync's exit status: it was ended, because it or the run took too long
RSYNC_STATUS = {
    3: "the source or the target is not there", 5: "the daemon refused (unknown module, or login)",
    10: "no connection to the daemon", 11: "disk full or not writable on the target, or a read failed",
    12: "the connection broke, or rsync is missing on the target", 20: "ended by a signal",
    23: "some files could not be copied", 24: "some files vanished", 30: "no answer within the timeout",
    127: "ssh or the remote rsync was not found", 255: "ssh could not connect", TIMED_OUT: "took too long, was ended",
}  # fmt: skip
MANY_SHARE, MANY_AT_LEAST = 0.5, 20  # of a ring buffer: deleting so much of it at once is asked about first
# Options of rsync that delete, write over what is there, look elsewhere for the content, or take our list away.
REFUSED_OPTIONS = ("--del", "--remove-s", "--inplace", "--append", "--dry-run", "--list-only", "--files-from",
                   "--compare-dest", "--copy-dest", "--link-dest", "--force", "--only-write-batch", "--write-batch",
                   "--read-batch", "--daemon", "--write-devices", "--existing", "--out-format", "--log-format")
TAKING_OPTIONS = (  # what they take may stand in the next word
    "--rsh", "--rsync-path", "--password-file", "--port", "--bwlimit", "--timeout", "--chmod", "--chown", "--exclude",
    "--include", "--filter", "--temp-dir", "--partial-dir", "--contimeout", "--address", "--sockopts", "--iconv",
    "--remote-option", "--max-size", "--min-size", "--log-file", "--suffix", "--backup-dir", "--compress-choice",
    "--compress-level", "--checksum-choice", "--skip-compress", "--info", "--debug", "--protocol", "--usermap",
    "--groupmap", "--modify-window")  # fmt: skip
# Those that say how the target is reached; the proof needs them as well.
CONNECTION_OPTIONS = ("--rsh", "--rsync-path", "--password-file", "--port", "--address", "--sockopts", "--contimeout",
                      "--blocking-io", "--ipv4", "--ipv6", "--protocol", "--iconv", "--remote-option", "--old-args",
                      "--secluded-args", "--protect-args", "--copy-as")

log = logging.getLogger("nas_sync")


class Gone(Exception):
    """A file vanished or changed while we were at it."""


@dataclass(frozen=True, slots=True)
class Footage:
    """One finished local file that is ours to archive."""

    root: Path  # its source: storage.local_path, nas.ready_for_backup_dir, ...
    relative: str  # POSIX path below root; bytes that are no UTF-8 as surrogates
    camera: str  # of a Rhombus camera NAME_UUID
    kind: str  # recording, clip, sidecar, evidence, journal
    start_sec: float
    start_basis: str  # folder, sidecar, journal, name, mtime (uncertain)
    size: int
    mtime_ns: int
    prefix: str = ""  # what the target has before `relative`: "alerts/", "journal/", of clips in place "CAMERA/"

    @property
    def path(self) -> Path:
        return self.root / self.relative

    @property
    def recorded(self) -> str:
        """The path in the sync log, and below the root of a NAS."""
        return self.prefix + self.relative

    @property
    def doubt_sec(self) -> float:
        """By so much its start may be wrong, either way."""
        return UNCERTAIN_SEC if self.start_basis == "mtime" else 0


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the sync log: this content was seen on that target (or, with proof LOST, is no longer there)."""

    path: str
    size: int
    mtime_ns: int
    sha256: str
    target: str  # its random id
    proof: str  # how: "checksum", "checksum-unsynced" (the target does not sync), ..., and `;name=value`; LOST is none
    at_sec: float

    @property
    def proves(self) -> bool:
        return self.proof != LOST

    @property
    def how(self) -> str:
        return self.proof.partition(";")[0]

    @property
    def etag(self) -> str:
        """What a bucket called this content when it was proven; "" elsewhere."""
        return dict(one.split("=", 1) for one in self.proof.split(";") if "=" in one).get("etag", "")

    @property
    def since_sec(self) -> float:
        """When it was first proven, of proofs without a loss between them: what a grace time counts from."""
        found = re.search(r";since=(\d+)", self.proof)
        return float(found[1]) if found else self.at_sec

    def again(self, proof: str, now: float) -> Record:
        """The same content, seen once more."""
        etag = f";etag={self.etag}" if self.etag and ";etag=" not in proof else ""
        return replace(self, proof=f"{proof}{etag};since={int(self.since_sec)}", at_sec=now)

    def is_of(self, footage: Footage) -> bool:
        return (self.path, self.size, self.mtime_ns) == (footage.recorded, footage.size, footage.mtime_ns)


@dataclass(frozen=True)
class Outcome:
    """What became of one file at one target."""

    footage: Footage
    state: str  # proven, conflict, vanished, changed, failed
    sha256: str = ""
    proof: str = ""
    why: str = ""


@dataclass(frozen=True)
class Archived:
    """A file that a target holds, as the sync log says."""

    footage: Footage
    record: Record
    is_local: bool  # and still here, unchanged


@dataclass(frozen=True)
class Finding:
    """What a look at the target says of it."""

    archived: Archived
    state: str  # verified, missing, different, unreadable
    level: str  # what was compared: presence, size, etag, checksum, content
    why: str = ""
    proof: str = ""  # for the sync log: a fresh proof, LOST, or nothing


class Target(Protocol):
    """A NAS or a bucket."""

    name: str  # "nas" or "s3", as in retention.required
    address: str
    target_id: str  # known after open()

    def open(self) -> None:
        """Find the target and check the id in its root. Raises CannotStart; nothing is written."""

    def initialise(self) -> str:
        """`target init`: put a random id into the root, or take over the one that is there; returns it."""

    def check(self) -> list[str]:
        """`target check`, after open(): what was found, a line each. Raises CannotStart."""

    def send(self, batch: Sequence[Footage], hashes: Hashes, progress: Progress) -> Iterable[list[Outcome]]:
        """Copy what is not there yet and prove all of it; never overwrites other content. One Outcome per file, in
        lists that are recorded as they come.

        Raises CannotStart when the target itself is gone; files in between are then simply unproven.
        """

    def present(self, proven: Sequence[Archived], hashes: Hashes) -> set[str]:
        """Of these files, which are here and proven, the `recorded` paths of those that the target still has as they
        were proven: by name, size and time or ETag, and by content where these differ. For cleanup."""

    def verify(self, batch: Sequence[Archived], hashes: Hashes, *, deep: bool) -> list[Finding]:
        """What the target really holds of these; files that the run's time did not suffice for have no finding.
        `deep`: read back what cannot be judged there. Raises CannotStart."""

    def bring(self, batch: Sequence[Footage], folder: Path) -> dict[str, Path]:
        """Copy archived files into an empty folder: `recorded` -> where it is now; what failed is left out."""

    def close(self) -> None:
        """End whatever open() has started."""


@dataclass(frozen=True)
class Hold:
    """Footage of a camera that cleanup spares."""

    camera: str
    start_sec: float
    end_sec: float


@dataclass(frozen=True)
class Settings:
    """Everything a run was told, checked."""

    local_dir: Path | None  # the recorder's
    clips_dir: Path | None  # of copy_footage.py
    evidence_dir: Path | None
    ready_dir: Path | None
    state_dir: Path
    log_dir: Path
    lock_file: Path
    zone: tzinfo  # of file names without a Z
    cameras: tuple[str, ...]  # configured names
    same: tuple[tuple[str, str], ...]  # a configured name, and the rhombus_uuid of the same device
    only: tuple[str, ...]  # --camera
    limit: int | None
    deep: bool
    deadline: float | None  # monotonic
    bwlimit_bytes_per_sec: int
    dry_run: bool
    quiet: bool
    json: bool
    delete_many: bool
    nas: Mapping[str, Any] = field(repr=False)
    s3: Mapping[str, Any] = field(repr=False)
    retention: Mapping[str, Any] = field(repr=False)
    limits: Mapping[str, Any]  # of the section `status`
    delete_after_upload: bool = True
    command: str = ""
    words: tuple[str, ...] = ()  # after it
    at: str = ""  # --at
    required: tuple[str, ...] = ()  # names of the targets that a file must be proven on

    @property
    def targets(self) -> list[str]:
        return [name for name, wanted in (("nas", self.nas["nas_target_dir"]), ("s3", self.s3["bucket"])) if wanted]

    def time_is_up(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


# --- settings ----------------------------------------------------------------------------------------------------


def folder_of(text: Any) -> Path | None:
    return absolute(text) if text else None


def settle(arguments: argparse.Namespace, config: Mapping[str, Any], config_file: Path) -> Settings:
    """Flags over config, every value checked. Raises UsageError."""
    nas, retention, recording = config["nas"], config["retention"], config["recording"]
    local_dir = folder_of(config["storage"]["local_path"] or (recording["defaults"] or {}).get("output_dir"))
    clips_dir = folder_of(config["rhombus"]["output_dir"] if config["rhombus"]["output_dir"] != "." else None)
    ready_dir, evidence_dir = folder_of(nas["ready_for_backup_dir"]), folder_of(config["analysis"]["evidence_dir"])
    home = ready_dir or local_dir or clips_dir
    if home is None:
        raise UsageError(f"{config_file}: nothing to archive; set storage.local_path, or rhombus.output_dir")
    state_dir = home / STATE_FOLDER
    cameras = [str(one.get("name") or one.get("station") or "") for one in config["cameras"] if one]
    uuids = [str(one.get("rhombus_uuid") or "") for one in config["cameras"] if one]
    given = getattr(arguments, "max_duration", None)
    duration_sec = 0.0 if given is None else parse_duration(given, "--max_duration")
    settings = Settings(
        local_dir=local_dir, clips_dir=clips_dir, evidence_dir=evidence_dir, ready_dir=ready_dir, state_dir=state_dir,
        log_dir=folder_of(nas["success_log_dir"]) or state_dir / "synced",
        lock_file=(folder_of(nas["lock_dir"]) or state_dir) / "nas_sync.lock", zone=parse_zone(recording["timezone"]),
        cameras=tuple(filter(None, cameras)),
        same=tuple(pair for pair in zip(cameras, uuids, strict=True) if all(pair)),
        only=tuple(arguments.camera or ()), limit=arguments.limit,
        deep=bool(getattr(arguments, "deep", False)), limits=config["status"],
        deadline=time.monotonic() + duration_sec if duration_sec else None,
        bwlimit_bytes_per_sec=parse_rate(arguments.bwlimit or "0", "--bwlimit"), dry_run=bool(arguments.dry_run),
        quiet=arguments.quiet, json=bool(arguments.json), delete_many=bool(arguments.delete_many), nas=nas,
        s3=config["s3"], retention=retention,
        delete_after_upload=config["upload"]["delete_after_upload"], command=arguments.command,
        words=tuple(getattr(arguments, "words", ())), at=getattr(arguments, "at", None) or "")  # fmt: skip
    required = tuple(str(name) for name in retention["required"]) or tuple(settings.targets)
    refuse(settings, required, config_file)
    return replace(settings, required=required)


def refuse(settings: Settings, required: Sequence[str], config_file: Path) -> None:
    """UsageError for what cannot be meant."""
    retention = settings.retention
    if unknown := [name for name in required if name not in settings.targets]:
        raise UsageError(f"{config_file}: retention.required: {', '.join(unknown)}: this target is not configured")
    if settings.limit is not None and settings.limit < 1:
        raise UsageError("--limit: expected 1 or more")
    if negative := [name for name in RETENTION_NUMBERS if retention[name] < 0]:
        raise UsageError(f"{config_file}: retention.{negative[0]}: must not be negative")
    if retention["without_archive"]:
        if settings.targets:
            raise UsageError(f"{config_file}: retention.without_archive: there is a target ({settings.targets[0]}); "
                             "footage would be deleted before it is archived; remove one of the two")  # fmt: skip
        if not any(retention[name] for name in ("keep_days", "max_bytes", "min_free_bytes")):
            raise UsageError(f"{config_file}: retention.without_archive needs keep_days, max_bytes or min_free_bytes")
    ready_dir = settings.ready_dir
    for folder in (settings.local_dir, settings.clips_dir):
        if ready_dir and folder and folder.is_relative_to(ready_dir):
            raise UsageError(f"{config_file}: {folder} lies in nas.ready_for_backup_dir; give each a folder of its own")
    if settings.nas["timeout"] < 1:
        raise UsageError(f"{config_file}: nas.timeout: expected 1 second or more")


# --- footage -----------------------------------------------------------------------------------------------------


def name_sec(name: str, zone: tzinfo) -> float | None:
    """The time in a file name, epoch seconds: a trailing Z is UTC, else it is local time in `zone`."""
    found = NAME_TIME.search(name)
    if not found:
        return None
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc if found[7] else zone).timestamp()
    except ValueError:
        return None


def names_of(camera: str) -> set[str]:
    """What a camera may be called by: its folder, and of NAME_UUID also NAME and UUID."""
    name, _, uuid = camera.lower().partition("_")
    return {camera.lower(), name, uuid} if len(uuid) == UUID_LENGTH else {camera.lower()}


def day_sec(day: str) -> float | None:
    try:
        return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


def as_sec(value: Any) -> float:
    """Epoch seconds that a calendar knows. Raises ValueError, TypeError."""
    if not 0 <= (sec := float(value)) < LAST_SEC:
        raise ValueError(f"{value} is no time")
    return sec


def clip_start(path: Path, zone: tzinfo) -> tuple[float | None, str]:
    """When a clip (or the clip of a sidecar) begins: from its sidecar, else from its name."""
    sidecar = read_json(path.with_suffix(".json")) or {}
    with suppress(KeyError, TypeError, ValueError):
        return as_sec(sidecar["requested"]["start_ms"] / 1000), "sidecar"
    found = CLIP_NAME.fullmatch(path.name)
    if found and found[2]:
        return float(found[2]), "name"
    return name_sec(path.name, zone), "name"


def is_hidden(name: str) -> bool:
    """Of another program, or of the filesystem."""
    return name.startswith(".") or name == LOST_AND_FOUND


def journal_spans(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """File name -> starts and ends, of all that a recorder's journal of one camera tells; torn lines are left out.
    A name that holds no date comes again on another day."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for file in sorted(folder.glob("????-??-??.jsonl")):
        try:
            content = file.read_bytes()
        except OSError as problem:
            log.warning("%s: cannot be read, so names tell the time: %s", file, problem.strerror)
            continue
        for text in content.split(b"\n"):
            with suppress(ValueError, TypeError, KeyError):
                line = json.loads(text)
                if line["kind"] == "segment":
                    start_sec = as_sec(line["start"])
                    span = start_sec, as_sec(line.get("end", start_sec))
                    spans.setdefault(str(line["file"]).rpartition("/")[2], []).append(span)
    return spans


def span_of(spans: Sequence[tuple[float, float]], written_sec: float) -> tuple[float, float]:
    """That of the file which was written last at this time."""
    return min(reversed(spans), key=lambda span: abs(span[1] - written_sec))


@dataclass(frozen=True)
class Listing:
    """The names in a folder of a source. What they are is looked at later, and only where the sync log does not know
    them: of 100,000 archived files that is what planning costs."""

    folder: str
    place: str  # "CAMERA/YYYY-MM-DD/", "alerts/...": what `recorded` has before the name
    names: list[str]
    make: Callable[[str], Footage | None]  # of a name; None: it is not ours, and noted if it is odd

    def files(self) -> Iterator[Footage]:
        return filter(None, map(self.make, self.names))

    def paths(self) -> list[bytes]:
        """As they stand in the sync log, in the order of the names."""
        place, names = encode_path(self.place), self.names
        plain = "".join(names)
        if encode_path(plain) is not plain:
            names = list(map(encode_path, names))
        return [(place + name).encode() for name in names]


@dataclass
class Sources:
    """Walks the sources; what is not ours is counted by reason, and left where it is."""

    settings: Settings
    odd: dict[str, list[str]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)  # sentences

    def wants(self, camera: str) -> bool:
        return not self.settings.only or bool(names_of(camera) & {name.lower() for name in self.settings.only})

    def file(self, path: str) -> os.stat_result | None:
        """The status of a regular file with content; everything else is odd, or none of our business."""
        name = path.rpartition("/")[2]
        if is_hidden(name):
            return None
        try:
            status = os.lstat(path)
        except OSError as problem:
            self.note(f"unreadable ({problem.strerror})", path)
            return None
        if ".part" in name and (name.endswith(".part") or ".part." in name):
            if time.time() - status.st_mtime > STALE_PART_SEC:
                self.note("a stale .part", path)
        elif not stat.S_ISREG(status.st_mode):
            self.note("no regular file", path)
        elif not status.st_size:
            self.note("empty", path)
        else:
            return status
        return None

    def note(self, reason: str, path: str) -> None:
        self.odd.setdefault(reason, []).append(path)

    def names(self, folder: str | Path) -> list[str]:
        """What lies in a folder, by name: nearly the order of the sync log, which is then found faster. One that cannot
        be read does not stop the others."""
        try:
            return sorted(os.listdir(folder))  # noqa: PTH208  100,000 of them
        except OSError as problem:
            self.miss(problem, Path(folder))
            return []

    def entries(self, folder: str | Path) -> list[os.DirEntry[str]]:
        """The same of a folder of folders, in no order and without what is hidden."""
        try:
            with os.scandir(folder) as entries:
                return [entry for entry in entries if not is_hidden(entry.name)]
        except OSError as problem:
            self.miss(problem, Path(folder))
            return []

    def miss(self, problem: OSError, folder: Path | None = None) -> None:
        if problem.errno != errno.ENOENT:
            where = printable(folder or problem.filename)
            self.unread.append(f"{where}: this folder cannot be read: {problem.strerror}")

    def recorded(self) -> Iterator[Listing]:
        """CAMERA/NAME of the recorder."""
        root = self.settings.local_dir
        others = {self.settings.ready_dir, self.settings.clips_dir, self.settings.evidence_dir}
        for folder in self.entries(root) if root else ():
            if not folder.is_dir(follow_symlinks=False) or Path(folder.path) in others:
                continue
            if not CAMERA_NAME.fullmatch(folder.name):
                self.note("no camera's folder", folder.path)
            elif self.wants(folder.name):
                assert root is not None
                yield self._recordings_of(root, folder)

    def _recordings_of(self, root: Path, folder: os.DirEntry[str]) -> Listing:
        camera = folder.name
        spans: dict[str, list[tuple[float, float]]] | None = None

        def make(name: str) -> Footage | None:
            nonlocal spans
            path = f"{folder.path}/{name}"
            if (status := self.file(path)) is None:
                return None
            if not name.lower().endswith(FOOTAGE_SUFFIXES):
                self.note("foreign", path)
                return None
            if spans is None:
                spans = journal_spans(root / RECORDER_JOURNAL / camera)
            start_sec, basis = span_of(spans[name], status.st_mtime)[0] if name in spans else None, "journal"
            if start_sec is None:
                start_sec, basis = name_sec(name, self.settings.zone), "name"
            if start_sec is None and camera in self.settings.cameras:
                start_sec, basis = status.st_mtime, "mtime"
            if start_sec is None:
                self.note("of unknown time", path)
                return None
            return Footage(root, f"{camera}/{name}", camera, "recording", start_sec, basis, status.st_size,
                           status.st_mtime_ns)  # fmt: skip

        return Listing(folder.path, f"{camera}/", self.names(folder.path), make)

    def downloaded(self) -> Iterator[Listing]:
        """Clips and sidecars of copy_footage.py; other files in that folder are none of ours."""
        root = self.settings.clips_dir
        cameras: dict[str, list[str]] = {}
        for name in self.names(root) if root else ():
            if (found := CLIP_NAME.fullmatch(name)) and self.wants(found[1]):
                cameras.setdefault(found[1], []).append(name)
        for camera, names in sorted(cameras.items()):
            assert root is not None
            yield Listing(str(root), f"{camera}/", names, partial(self._clip, root, camera))

    def _clip(self, root: Path, camera: str, name: str) -> Footage | None:
        path = root / name
        if (status := self.file(str(path))) is None:
            return None
        start_sec, basis = clip_start(path, self.settings.zone)
        if start_sec is None:
            self.note("of unknown time", str(path))
            return None
        kind = "sidecar" if name.endswith(".json") else "clip"
        if kind == "clip" and not path.with_suffix(".json").exists() \
                and time.time() - status.st_mtime < SIDECAR_PATIENCE_SEC:  # fmt: skip
            return None  # it is written right after the clip
        return Footage(root, name, camera, kind, start_sec, basis, status.st_size, status.st_mtime_ns,
                       f"{camera}/")  # fmt: skip

    def ready(self) -> Iterator[Listing]:
        """CAMERA/YYYY-MM-DD/NAME of the ready folder; the folder is the date."""
        root = self.settings.ready_dir
        for camera in self.entries(root) if root else ():
            if not camera.is_dir(follow_symlinks=False) or not self.wants(camera.name):
                continue
            for day in self.entries(camera.path):
                midnight_sec = day_sec(day.name) if DAY_FOLDER.fullmatch(day.name) else None
                if midnight_sec is None or not day.is_dir(follow_symlinks=False):
                    self.note("not in a folder CAMERA/YYYY-MM-DD", day.path)
                    continue
                assert root is not None
                names, place = self.names(day.path), f"{camera.name}/{day.name}/"
                told = {name.removesuffix(".json") for name in names if name.endswith(".json")}
                yield Listing(day.path, place, names,
                              partial(self._organized, root, camera.name, place, midnight_sec, told))

    def _organized(self, root: Path, camera: str, place: str, midnight_sec: float, told: Collection[str],
                   name: str) -> Footage | None:  # fmt: skip
        if (status := self.file(f"{root}/{place}{name}")) is None:
            return None
        start_sec, basis = self._start(root / place / name, midnight_sec, told)
        kind = "clip" if CLIP_NAME.fullmatch(name) else "recording"
        kind = "sidecar" if name.endswith(".json") else kind  # also X_1.json, beside a namesake
        return Footage(root, place + name, camera, kind, start_sec, basis, status.st_size, status.st_mtime_ns)

    def _start(self, path: Path, midnight_sec: float, told: Collection[str]) -> tuple[float, str]:
        """When an organized file begins; `told`: the names, without suffix, of which there is a sidecar."""
        start_sec = clip_start(path, self.settings.zone)[0] if path.stem in told else None
        if start_sec is not None and 0 <= start_sec - midnight_sec < 86400:
            return start_sec, "sidecar"
        found = CLIP_NAME.fullmatch(path.name)  # of an alert with the time of its location, which only a sidecar tells
        start_sec = self._within(path.name, midnight_sec)
        has_time = start_sec is not None and (not found or found[2])
        return midnight_sec if start_sec is None else start_sec, "folder" if has_time else "mtime"

    def _within(self, name: str, midnight_sec: float) -> float | None:
        """The time in a name, if it is of that day; the folder knows better. A file that begins just before midnight by
        the journal may have midnight in its name, which is of whole seconds."""
        start_sec = name_sec(name, self.settings.zone)
        if start_sec is None and (found := CLIP_NAME.fullmatch(name)) and found[2]:
            start_sec = float(found[2])
        if start_sec is None or not -SEAM_SEC <= start_sec - midnight_sec <= DAY_SEC + SEAM_SEC:
            return None
        return min(max(start_sec, midnight_sec), midnight_sec + DAY_SEC - TINY_SEC)

    def tree(self, root: Path | None, kind: str, prefix: str) -> Iterator[Listing]:
        """Everything below a folder."""
        for folder, folders, names in os.walk(root, onerror=self.miss) if root else ():
            names += [name for name in folders if Path(folder, name).is_symlink()]  # which is not gone into
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            assert root is not None
            place = "" if Path(folder) == root else f"{Path(folder).relative_to(root).as_posix()}/"
            camera = place.partition("/")[0]
            if self.wants(camera):
                yield Listing(folder, prefix + place, names, partial(self._any, root, camera, place, kind, prefix))

    def _any(self, root: Path, camera: str, place: str, kind: str, prefix: str, name: str) -> Footage | None:
        if (status := self.file(f"{root}/{place}{name}")) is None:
            return None
        return Footage(root, place + name, camera, kind, status.st_mtime, "mtime", status.st_size, status.st_mtime_ns,
                       prefix)  # fmt: skip

    def waiting(self) -> Iterator[Listing]:
        """All that is for a target."""
        if self.settings.ready_dir:
            yield from self.ready()
        else:
            yield from self.recorded()
            yield from self.downloaded()
        yield from self.others()

    def others(self) -> Iterator[Listing]:
        """Evidence and journals, which stay where they are."""
        yield from self.tree(self.settings.evidence_dir, "evidence", EVIDENCE_PREFIX)
        if self.settings.local_dir:
            yield from self.tree(self.settings.local_dir / RECORDER_JOURNAL, "journal", JOURNAL_PREFIX)


def same_device(names: Container[str], settings: Settings) -> list[str]:
    """By what else the device of one of these lower-case names is called, as cameras[].rhombus_uuid says."""
    pairs = (pair for pair in settings.same if any(name.lower() in names for name in pair))
    return [name for pair in pairs for name in pair if name.lower() not in names]


def known_cameras(settings: Settings) -> set[str]:
    """What cameras the config and the sources have."""
    names_in, clips_dir = Sources(settings).names, settings.clips_dir
    folders = [name for root in (settings.local_dir, settings.ready_dir) if root for name in names_in(root)
               if not is_hidden(name)]  # fmt: skip
    clips = [found[1] for name in (names_in(clips_dir) if clips_dir else ()) if (found := CLIP_NAME.fullmatch(name))]
    return {*settings.cameras, *(uuid for _, uuid in settings.same), *folders, *clips}


def files_of(*sources: Iterable[Listing]) -> list[Footage]:
    return [one for listings in sources for listing in listings for one in listing.files()]


def is_known(camera: str, known: Iterable[str]) -> bool:
    """A typo would protect, or archive, nothing."""
    return any(camera.lower() in names_of(name) for name in known)


def spelling(camera: str, known: Collection[str]) -> str:
    """For the end of a sentence about a camera of which nothing was found."""
    more = f" and {len(known) - CAMERAS_SHOWN} more" if len(known) > CAMERAS_SHOWN else ""
    return "" if is_known(camera, known) or not known else (
        f"; cameras that are known here: {', '.join(map(printable, sorted(known)[:CAMERAS_SHOWN]))}{more}")  # fmt: skip


def by_age(footage: Footage) -> tuple[float, int, str]:
    """Oldest first; a sidecar travels before its clip."""
    return footage.start_sec, footage.kind != "sidecar", footage.recorded


def find_footage(settings: Settings, fail: Callable[[str], None] = log.error) -> list[Footage]:
    """What waits in the sources for a target, oldest first. Odd files are reported once, and left alone; `fail` is told
    of folders that cannot be read."""
    sources = Sources(settings)
    found = files_of(sources.waiting())
    report_odd(sources, fail)
    return sorted(found, key=by_age)


def find_unproven(settings: Settings, target_id: str,
                  fail: Callable[[str], None]) -> tuple[list[Footage], SyncLog]:  # fmt: skip
    """What of it is not proven on a target, oldest first, and what the sync log says of everything that is here."""
    sources = Sources(settings)
    listings = [(listing, listing.paths()) for listing in sources.waiting()]
    here = {path: path for _, paths in listings for path in paths}
    synclog = SyncLog(settings.log_dir, here.get)
    found: list[Footage] = []
    for listing, paths in listings:
        found += replace(listing, names=list(synclog.doubtful(listing, paths, target_id))).files()
    report_odd(sources, fail)
    return sorted((one for one in found if not synclog.has_proof(one, target_id)), key=by_age), synclog


def report_odd(sources: Sources, fail: Callable[[str], None]) -> None:
    for words in sources.unread:
        fail(words)
    for reason, paths in sorted(sources.odd.items()):
        shown = ", ".join(printable(path) for path in sorted(paths)[:ODD_SHOWN])
        more = f" and {len(paths) - ODD_SHOWN} more" if len(paths) > ODD_SHOWN else ""
        log.warning("left alone, %s: %s%s", reason, shown, more)


def printable(path: str | Path) -> str:
    """A path for a log line: control characters and bytes that are no UTF-8 are shown as in the sync log."""
    return encode_path(str(path))


# --- sync log ----------------------------------------------------------------------------------------------------


def encode_path(path: str) -> str:
    if path.isascii() and path.isprintable() and "%" not in path:
        return path  # nearly all, and this is asked of every file
    return re.sub("[%\x00-\x1f\x7f\udc80-\udcff]",
                  lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape")),
                  path)  # fmt: skip


def decode_path(text: str) -> str:
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")


def record_line(record: Record) -> str:
    moment = datetime.fromtimestamp(record.at_sec, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    fields = (record.size, record.mtime_ns, record.sha256, record.target, record.proof, moment)
    text = "\t".join([encode_path(record.path), *map(str, fields)])
    return f"{text}\t{zlib.crc32(text.encode()):08x}"


def read_record(line: bytes) -> Record | None:
    """A record that is whole; None for torn, NUL-filled, bare and foreign lines."""
    body, _, crc = line.rstrip(b"\r").rpartition(b"\t")
    try:
        if zlib.crc32(body) != int(crc, 16):
            return None
        path, size, mtime_ns, sha256, target, proof, at = body.decode().split("\t")
        moment = datetime.fromisoformat(at.replace("Z", "+00:00"))  # Python 3.10 does not read the Z
        return Record(decode_path(path), int(size), int(mtime_ns), sha256, target, proof, moment.timestamp())
    except ValueError:
        return None


def prefix_of(path: str) -> str:
    """`alerts/` or `journal/` of a recorded path that is in one of these, else ""; a camera may be called so, too."""
    name, *parts = path.split("/")
    is_camera = path.endswith(FOOTAGE_SUFFIXES) and (len(parts) == 1 or DAY_FOLDER.fullmatch(parts[0]))
    return f"{name}/" if f"{name}/" in (EVIDENCE_PREFIX, JOURNAL_PREFIX) and not is_camera else ""


def paths_of(wants: Callable[[str], bool]) -> Callable[[bytes], bytes | None]:
    """For SyncLog: the paths of the cameras that are wanted."""

    @cache
    def is_wanted(folder: bytes) -> bool:
        return wants(decode_path(folder.decode("ascii", "replace")))

    return lambda path: path if is_wanted(path[: path.find(b"/")]) else None


class SyncLog:
    """`success_log_dir/YYYY-MM-DD.synced`: what is on which target, and how that is known. Append only, and never to
    an older file than the newest, so that the order of the files is that of their lines whatever the clock said.

    Only what concerns `wanted` paths is kept in memory (None: everything), so that years of logs cost little. The last
    line about a path and a target counts. A line that is not whole counts for nothing, and neither does a bare path as
    the older scripts wrote it: such a file is unproven.
    """

    def __init__(self, folder: Path, wanted: Iterable[str] | Callable[[bytes], bytes | None] | None = None) -> None:
        """`wanted`: paths, or what is given a path as it stands in the log and returns it (best one object for all its
        lines), or None where it is not wanted."""
        self.folder = folder
        self.horizon = utc_text(time.time() + HORIZON_SEC).encode()
        self.lines: dict[bytes, dict[bytes, bytes]] = {}  # target -> path -> its last line; parsed when asked for
        self.bare: set[bytes] = set()  # paths as the older scripts wrote them
        if wanted is None:
            find: Callable[[bytes], bytes | None] = lambda path: path  # noqa: E731
        elif callable(wanted):
            find = wanted
        else:
            find = {path: path for path in (encode_path(one).encode() for one in wanted)}.get
        files = sorted(folder.glob("*.synced")) if wanted != () else []
        damaged = sum(self._read(file, find) for file in files)
        if damaged:
            log.warning("%s: %s damaged lines are not believed; what they recorded is checked again", folder, damaged)

    def _read(self, file: Path, find: Callable[[bytes], bytes | None]) -> int:
        """Take in the lines about the paths that are to be found; how many of them were damaged. Written for a million
        lines, so the end of a line is taken to be as record_line() writes it, TAB and eight digits."""
        try:
            content = file.read_bytes()
        except OSError as problem:
            raise CannotStart(f"{file}: the sync log cannot be read: {problem.strerror}") from problem
        damaged, lines, crc32 = 0, self.lines, zlib.crc32
        for line in content.replace(b"\r\n", b"\n").split(b"\n"):
            fields = line.split(b"\t", 5)
            path = find(fields[0])
            if path is None:
                continue
            try:
                if crc32(line[:-9]) == int(line[-8:], 16) and line[-9] == TAB:
                    if fields[4] not in lines:
                        lines[fields[4]] = {}
                    lines[fields[4]][path] = line
                    continue
            except (ValueError, IndexError):
                pass
            if len(fields) > 1:
                damaged += 1
            else:
                self.bare.add(path)
        return damaged

    def __iter__(self) -> Iterator[Record]:
        """The last record of every path and target."""
        return filter(None, map(read_record, self.all_lines()))

    def all_lines(self) -> Iterator[bytes]:
        return (line for lines in self.lines.values() for line in lines.values())

    def line(self, path: str, target_id: str) -> bytes:
        return self.lines.get(target_id.encode(), {}).get(encode_path(path).encode(), b"")

    def get(self, path: str, target_id: str) -> Record | None:
        """The last record of a path on a target; it may be LOST, or of an earlier file of that name."""
        return read_record(self.line(path, target_id))

    def everywhere(self, path: str) -> list[Record]:
        """The last records of a path, of each target."""
        key = encode_path(path).encode()
        return list(filter(None, (read_record(lines.get(key, b"")) for lines in self.lines.values())))

    def proof(self, footage: Footage, target_id: str) -> Record | None:
        """The record that proves this very file, by path, size and time, on a target."""
        record = self.get(footage.recorded, target_id)
        return record if record and record.proves and record.is_of(footage) else None

    def has_proof(self, footage: Footage, target_id: str) -> bool:
        """The same, quickly: asked of everything that is here. Whole lines only are kept, so fields are enough."""
        line = self.line(footage.recorded, target_id)
        if not line:
            return False
        _, size, mtime_ns, _, _, proof, at, *_ = line.split(b"\t")
        return (proof != LOST.encode() and at <= self.horizon
                and (int(size), int(mtime_ns)) == (footage.size, footage.mtime_ns))  # fmt: skip

    def doubtful(self, listing: Listing, paths: Iterable[bytes], target_id: str) -> Iterator[str]:
        """The names in a folder without those that are surely proven, as they are now; has_proof() judges the rest.
        Written for 100,000 files: the line is compared as it stands, and nothing is made of a file that is proven."""
        lines, lost = self.lines.get(target_id.encode(), {}), f"\t{LOST}".encode()
        horizon = b"\t" + self.horizon  # any other byte in place of the TAB is greater, so an odd line never passes
        try:
            folder = os.open(listing.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            yield from listing.names
            return
        try:  # a name below an open folder is found faster than a whole path
            for name, path in zip(listing.names, paths, strict=True):
                line = lines.get(path)
                try:
                    status = os.stat(name, dir_fd=folder, follow_symlinks=False) if line else None
                except OSError:
                    status = None
                if not line or status is None or line[-35:-30] == lost or line[-30:-9] > horizon \
                        or not line.startswith(b"%d\t%d\t" % (status.st_size, status.st_mtime_ns), len(path) + 1) \
                        or not stat.S_ISREG(status.st_mode):  # fmt: skip
                    yield name
        finally:
            os.close(folder)

    def append(self, records: Sequence[Record]) -> None:
        """Durable when this returns. Raises CannotStart where the log cannot be written."""
        newest = max((file.stem for file in self.folder.glob("????-??-??.synced")), default="")
        days = {record: max(utc_day(record.at_sec), newest) for record in records}  # after a clock that stood wrong
        for day in sorted(set(days.values())):
            file = self.folder / f"{day}.synced"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                is_new = not file.exists()
                append_line(file, "\n".join(record_line(one) for one in records if days[one] == day))
                if is_new:
                    fsync_folder(self.folder)
            except OSError as problem:
                raise CannotStart(f"{file}: the sync log cannot be written: {problem.strerror}; nothing is deleted "
                                  "on the word of what could not be recorded") from problem  # fmt: skip
        for record in records:
            key = encode_path(record.path).encode()
            self.lines.setdefault(record.target.encode(), {})[key] = record_line(record).encode()


# --- local files -------------------------------------------------------------------------------------------------


class Hashes:
    """sha256 of local files, each read once: remembered as long as inode, size, mtime and ctime stay what they are."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, list[Any]] = read_json(file) or {}
        self.changed = False

    def of(self, footage: Footage, also: Callable[[bytes], None] | None = None) -> str:
        """Raises Gone when the file is no longer what was found, or changes while it is read; OSError as it comes.
        `also` gets every piece of the file, which is then read in any case."""
        key = str(footage.path)
        with open_same(footage) as handle:
            before = identity(os.fstat(handle.fileno()))
            known = self.known.get(key)
            remembered = str(known[-1]) if isinstance(known, list) and known[:-1] == before else ""
            if remembered and not also:
                return remembered
            digest = hashlib.sha256()
            while piece := handle.read(READ_BYTES):
                if not remembered:
                    digest.update(piece)
                if also:
                    also(piece)
            if identity(os.fstat(handle.fileno())) != before:
                raise Gone("changed while it was read")
        if remembered:
            return remembered
        self.known[key] = [*before, digest.hexdigest()]
        self.changed = True
        return digest.hexdigest()

    def save(self) -> None:
        """Forgets what is no longer there. Losing this only costs reading."""
        if not self.changed:
            return
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            printable_only = {key: value for key, value in dict(self.known).items() if key.isprintable()}
            write_json(self.file, {key: value for key, value in printable_only.items() if os.path.lexists(key)})


class Hashing(threading.Thread):
    """Hashes files while rsync sends them: what one of them has read, the other finds in memory. It does not outlive
    the process, so a signal need not wait for it."""

    def __init__(self, files: Sequence[Footage], hashes: Hashes, is_late: Callable[[], bool]) -> None:
        super().__init__(name="hashing", daemon=True)
        self.files, self.hashes, self.is_late = files, hashes, is_late
        self.hashed: dict[Footage, str] = {}
        self.failed: dict[Footage, Exception] = {}
        self.is_over = False

    def run(self) -> None:
        for footage in self.files:
            if self.is_over:
                break
            try:
                self.hashed[footage] = self.hashes.of(footage)
            except Exception as problem:  # noqa: BLE001  raised by results()
                self.failed[footage] = problem

    def results(self) -> tuple[dict[Footage, str], dict[Footage, Exception]]:
        """Of all files, or of those until time was up: what was hashed, and what vanished, changed or was not read."""
        while self.is_alive() and not self.is_late():
            self.join(LOOK_SEC)
        self.is_over = True
        failed = dict(self.failed)
        for problem in failed.values():
            if not isinstance(problem, (Gone, OSError)):
                raise problem
        return dict(self.hashed), failed

    def __enter__(self) -> Hashing:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True


def identity(status: os.stat_result) -> list[int]:
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


@contextmanager
def open_same(footage: Footage) -> Iterator[IO[bytes]]:
    """The file, if it still is what was found. Raises Gone."""
    try:
        handle = os.open(footage.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as problem:
        if problem.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            raise Gone("vanished") from problem
        raise
    with open(handle, "rb", buffering=0) as opened:  # noqa: PTH123  a descriptor
        status = os.fstat(opened.fileno())
        if (status.st_size, status.st_mtime_ns) != (footage.size, footage.mtime_ns) or not stat.S_ISREG(status.st_mode):
            raise Gone("changed")
        yield opened


def has_writer(path: Path) -> bool | None:
    """Whether any process has the file open for writing; None where the filesystem or our rights do not tell."""
    try:
        import fcntl

        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (ImportError, OSError):
        return None
    try:
        fcntl.fcntl(handle, F_SETSIG, signal.SIGURG)  # who opens it meanwhile must not end us by SIGIO
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as problem:
        return True if problem.errno == errno.EAGAIN else None
    finally:
        os.close(handle)
    return False


def finished(found: Sequence[Footage], segment_sec: float) -> list[Footage]:
    """Those that nobody writes any more: no writer, and size and time stand still; never by age alone.

    Where writers cannot be seen (network mounts, files of others) a recording also needs a later one of its camera, or
    two segment lengths without a change.
    """
    latest = {one.camera: one.start_sec for one in sorted(found, key=by_age) if one.kind == "recording"}
    now = time.time()
    settled, doubtful = [], []
    for one in found:
        writer = has_writer(one.path)
        age_sec = now - one.mtime_ns / 1e9
        if one.kind == "journal" and one.path.stem > utc_day(now - JOURNAL_OPEN_SEC):
            continue
        if writer is False and age_sec >= STILL_SEC:
            settled.append(one)
        elif writer is False or (writer is None and (
                one.kind != "recording" or latest[one.camera] > one.start_sec or age_sec > 2 * segment_sec)):
            doubtful.append((one, writer))
        else:
            log.debug("%s: still being written, or nobody can tell; left for later", printable(one.recorded))
    if doubtful:
        time.sleep(STILL_SEC if all(writer is False for _, writer in doubtful) else UNSEEN_STILL_SEC)
        settled += [one for one, _ in doubtful if is_unchanged(one) and has_writer(one.path) is not True]
    return sorted(settled, key=by_age)


def is_unchanged(footage: Footage) -> bool:
    try:
        status = footage.path.lstat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == (footage.size, footage.mtime_ns)


# --- organize ----------------------------------------------------------------------------------------------------


def organized_name(footage: Footage) -> str:
    """Where a recording or a clip belongs below the ready folder; the date is the UTC date of its start."""
    return f"{footage.camera}/{utc_day(footage.start_sec)}/{Path(footage.relative).name}"


def other_names(name: str) -> Iterator[str]:
    """`a.mp4`, then `a_1.mp4`, ...: for namesakes with other content."""
    yield name
    stem, dot, suffix = name.rpartition(".")
    number = 0
    while True:
        number += 1
        yield f"{stem}_{number}{dot}{suffix}"


def organize(work: Work) -> None:
    """Move finished recordings and clips to the ready folder, by camera and date."""
    settings = work.settings
    if not settings.ready_dir:
        raise UsageError("organize: nas.ready_for_backup_dir is not set; without it files are archived where they are")
    sources = Sources(settings)
    found = sorted(files_of(sources.recorded(), sources.downloaded()), key=by_age)
    report_odd(sources, work.fail_once)
    # A sidecar after its clip: it tells the date of both, also to a run that finds only the clip left.
    ready = work.limited("organize", sorted(finished(found, work.segment_sec),
                                key=lambda one: (one.start_sec, one.kind == "sidecar", one.recorded)))  # fmt: skip
    if settings.dry_run:
        return work.show_plan("organize", ready)
    work.counts.setdefault("organize", Counter())
    synced = archived_names(settings.log_dir, ready)
    for place, footage in enumerate(ready):
        if settings.time_is_up():
            return work.late("organize", len(ready) - place)
        try:
            moved_to = move(footage, settings.ready_dir, synced, work.hashes)
        except Gone as problem:
            work.tell("organize", footage, "later", str(problem))
        except OSError as problem:
            work.tell("organize", footage, "failed", problem.strerror or str(problem))
        else:
            kept = moved_to.name != Path(footage.relative).name
            work.tell("organize", footage, "conflict" if kept else "organized",
                      f"its name is taken by other footage; kept as {printable(moved_to.name)}" if kept else "")
    return None


def archived_names(log_dir: Path, files: Sequence[Footage]) -> SyncLog:
    """What the sync log knows of the names that `files` may get, up to one of each that was never archived."""
    depth = 1
    while True:
        names = [list(islice(other_names(organized_name(one)), depth)) for one in files]
        known = SyncLog(log_dir, [name for listed in names for name in listed])
        if not any(known.everywhere(listed[-1]) for listed in names):
            return known
        depth *= 4


def move(footage: Footage, ready_dir: Path, archived: SyncLog, hashes: Hashes) -> Path:
    """Into the ready folder under the first name that is free there and in the archive; never overwrites.

    A crash leaves the file under its old name, under both, or under the new one; moving again ends all three alike.
    """
    for relative in other_names(organized_name(footage)):
        final = ready_dir / relative
        if any(one.size != footage.size or one.sha256 != hashes.of(footage) for one in archived.everywhere(relative)):
            continue  # other footage of this name is in the archive, as after a repeated hour
        final.parent.mkdir(parents=True, exist_ok=True)
        drop_reserved(final)
        if os.path.lexists(final):
            if not is_same_content(footage, final, hashes):
                continue
        elif not put(footage, final, hashes):
            continue
        if not is_unchanged(footage) or has_writer(footage.path):
            if final.samefile(footage.path):
                final.unlink()
            raise Gone("it is being written again, so it stays where it was")
        fsync_folder(final.parent)
        footage.path.unlink()
        fsync_folder(footage.path.parent)
        return final
    raise AssertionError("names do not end")


def is_same_content(footage: Footage, other: Path, hashes: Hashes) -> bool:
    if not other.is_file() or other.is_symlink():
        return False
    if other.samefile(footage.path):
        return True
    status = other.stat()
    twin = replace(footage, root=other.parent, relative=other.name, mtime_ns=status.st_mtime_ns)
    return status.st_size == footage.size and hashes.of(twin) == hashes.of(footage)


def put(footage: Footage, final: Path, hashes: Hashes) -> bool:
    """A link, else a checked copy, under a new name; False when the name is taken meanwhile."""
    try:
        os.link(footage.path, final, follow_symlinks=False)
        return True
    except FileExistsError:
        return False
    except OSError as problem:
        if problem.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES):
            raise
    part = final.with_name(f"{final.name}.nas_sync.part")
    try:
        copy_checked(footage, part, hashes)
        return publish(part, final)
    finally:
        part.unlink(missing_ok=True)


def copy_checked(footage: Footage, part: Path, hashes: Hashes) -> None:
    """Copy, sync, read back, compare. Raises Gone when the source changes, OSError when the copy is not the same."""
    expected = hashes.of(footage)
    with open_same(footage) as source, part.open("wb") as target:
        shutil.copyfileobj(source, target, READ_BYTES)
        target.flush()
        os.fsync(target.fileno())
    os.utime(part, ns=(footage.mtime_ns, footage.mtime_ns))
    shutil.copymode(footage.path, part)
    status = part.stat()  # some filesystems keep times less finely
    with part.open("rb") as copied, suppress(AttributeError, OSError):
        os.posix_fadvise(copied.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # read back from the disk, not from memory
    written = replace(footage, root=part.parent, relative=part.name, size=status.st_size, mtime_ns=status.st_mtime_ns)
    if not is_unchanged(footage):
        raise Gone("changed while it was copied")
    if hashes.of(written) != expected:
        raise OSError(errno.EIO, "the copy differs from the original; the disk or its memory is not well")


def publish(part: Path, final: Path) -> bool:
    """Give a finished file its name, which must be free; without links an empty file reserves it."""
    try:
        os.link(part, final)
    except FileExistsError:
        return False
    except OSError:
        try:
            final.touch(exist_ok=False)
        except FileExistsError:
            return False
        part.replace(final)
    fsync_folder(final.parent)
    return True


def drop_reserved(final: Path) -> None:
    """Remove the empty file that a run left when it was killed in publish()."""
    if final.is_file() and not final.is_symlink() and not final.stat().st_size:
        final.unlink()


# --- NAS by rsync ------------------------------------------------------------------------------------------------


def split_options(given: Sequence[Any]) -> list[str]:
    """nas.rsync_options as a list of words; existing installations also have one string with all of them."""
    words = [str(one) for one in given]
    return shlex.split(words[0]) if len(words) == 1 and " " in words[0] else words


def short_letters(word: str) -> str:
    """The single-letter options in a word such as `-avz`, up to the first that takes a value."""
    if not re.match(r"-[^-]", word):
        return ""
    found = re.match(r"[^efBTM@]*[efBTM@]?", word[1:])
    return found[0] if found else ""


def check_options(words: Sequence[str]) -> None:
    """UsageError for what could lose footage or blind the proof."""
    values = {place + 1 for place, word in enumerate(words) if takes_next(word)}
    for place, word in enumerate(words):
        name = word.partition("=")[0]
        if place in values:
            continue
        if not word.startswith("-") or word == "--":
            raise UsageError(f"nas.rsync_options: {word!r} is no option; the target belongs into nas.nas_target_dir")
        if name.startswith(REFUSED_OPTIONS) or "n" in short_letters(word):
            raise UsageError(f"nas.rsync_options: {word} is refused: it can delete or overwrite footage, or keeps "
                             "the copy from being proven")  # fmt: skip


def takes_next(word: str) -> bool:
    """Whether the next word is the value of this one: `-e ssh`, `--rsh ssh`, but not `--rsh=ssh`."""
    letters = short_letters(word)
    if letters:
        return letters[-1] in "efBTM@" and len(letters) == len(word) - 1
    return word in TAKING_OPTIONS


def connection_options(words: Sequence[str]) -> list[str]:
    """Of the user's options those that say how the target is reached."""
    kept: list[str] = []
    for place, word in enumerate(words):
        if place and takes_next(words[place - 1]):
            continue
        letters = short_letters(word)
        if word.partition("=")[0] in CONNECTION_OPTIONS:
            kept += words[place : place + 2] if takes_next(word) else [word]
        elif letters and letters[-1] in "eM":
            start = len(letters)
            kept += [f"-{letters[-1]}", word[start + 1 :] or words[place + 1]]
        kept += [f"-{letter}" for letter in letters if letter in "46s"]
    return kept


def read_items(output: bytes) -> dict[str, str]:
    """Path -> what rsync's -ii says of it, from lines of `--out-format=%i %n`."""
    items: dict[str, str] = {}
    for line in output.split(b"\n"):
        if re.match(rb"[<>ch.*][fdLDS][^ ]{9} ", line + b" ") or re.match(rb"[<>ch.]f {9} ", line):
            name = re.sub(rb"\\#([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line[12:])
            items[name.decode("utf-8", "surrogateescape")] = line[:11].decode("latin-1")
    return items


def judge(item: str | None) -> str:
    """What a line of the checksum pass means: proven, conflict, or missing."""
    if item is None or item[1] != "f" or "+" in item:
        return "missing"
    return "proven" if item[0] == "." and item[2] != "c" else "conflict"


@dataclass(frozen=True)
class RsyncResult:
    status: int
    output: bytes
    words: str  # the last lines of stderr

    @property
    def is_complete(self) -> bool:
        """It has spoken about every file that it could read; 23 and 24 are single files."""
        return self.status in (0, 23, 24)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End rsync and its ssh; also when rsync itself has gone and its child holds on."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except (ProcessLookupError, PermissionError):
            break
        end = time.monotonic() + KILL_AFTER_SEC
        while time.monotonic() < end and is_group_alive(process):
            time.sleep(STEP_SEC)
    process.poll()


def moved_bytes(pid: int) -> float:
    """What Linux counts as read and written by a process; elsewhere rsync's own timeout has to do."""
    try:
        return float(sum(map(int, re.findall(r"char: (\d+)", Path(f"/proc/{pid}/io").read_text(encoding="ascii")))))
    except OSError:
        return time.monotonic() * KEEP_ALIVE_BYTES * 1000


def is_group_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # else its zombie would count
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def right_id(target: Target, found: str | None, memory: Memory, doubts: str, other: str) -> str:
    """The id that was found, when it is the one that we know. Raises CannotStart."""
    expected, where = memory.of(target.name).get("id"), f"{target.name}: {target.address}"
    if not found:
        raise CannotStart(f"{where} holds no {TARGET_FILE}: {doubts}, run once: nas_sync.py target init")
    if found != expected:
        known = f"expected was {expected}: {other}" if expected else "which this host does not know yet."
        raise CannotStart(f"{where} is target {found}, {known} If you mean it, run: nas_sync.py target init")
    return found


class NasTarget:
    """The NAS: a mounted path, `user@host:/path` or `rsync://host/module`. Only children of ours ever touch it, so a
    mount that hangs cannot hang us."""

    name = "nas"

    def __init__(self, settings: Settings, memory: Memory, lock_fd: int | None,
                 is_recorded: Callable[..., bool]) -> None:  # fmt: skip
        self.settings, self.memory, self.lock_fd, self.is_recorded = settings, memory, lock_fd, is_recorded
        self.address = str(settings.nas["nas_target_dir"]).rstrip("/") or "/"
        self.address = str(folder_of(self.address)) if self.is_path else self.address
        self.options = split_options(settings.nas["rsync_options"])
        check_options(self.options)
        self.timeout_sec = settings.nas["timeout"]
        self.target_id = ""
        self.rsync = ""

    # -- the id --

    def open(self) -> None:
        self.rsync = find_program("rsync", "copies to the NAS", "install it from your system: apt-get install rsync")
        self.target_id = right_id(self, self._read_id(), self.memory, "not mounted, mistyped, or not prepared yet; if "
                                  "it is the right place", "another share?")  # fmt: skip

    def _read_id(self) -> str | None:
        """The id in the target's root; None when there is none. Raises CannotStart when the target cannot be asked."""
        with tempfile.TemporaryDirectory(prefix=scratch(self.settings)) as folder:
            done = self._call(["-t", f"{self._place('')}{TARGET_FILE}", f"{folder}/"])
            try:
                text = Path(folder, TARGET_FILE).read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                text = ""
        if re.fullmatch(r"[0-9a-f]{16}", text):
            return text
        if done.status in (0, 23, 24) or (done.status == 3 and ":" not in self.address):
            return None
        raise CannotStart(f"nas: {self.address} cannot be reached: {explain(done)}")

    def initialise(self) -> str:
        self.rsync = find_program("rsync", "copies to the NAS", "install it from your system: apt-get install rsync")
        if self.is_path and not Path(self.address).is_dir():
            raise CannotStart(f"nas: {self.address} is no folder; mount or make it first")
        found = self._read_id()
        if not found:
            with tempfile.TemporaryDirectory(prefix=scratch(self.settings)) as folder:
                file = Path(folder, TARGET_FILE)
                file.write_text(secrets.token_hex(8) + "\n", encoding="ascii")
                done = self._call(["-t", "--ignore-existing", str(file), self._place("")])
            found = self._read_id()
            if not found:
                raise CannotStart(f"nas: {self.address}: {TARGET_FILE} could not be written: {explain(done)}")
        self.memory.put("nas", {"id": found, "address": self.address})
        return found

    def check(self) -> list[str]:
        lines = [f"nas: {self.address} answers and is target {self.target_id}"]
        with tempfile.TemporaryDirectory(prefix=scratch(self.settings)) as folder:
            Path(folder, TARGET_FILE).write_text(f"{self.target_id}\n", encoding="ascii")
            done = self._copy(Path(folder), [TARGET_FILE], "", [])
        if not done.is_complete or done.status:
            raise CannotStart(f"nas: {self.address}: {explain(done)}")
        syncs = "syncs what it writes" if self.syncs else "knows no --fsync, so the grace time is longer"
        return [*lines, f"nas: its rsync {syncs}"]

    @property
    def is_path(self) -> bool:
        return ":" not in self.address.partition("/")[0]

    @property
    def is_ssh(self) -> bool:
        """With -e a daemon, too, would be looked for behind ssh."""
        return not self.is_path and not self.address.startswith("rsync://") and "::" not in self.address

    @property
    def syncs(self) -> bool:
        return bool(self.memory.of("nas").get("fsync", True))

    def _place(self, prefix: str) -> str:
        """`prefix` below the target's root as rsync takes it; a path that begins with a dash is none of its options."""
        return f"{self.address.rstrip('/')}/{prefix}"

    # -- rsync --

    def _call(self, arguments: Sequence[str], names: bytes = b"", *, more_sec: float = 0,
              watch: Callable[[Path], None] | None = None) -> RsyncResult:  # fmt: skip
        """Run rsync in a session of its own, with output to files: no pipe that a left-over ssh could keep open.

        Its own --timeout covers neither the handshake nor a mount that hangs, and its own keep-alives put it off: so
        it is ended when it moves next to nothing.
        """
        *options, source, place = arguments
        patience_sec = round(self.timeout_sec + more_sec)
        command = [self.rsync, f"--timeout={patience_sec}", *(["-e", SSH] if self.is_ssh else []), *options,
                   *connection_options(self.options), "--", source, place]  # fmt: skip
        return self._watched(command, names, patience_sec + QUIET_MORE_SEC, lambda pid, _out: moved_bytes(pid),
                             KEEP_ALIVE_BYTES, watch)  # fmt: skip

    def _watched(self, command: Sequence[str], names: bytes, patience_sec: float, moved: Callable[[int, Path], float],
                 least: float, watch: Callable[[Path], None] | None = None) -> RsyncResult:  # fmt: skip
        """A child with these names on its standard input; ended when what it has `moved` grows by no more than `least`
        for so long."""
        log.debug("running %s", shlex.join(command))
        with tempfile.TemporaryDirectory(prefix=scratch(self.settings)) as folder:
            listed, out, said = (Path(folder, name) for name in ("names", "out", "said"))
            listed.write_bytes(names)
            with listed.open("rb") as stdin, out.open("wb") as stdout, said.open("wb") as stderr:
                process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True,
                                           pass_fds=[self.lock_fd] if self.lock_fd is not None else [])
            try:
                before, moved_at = 0.0, time.monotonic()
                looked_at = moved_at
                while process.poll() is None:
                    if (now := moved(process.pid, out)) > before + least:
                        before, moved_at = now, time.monotonic()
                    if self.settings.time_is_up() or time.monotonic() - moved_at > patience_sec:
                        break
                    if watch and time.monotonic() - looked_at > LOOK_SEC:
                        looked_at = time.monotonic()
                        watch(out)
                    time.sleep(STEP_SEC)
                status = process.poll()
            finally:
                end_group(process)
            words = said.read_bytes()[-2000:].decode("utf-8", "replace").strip()
            return RsyncResult(TIMED_OUT if status is None else status, out.read_bytes(), words)

    def _copy(self, root: Path, names: Sequence[str], prefix: str, more: Sequence[str], more_sec: float = 0,
              watch: Callable[[Path], None] | None = None) -> RsyncResult:  # fmt: skip
        """One call for all `names`. Where the target's rsync knows no --fsync, once more without, remembered."""
        limit = self.settings.bwlimit_bytes_per_sec
        options = ["-t", "--partial-dir=.rsync-partial", *self.options, "--omit-dir-times", "--no-links",
                   "--out-format=%i %n", *([f"--bwlimit={max(1, round(limit / 1024))}"] if limit else []), *more,
                   "--files-from=-", "--from0"]  # fmt: skip
        places, listed = [f"{root}/", self._place(prefix)], as_list(names)
        done = self._call([*options, *(["--fsync"] if self.syncs else []), *places], listed, more_sec=more_sec,
                          watch=watch)  # fmt: skip
        if self.syncs and done.status in (1, 2, 4, 12) and re.search("fsync.*unknown option", done.words):
            log.warning("nas: the target's rsync knows no --fsync: a power cut there can take back what it confirmed; "
                        "files stay here for at least %s s after their proof", UNSYNCED_GRACE_SEC)  # fmt: skip
            self.memory.put("nas", {**self.memory.of("nas"), "fsync": False})
            done = self._call([*options, *places], listed, more_sec=more_sec, watch=watch)
        return done

    def _compare(self, batch: Sequence[Footage], *options: str) -> dict[str, str]:
        """`recorded` path -> rsync's verdict, without changing anything. Raises CannotStart."""
        items: dict[str, str] = {}
        for (root, prefix), group in grouped(batch):
            more_sec = max(one.size for one in group) / PROOF_BYTES_PER_SEC  # of silence, while it reads one file
            done = self._call(["-t", "--dry-run", "-ii", "--no-links", "--out-format=%i %n", *options,
                               "--files-from=-", "--from0", f"{root}/", self._place(prefix)],
                              as_list([one.relative for one in group]), more_sec=more_sec)  # fmt: skip
            if not done.is_complete:
                raise CannotStart(f"nas: {self.address}: what arrived cannot be checked: {explain(done)}")
            items |= {prefix + name: item for name, item in read_items(done.output).items()}
        return items

    # -- files --

    def send(self, batch: Sequence[Footage], hashes: Hashes, progress: Progress) -> list[list[Outcome]]:
        outcomes, same = [], []
        for footage in batch:
            try:
                with open_same(footage):
                    same.append(footage)
            except (Gone, OSError) as problem:
                outcomes.append(gone(footage, problem))
        with Hashing(same, hashes, self.settings.time_is_up) as hashing:
            failures = self._transfer(same, ["--ignore-existing"], progress)
            hashed, failed = hashing.results()
        outcomes += [gone(footage, problem) for footage, problem in failed.items()]
        items = self._compare(list(hashed), "--checksum") if hashed else {}
        damaged = [one for one in hashed
                   if judge(items.get(one.recorded)) == "conflict" and self.is_recorded(one, self.target_id)]
        if damaged:
            suffix = time.strftime(".damaged-%Y%m%dT%H%M%SZ", time.gmtime())
            log.warning("nas: %s files that had been proven differ there now; sent again, what is there is kept as "
                        "*%s", len(damaged), suffix)  # fmt: skip
            failures += self._transfer(damaged, ["--checksum", "--backup", f"--suffix={suffix}"], progress)
            items |= self._compare(damaged, "--checksum")
        if self._read_id() != self.target_id:
            raise CannotStart(f"nas: {self.address} changed while files were sent: it was unmounted or replaced; "
                              "nothing of this batch counts as archived")  # fmt: skip
        proof = "checksum" if self.syncs else "checksum-unsynced"
        for footage, sha256 in hashed.items():
            outcomes.append(self._outcome(footage, sha256, proof, items.get(footage.recorded), failures, hashes))
        return [outcomes]

    def _transfer(self, batch: Sequence[Footage], more: Sequence[str], progress: Progress) -> list[str]:
        """Whatever happens is seen in the proof; returns what rsync complained about."""
        failures = []
        for (root, prefix), group in grouped(batch):
            sizes = {one.relative: one.size for one in group}
            done = self._copy(root, list(sizes), prefix, more, max(sizes.values()) / PROOF_BYTES_PER_SEC,
                              progress.watcher(sizes))  # fmt: skip
            if done.status:
                level = logging.DEBUG if done.status in (23, 24) else logging.WARNING
                log.log(level, "nas: %s", quotable(explain(done)))
                failures.append(explain(done))
        return failures

    def _outcome(self, footage: Footage, sha256: str, proof: str, item: str | None, failures: Sequence[str],
                 hashes: Hashes) -> Outcome:  # fmt: skip
        verdict = judge(item)
        try:
            if hashes.of(footage) != sha256:
                return Outcome(footage, "changed", why="changed while it was sent")
        except (Gone, OSError) as problem:
            return gone(footage, problem)
        if verdict == "proven":
            return Outcome(footage, "proven", sha256, proof)
        if verdict == "conflict":
            return Outcome(footage, "conflict", sha256, why="the NAS has other content under this name; both are kept")
        return Outcome(footage, "failed", sha256, why=failures[-1] if failures else "it did not arrive")

    def present(self, proven: Sequence[Archived], hashes: Hashes) -> set[str]:  # noqa: ARG002  a bucket needs them
        batch = [one.footage for one in proven]
        items = self._compare(batch) if batch else {}
        touched = [one for one in batch if (item := items.get(one.recorded)) and item[4] == "t" and item[3] != "s"]
        items |= self._compare(touched, "--checksum") if touched else {}  # another time: written since, or never set
        if batch and self._read_id() != self.target_id:
            raise CannotStart(f"nas: {self.address} was unmounted or replaced; nothing is deleted")
        self._refuse_same(batch)
        return {path for path, item in items.items()
                if item[1] == "f" and "+" not in item and item[2] != "c" and item[3] != "s"}  # fmt: skip

    def _refuse_same(self, batch: Sequence[Footage]) -> None:
        """Raises CannotStart where a file on a mounted target is the local one: a link, or a folder mounted twice."""
        for one in batch if self.is_path else ():
            with suppress(OSError):
                if os.path.samestat(one.path.lstat(), Path(self.address, one.recorded).stat()):
                    raise CannotStart(f"nas: {printable(one.recorded)} there and here is one and the same file, not a "
                                      "copy; nothing is deleted")  # fmt: skip

    # -- reading --

    def verify(self, batch: Sequence[Archived], hashes: Hashes, *, deep: bool) -> list[Finding]:
        here, away = ([one for one in batch if one.is_local is wanted] for wanted in (True, False))
        items = self._compare([one.footage for one in here], "--checksum") if here else {}
        findings = [self._compared(one, items.get(one.footage.recorded), hashes) for one in here]
        findings += self._weigh(away, deep=deep) if away else []
        if self._read_id() != self.target_id:
            raise CannotStart(f"nas: {self.address} was unmounted or replaced; what was found there counts for nothing")
        return findings

    def _compared(self, one: Archived, item: str | None, hashes: Hashes) -> Finding:
        try:
            same = hashes.of(one.footage) == one.record.sha256
        except (Gone, OSError) as problem:
            return Finding(one, "unreadable", "presence", f"the file here: {gone(one.footage, problem).why}")
        verdict = judge(item)
        if verdict == "missing":
            return missing(one)
        if not same or (verdict == "conflict" and sha256_of(one.footage.path) != one.record.sha256):
            return Finding(one, "different", "checksum", HERE_IS_OTHER)
        if verdict == "conflict":
            return different(one, "checksum")
        return Finding(one, "verified", "checksum", proof="checksum" if self.syncs else "checksum-unsynced")

    def _weigh(self, batch: Sequence[Archived], *, deep: bool) -> list[Finding]:
        """Of files that are not here any more: by content where the target can hash, or is read back; else by size."""
        found = self._hash_there(batch)
        if found is None and deep:
            found = self._hash_back(batch)
        if found is not None:
            return [hashed(one, found[one.footage.recorded]) for one in batch if one.footage.recorded in found]
        sizes = self._sizes([one.footage for one in batch])
        return [sized(one, sizes.get(one.footage.recorded)) for one in batch]

    def _hash_there(self, batch: Sequence[Archived]) -> dict[str, str] | None:
        """`recorded` -> its sha256 on the target, "missing" or "unreadable"; None where we may run nothing there."""
        host, _, root = ("", "", self.address) if self.is_path else self.address.partition(":")
        if not self.is_path and not self.is_ssh:
            return None
        script = f"cd -- {shlex.quote(root.removeprefix('~/') or '.')} && command -v sha256sum >/dev/null && {HASH_ALL}"
        command = ["sh", "-c", script] if self.is_path else [
            *self._shell(), host.replace("[", "").replace("]", ""), f"exec sh -c {shlex.quote(script)}"]  # fmt: skip
        patience_sec = self.timeout_sec + max(one.record.size for one in batch) / PROOF_BYTES_PER_SEC
        lines = self._ask(command, as_list(one.footage.recorded for one in batch), patience_sec)
        if not lines and not self.settings.time_is_up():
            return None
        return {one.footage.recorded: line for one, line in zip(batch, lines, strict=False)}

    def _shell(self) -> list[str]:
        """How the user's rsync reaches the target."""
        words = connection_options(self.options)
        for place, word in enumerate(words):
            if word in ("-e", "--rsh"):
                return shlex.split(words[place + 1])
            if word.startswith("--rsh="):
                return shlex.split(word[6:])
        return shlex.split(os.environ.get("RSYNC_RSH") or SSH)

    def _ask(self, command: Sequence[str], names: bytes, patience_sec: float) -> list[str]:
        """The whole lines that a command says about these names; ended when it says nothing for so long."""
        done = self._watched(command, names, patience_sec, lambda _pid, out: out.stat().st_size, 0)
        if done.words:
            log.debug("nas: %s", quotable(done.words))
        return done.output.decode("ascii", "replace").split("\n")[:-1]

    def _sizes(self, batch: Sequence[Footage]) -> dict[str, int]:
        """`recorded` -> size on the target, of those that are there."""
        with tempfile.TemporaryDirectory(prefix=scratch(self.settings)) as empty:
            done = self._call(["--dry-run", "--no-links", "--out-format=%i %l %n", "--files-from=-", "--from0",
                               self._place(""), f"{empty}/"], as_list(one.recorded for one in batch))  # fmt: skip
        if not done.is_complete:
            raise CannotStart(f"nas: {self.address}: what is there cannot be listed: {explain(done)}")
        items = (words.split(" ", 1) for words, item in read_items(done.output).items() if item[1] == "f")
        return {name: int(size) for size, name in items}

    def _hash_back(self, batch: Sequence[Archived]) -> dict[str, str]:
        """The same as _hash_there, by reading back through a temporary folder."""
        sizes = self._sizes([one.footage for one in batch])
        found = {one.footage.recorded: "missing" for one in batch if one.footage.recorded not in sizes}
        for group in batches([one.footage for one in batch if one.footage.recorded in sizes], READ_BACK_BYTES):
            if self.settings.time_is_up():
                break
            need_room(self.settings.state_dir, sum(sizes[one.recorded] for one in group))
            with tempfile.TemporaryDirectory(prefix=scratch(self.settings), dir=self.settings.state_dir) as folder:
                brought = self.bring(group, Path(folder))
                found |= {one.recorded: sha256_of(brought[one.recorded]) if one.recorded in brought else "unreadable"
                          for one in group if one.recorded in brought or not self.settings.time_is_up()}  # fmt: skip
        return found

    def _module(self) -> tuple[str, str]:
        """Where names are read from, and what stands before each: a daemon of rsync 3.5 lists names below a folder of
        a module, and then takes each of them for vanished."""
        found = re.fullmatch(r"(rsync://[^/]+/[^/]+|[^/]*::[^/]+)/(.+)", self.address)
        return (f"{found[1]}/", f"{found[2]}/") if found else (self._place(""), "")

    def bring(self, batch: Sequence[Footage], folder: Path) -> dict[str, Path]:
        limit = self.settings.bwlimit_bytes_per_sec
        more_sec = max(one.size for one in batch) / PROOF_BYTES_PER_SEC
        source, below = self._module()
        done = self._call(["-t", "--no-links", *([f"--bwlimit={max(1, round(limit / 1024))}"] if limit else []),
                           "--files-from=-", "--from0", source, f"{folder}/"],
                          as_list(below + one.recorded for one in batch), more_sec=more_sec)  # fmt: skip
        if done.status:
            log.warning("nas: %s", quotable(explain(done)))
        there = {one.recorded: folder / (below + one.recorded) for one in batch}
        return {recorded: path for recorded, path in there.items() if path.is_file() and not path.is_symlink()}

    def close(self) -> None:
        """Nothing stays open between calls."""


def as_list(names: Iterable[str]) -> bytes:
    return b"".join(name.encode("utf-8", "surrogateescape") + b"\0" for name in names)


def grouped(batch: Iterable[Footage]) -> list[tuple[tuple[Path, str], list[Footage]]]:
    """One rsync call each: files of one source with one prefix, in their order."""
    groups: dict[tuple[Path, str], list[Footage]] = {}
    for one in batch:
        groups.setdefault((one.root, one.prefix), []).append(one)
    return list(groups.items())


def gone(footage: Footage, problem: Exception) -> Outcome:
    if isinstance(problem, Gone):
        return Outcome(footage, "vanished" if str(problem) == "vanished" else "changed", why=str(problem))
    return Outcome(footage, "failed", why=f"cannot be read: {getattr(problem, 'strerror', None) or problem}")


def explain(done: RsyncResult) -> str:
    """rsync's exit status in words, and the line of its stderr that says most."""
    lines = [line for line in done.words.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("rsync error:", "rsync warning:"))]
    meaning = RSYNC_STATUS.get(done.status, f"status {done.status}")
    return f"rsync: {meaning}" + (f" ({(telling or lines)[0].strip()})" if lines else "")


def quotable(words: str) -> str:
    """For a log line that is no ERROR: people search logs for that word."""
    return re.sub("(?i)error", "failure", words)


# --- S3 ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Abilities:
    """What an endpoint has been SEEN to do, by `probe`. A promise of its manual or an echo in a response is nothing."""

    algorithm: str = ""  # CRC64NVME or CRC32 when a wrong one is refused and a right one is stored intact
    parts: bool = False  # the same for the parts of a multipart upload
    multipart: bool = False
    keeps: bool = False  # If-None-Match: a put never overwrites
    keeps_multipart: bool = False
    at_sec: float = 0
    address: str = ""  # behind another endpoint the same bucket may do other things

    def words(self) -> list[str]:
        checks = f"a wrong {self.algorithm} is refused{'' if self.parts else ', but not in multipart uploads'}"
        keeps = "kept" if self.keeps and self.keeps_multipart else "kept in part" if self.keeps else "ignored"
        return [
            f"s3: {checks if self.algorithm else 'checksums are not checked; proof is the ETag, or reading back'}",
            f"s3: If-None-Match is {keeps}; a key is looked at before it is written",
            f"s3: multipart uploads {'work' if self.multipart else 'do not work; files go in one piece'}",
        ]


@dataclass(frozen=True)
class Digests:
    """What a file is, read once: its sha256, and the checksums that are sent along."""

    sha256: str
    whole: str = ""  # base64, as S3 writes it
    parts: tuple[str, ...] = ()


class Checksum:
    """A running CRC64NVME or CRC32 of a file and of its parts."""

    def __init__(self, algorithm: str, part_bytes: int) -> None:
        self.algorithm, self.part_bytes = algorithm, part_bytes
        self.whole = self.part = self.filled = 0
        self.parts: list[str] = []

    def add(self, piece: bytes) -> None:
        self.whole = self._next(piece, self.whole)
        while piece:
            head, piece = piece[: self.part_bytes - self.filled], piece[self.part_bytes - self.filled :]
            self.part, self.filled = self._next(head, self.part), self.filled + len(head)
            if self.filled == self.part_bytes:
                self.close_part()

    def close_part(self) -> None:
        if self.filled:
            self.parts.append(self.text(self.part))
        self.part = self.filled = 0

    def _next(self, piece: bytes, before: int) -> int:
        if self.algorithm == "CRC32":
            return zlib.crc32(piece, before)
        from awscrt import checksums

        return int(checksums.crc64nvme(piece, before))

    def text(self, value: int) -> str:
        return base64.b64encode(value.to_bytes(4 if self.algorithm == "CRC32" else 8, "big")).decode()

    @classmethod
    def of(cls, content: bytes, algorithm: str) -> str:
        one = cls(algorithm, len(content) + 1)
        one.add(content)
        return one.text(one.whole)


def key_of(footage: Footage) -> str:
    """`CAMERA/YYYY/MM/DD/name`, the UTC date of its start; evidence and journals keep their path below their prefix."""
    if footage.kind in ("evidence", "journal"):
        return encode_path(footage.recorded)
    name = footage.relative.rpartition("/")[2]
    return encode_path(f"{footage.camera}/{utc_day(footage.start_sec).replace('-', '/')}/{name}")


def part_bytes_of(size: int) -> int:
    """As the transfer manager cuts: at most 10,000 parts."""
    part_bytes = S3_PART_BYTES
    while -(-size // part_bytes) > S3_MOST_PARTS:
        part_bytes *= 2
    return part_bytes


def has_etag(footage: Footage, etag: str) -> bool:
    """Whether an ETag is the MD5 of the file, or of the MD5s of parts as we cut them. Reads the file. Raises Gone."""
    found = re.fullmatch(r'"?([0-9a-f]{32})(?:-(\d+))?"?', etag)
    part_bytes = part_bytes_of(footage.size) if found and found[2] else footage.size
    if not found or (found[2] and int(found[2]) != -(-footage.size // part_bytes)):
        return False
    digests = []
    with open_same(footage) as handle:
        for start in range(0, footage.size, part_bytes):
            digest, left = hashlib.md5(usedforsecurity=False), min(part_bytes, footage.size - start)
            while left and (piece := handle.read(min(left, READ_BYTES))):
                digest.update(piece)
                left -= len(piece)
            digests.append(digest)
    whole = hashlib.md5(b"".join(one.digest() for one in digests), usedforsecurity=False) if found[2] else digests[0]
    return whole.hexdigest() == found[1]


def code_of(problem: Exception) -> str:
    """S3's word for what went wrong; "" for a problem of the connection."""
    return str(getattr(problem, "response", {}).get("Error", {}).get("Code", ""))


def http_status(problem: Exception) -> int:
    return int(getattr(problem, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def explain_s3(problem: Exception) -> str:
    """One sentence for what boto3 raised."""
    code, text = code_of(problem), str(problem).rpartition("operation: ")[2].strip().rstrip(".")
    if code == "RequestTimeTooSkewed":
        return "the clock of this host is wrong, so its signatures are refused; set the clock"
    if code in S3_KEY_REFUSED:
        return f"the key is refused ({code}); look at s3.access_key_id and s3.secret_access_key"
    if code in ("403", "AccessDenied"):
        return "access is denied; the key needs to list the bucket, get and put objects, and abort multipart uploads"
    if code == "NoSuchBucket":
        return "there is no such bucket; look at s3.bucket, or create it"
    return quotable(f"{text} ({code})" if code and code not in text else text)


def concerns_all(problem: Exception) -> bool:
    """Whether a problem with one file would meet every other file too."""
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError, SSLError

    if isinstance(problem, (ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError, SSLError)):
        return True
    return code_of(problem) in (*S3_KEY_REFUSED, "NoSuchBucket", "RequestTimeTooSkewed") or http_status(problem) == 507


class S3Target:
    """A bucket: Amazon S3 or what speaks like it."""

    name = "s3"

    def __init__(self, settings: Settings, memory: Memory, _lock_fd: int | None,
                 is_recorded: Callable[..., bool]) -> None:  # fmt: skip
        self.settings, self.memory, self.is_recorded = settings, memory, is_recorded
        self.bucket, self.endpoint = str(settings.s3["bucket"]), str(settings.s3["endpoint"] or "").rstrip("/")
        if "@" in self.endpoint:
            raise UsageError("s3.endpoint holds a login; it belongs into s3.access_key_id and s3.secret_access_key")
        if self.endpoint and not re.match(r"https?://[^/]", self.endpoint):
            raise UsageError(f"s3.endpoint: {self.endpoint} is no address; say for example https://s3.example.com")
        if bool(settings.s3["access_key_id"]) != bool(settings.s3["secret_access_key"]):
            raise UsageError("s3: access_key_id and secret_access_key belong together; set both, or none of them")
        self.address = f"s3://{self.bucket}" + (f" at {self.endpoint}" if self.endpoint else "")
        self.target_id = ""
        self.able = Abilities()
        self.session: Any = None
        self.client: Any = None
        self.manager: Any = None
        self.plans: dict[str, tuple[Digests, bool]] = {}  # key -> what is being sent, may it be overwritten
        self.open_file = settings.state_dir / "s3_uploads.json"
        self.open_lock = threading.Lock()
        self.reading = threading.Semaphore(S3_READERS)
        self.refused = ""  # why nothing more can be sent

    # -- connection --

    def _connect(self, *, signs: bool) -> Any:
        """A client of boto3. `signs`: bodies are signed by SHA-256, which costs much and is needed where no checksum is
        seen to be checked, and on plain http."""
        for chatty in ("boto3", "botocore", "s3transfer"):  # they would log requests whole, also what signs them
            logging.getLogger(chatty).setLevel(logging.CRITICAL)
        os.environ.setdefault("BOTO_DISABLE_CRT", "true")  # it would write to stderr when an upload ends while it signs
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError as problem:
            raise CannotStart("s3 needs the package boto3: pip install boto3") from problem
        s3 = self.settings.s3
        try:
            session = self.session = self.session or boto3.session.Session(
                aws_access_key_id=s3["access_key_id"] or None,
                aws_secret_access_key=s3["secret_access_key"] or None)  # fmt: skip
            credentials = session.get_credentials()
            if credentials is None:
                raise CannotStart("s3: no key; set s3.access_key_id and s3.secret_access_key, or AWS_ACCESS_KEY_ID and "
                                  "AWS_SECRET_ACCESS_KEY in the environment, or a profile in ~/.aws")  # fmt: skip
            for secret in credentials.get_frozen_credentials():
                hide_secret(secret)
            region = s3["region"] or ("auto" if ".r2.cloudflarestorage.com" in self.endpoint else
                                      session.region_name if not self.endpoint else None) or "us-east-1"  # fmt: skip
            how: Any = {"addressing_style": s3["addressing"]}
            if not signs and not self.endpoint.startswith("http:"):
                how["payload_signing_enabled"] = False
            return session.client("s3", endpoint_url=self.endpoint or None, region_name=region, config=Config(
                connect_timeout=S3_CONNECT_SEC, read_timeout=S3_READ_SEC, tcp_keepalive=True,
                max_pool_connections=2 * S3_MOST_AT_ONCE, retries={"mode": "standard", "total_max_attempts": S3_TRIES},
                request_checksum_calculation="when_required", response_checksum_validation="when_required",
                s3=how))  # fmt: skip
        except (BotoCoreError, ValueError) as problem:
            raise CannotStart(f"s3: {self.address}: {explain_s3(problem)}") from problem

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What boto3 raises becomes CannotStart with a sentence."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as problem:
            raise CannotStart(f"s3: {self.address}: {explain_s3(problem)}") from problem

    # -- the id --

    def _read_id(self) -> str | None:
        self.client = self.client or self._connect(signs=True)
        with self._told():
            try:
                got = self.client.get_object(Bucket=self.bucket, Key=TARGET_FILE)["Body"].read(100)
            except self.client.exceptions.NoSuchKey:
                return None
        text = got.decode("ascii", "replace").strip()
        return text if re.fullmatch(r"[0-9a-f]{16}", text) else None

    def open(self) -> None:
        self.target_id = right_id(self, self._read_id(), self.memory, "mistyped, or not prepared yet; if it is the "
                                  "right bucket", "another bucket?")  # fmt: skip

    def initialise(self) -> str:
        found = self._read_id()
        if not found:
            with self._told():
                text = secrets.token_hex(8)
                self.client.put_object(Bucket=self.bucket, Key=TARGET_FILE, Body=f"{text}\n".encode())
            found = self._read_id()
            if not found:
                raise CannotStart(f"s3: {self.address} took {TARGET_FILE} and does not have it; this is no archive")
        self.memory.put("s3", {"id": found, "address": self.address})
        return found

    def check(self) -> list[str]:
        self._probe()
        with self._told():
            ours = set(read_json(self.open_file) or {})
            found = self._accepts(self.client.list_multipart_uploads) or {}  # not every server has this list
            foreign = sum(one["UploadId"] not in ours for one in found.get("Uploads", []))
        lines = [f"s3: {self.address} answers and is target {self.target_id}", *self.able.words()]
        return lines + ([f"s3: {foreign} unfinished multipart uploads of others; they are billed, and a lifecycle rule "
                         "(AbortIncompleteMultipartUpload) ends them"] if foreign else [])  # fmt: skip

    # -- what the endpoint does --

    def _accepts(self, call: Callable[..., Any], **arguments: Any) -> Any:
        """The response, or None when it is refused for what it says; anything else is raised."""
        from botocore.exceptions import ClientError

        try:
            return call(Bucket=self.bucket, **arguments)
        except ClientError as problem:
            if http_status(problem) in S3_REFUSALS:
                return None
            raise

    def _probe(self) -> None:
        """Try it: is a wrong checksum refused and a right one stored intact, in one piece and in parts? What is found
        is remembered with the target. Leaves nothing in the bucket, or one small object where we may not delete."""
        with self._told():
            self.able = Abilities(at_sec=time.time(), address=self.address)
            for algorithm in checksum_algorithms():
                if self._checks_put(algorithm):
                    self.able = replace(self.able, algorithm=algorithm)
                    break
            own = {"Key": TARGET_FILE, "Body": f"{self.target_id}\n".encode()}  # what it holds already
            self.able = replace(self.able, keeps=self._accepts(self.client.put_object, IfNoneMatch="*", **own) is None)
            self._probe_parts()
            try:
                self.client.delete_object(Bucket=self.bucket, Key=S3_PROBE_KEY)
            except self.client.exceptions.ClientError as problem:
                log.info("s3: %s stays in the bucket: %s", S3_PROBE_KEY, explain_s3(problem))
        self.memory.put("s3", {**self.memory.of("s3"), "able": asdict(self.able)})

    def _recall(self) -> None:
        """What the last probe has found."""
        with suppress(KeyError, TypeError):
            self.able = Abilities(**self.memory.of("s3")["able"])

    def _checks_put(self, algorithm: str) -> bool:
        content, field_name = secrets.token_bytes(S3_PROBE_BYTES), f"Checksum{algorithm}"
        right, wrong = Checksum.of(content, algorithm), Checksum.of(content[1:], algorithm)
        put, known = self.client.put_object, {"Key": S3_PROBE_KEY, "Body": content}
        if not self._accepts(put, **known, **{field_name: right}) or self._accepts(put, **known, **{field_name: wrong}):
            return False
        return bool(self.client.get_object(Bucket=self.bucket, Key=S3_PROBE_KEY)["Body"].read() == content)

    def _probe_parts(self) -> None:
        client, content, algorithm = self.client, secrets.token_bytes(S3_PROBE_BYTES), self.able.algorithm
        more = {"ChecksumAlgorithm": algorithm, "ChecksumType": "FULL_OBJECT"} if algorithm else {}
        upload = self._accepts(client.create_multipart_upload, Key=S3_PROBE_KEY, **more)
        if upload is None and more:
            more, algorithm = {}, ""
            upload = self._accepts(client.create_multipart_upload, Key=S3_PROBE_KEY)
        if upload is None:
            return
        known = {"Key": S3_PROBE_KEY, "UploadId": upload["UploadId"]}
        try:
            right, wrong = ({f"Checksum{algorithm}": Checksum.of(one, algorithm)} if algorithm else {}
                            for one in (content, content[1:]))  # fmt: skip
            part = {**known, "PartNumber": 1, "Body": content}
            refused = bool(algorithm) and self._accepts(client.upload_part, **part, **wrong) is None
            taken = self._accepts(client.upload_part, **part, **right)
            if taken is None:
                return
            ending = {**known, "MultipartUpload": {"Parts": [{"PartNumber": 1, "ETag": taken["ETag"], **right}]}}
            whole = {**right, "ChecksumType": "FULL_OBJECT"} if algorithm else {}
            client.put_object(Bucket=self.bucket, Key=S3_PROBE_KEY, Body=b"in the way")
            kept = self._accepts(client.complete_multipart_upload, **ending, **whole, IfNoneMatch="*") is None
            if kept and self._accepts(client.complete_multipart_upload, **ending, **whole) is None:
                return
            stored = client.get_object(Bucket=self.bucket, Key=S3_PROBE_KEY)["Body"].read()
            intact = stored == content
            self.able = replace(self.able, multipart=intact, parts=refused and intact, keeps_multipart=kept)
        finally:
            self._abort(S3_PROBE_KEY, upload["UploadId"])

    # -- sending --

    def _begin(self, batch: Sequence[Footage]) -> None:
        """Once per run: what the endpoint does, left-overs of a killed run, and one transfer manager."""
        if self.manager:
            return
        self._recall()
        if self.able.address != self.address or not 0 <= time.time() - self.able.at_sec < S3_PROBED_FOR_SEC:
            self._probe()
        self._abort_orphans()
        self.client = self._connect(signs=not (self.able.algorithm and (self.able.parts or not self.able.multipart)))
        for event, handler in (
            ("before-parameter-build.s3.PutObject", self._complete_put),
            ("before-parameter-build.s3.UploadPart", self._complete_part),
            ("before-parameter-build.s3.CreateMultipartUpload", self._note_key),
            ("before-parameter-build.s3.CompleteMultipartUpload", self._complete_end),
            ("before-parameter-build.s3.AbortMultipartUpload", self._note_key),
            ("after-call.s3.CreateMultipartUpload", self._remember),
            ("after-call.s3.CompleteMultipartUpload", self._forget),
            ("after-call.s3.AbortMultipartUpload", self._forget),
        ):
            self.client.meta.events.register(event, handler)
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        mean_bytes = sum(one.size for one in batch) / max(1, len(batch))
        self.at_once = S3_MOST_AT_ONCE if mean_bytes < S3_PART_BYTES else S3_AT_ONCE
        self.manager = create_transfer_manager(self.client, TransferConfig(
            multipart_threshold=S3_PART_BYTES if self.able.multipart else S3_LARGEST_PUT_BYTES,
            multipart_chunksize=S3_PART_BYTES, max_concurrency=self.at_once, preferred_transfer_client="classic",
            max_bandwidth=self.settings.bwlimit_bytes_per_sec or None))  # fmt: skip

    def _complete_put(self, params: dict[str, Any], **_: Any) -> None:
        if self.able.keeps and params["Key"] in self.plans and not self.plans[params["Key"]][1]:
            params["IfNoneMatch"] = "*"

    def _complete_part(self, params: dict[str, Any], **_: Any) -> None:
        digests = self.plans[params["Key"]][0]
        if "ChecksumAlgorithm" in params:
            params[f"Checksum{params.pop('ChecksumAlgorithm')}"] = digests.parts[params["PartNumber"] - 1]

    def _complete_end(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        self._note_key(params, context)
        if self.able.keeps_multipart and not self.plans[params["Key"]][1]:
            params["IfNoneMatch"] = "*"

    def _note_key(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["nas_sync"] = (params["Key"], params.get("UploadId"))

    def _remember(self, parsed: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        """Before a part is sent: a killed run leaves parts that are billed and that nobody sees."""
        if upload_id := parsed.get("UploadId"):
            self._change_open(upload_id, [self.target_id, context["nas_sync"][0]])

    def _forget(self, http_response: Any, context: dict[str, Any], parsed: dict[str, Any], **_: Any) -> None:
        if (http_response.status_code < 300 and "Error" not in parsed) or http_response.status_code == 404:
            self._change_open(context["nas_sync"][1], None)

    def _change_open(self, upload_id: str, whose: list[str] | None) -> None:
        with self.open_lock:
            known = read_json(self.open_file) or {}
            known.pop(upload_id, None)
            known |= {upload_id: whose} if whose else {}
            self.open_file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.open_file, known)

    def _abort_orphans(self) -> None:
        """End multipart uploads of our own that a killed run left open; those of others are none of our business."""
        for upload_id, (target_id, key) in (read_json(self.open_file) or {}).items():
            if target_id != self.target_id:
                continue
            with self._told():
                self._abort(key, upload_id)
            log.info("%s: an interrupted upload was aborted, its parts are gone", key)
            self._change_open(upload_id, None)

    def _abort(self, key: str, upload_id: str) -> None:
        try:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)
        except self.client.exceptions.ClientError as problem:
            if http_status(problem) != 404:  # it is complete, or gone
                raise

    def send(self, batch: Sequence[Footage], hashes: Hashes, progress: Progress) -> Iterator[list[Outcome]]:
        """Outcomes as they come, those of half a second together: each list is one write to the disk. A sidecar goes
        before its clip, everything else side by side."""
        self._begin(batch)
        with self._told():  # what is not there is sent with If-None-Match, without another look
            there = self._listed(batch) if self.able.keeps else None
        groups: dict[str, list[Footage]] = {}
        for one in batch:
            groups.setdefault(str(one.path.with_suffix("")), []).append(one)
        pool = ThreadPoolExecutor(self.at_once + S3_AT_ONCE, "upload")
        waiting = iter(groups.values())
        running: set[Future[list[Outcome]]] = set()
        outcomes: list[Outcome] = []
        told_at = time.monotonic()
        try:
            while not self.settings.time_is_up():
                room = 0 if self.refused else 2 * self.at_once + S3_AT_ONCE - len(running)
                running |= {pool.submit(self._send_group, group, hashes, progress, there)
                            for group in islice(waiting, room)}  # fmt: skip
                if not running:
                    break
                done, running = wait(running, S3_STEP_SEC, FIRST_COMPLETED)
                outcomes += [outcome for future in done for outcome in future.result()]
                if outcomes and time.monotonic() - told_at > S3_STEP_SEC:
                    yield outcomes
                    outcomes, told_at = [], time.monotonic()
            yield outcomes
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if self.refused:
            raise CannotStart(f"s3: {self.address}: {self.refused}")

    def _send_group(self, group: Sequence[Footage], hashes: Hashes, progress: Progress,
                    there: Container[str] | None) -> list[Outcome]:  # fmt: skip
        outcomes = []
        for footage in group:
            if self.refused or self.settings.time_is_up():
                break
            try:
                outcomes.append(self._send_one(footage, hashes, progress, there))
            except (Gone, OSError) as problem:
                outcomes.append(gone(footage, problem))
            except Exception as problem:  # noqa: BLE001  of boto3, s3transfer, urllib3: one file failed, others go on
                if concerns_all(problem):
                    self.refused = explain_s3(problem)
                log.debug("%s", printable(footage.recorded), exc_info=problem)
                outcomes.append(Outcome(footage, "failed", why=explain_s3(problem)))
        return outcomes

    def _send_one(self, footage: Footage, hashes: Hashes, progress: Progress,
                  there: Container[str] | None) -> Outcome:  # fmt: skip
        """`there`: the keys that are taken; None where a put could overwrite what came since they were listed."""
        key, digests = key_of(footage), self._digest(footage, hashes)
        outcome = self._judge(footage, key, digests) if there is None or key in there else None
        if outcome is None or outcome.state == "failed":
            if outcome:
                self._set_aside(footage, key, outcome)
            accepted, etag = self._upload(footage, key, digests, progress, may_replace=outcome is not None)
            outcome = Outcome(footage, "proven", digests.sha256, f"{self.able.algorithm.lower()};etag={etag}") \
                if accepted and etag else self._judge(footage, key, digests, accepted=accepted)  # fmt: skip
        if not is_unchanged(footage):
            raise Gone("changed while it was sent")
        return outcome or Outcome(footage, "failed", digests.sha256, why="confirmed, but it is not in the bucket")

    def _set_aside(self, footage: Footage, key: str, outcome: Outcome) -> None:
        """Before an object of ours is replaced: what had once been proven there is kept under another key."""
        log.warning("%s: %s", printable(footage.recorded), outcome.why)
        if footage.kind != "journal" and self.is_recorded(footage, self.target_id):
            aside = key + time.strftime(".damaged-%Y%m%dT%H%M%SZ", time.gmtime())
            self.client.copy_object(Bucket=self.bucket, Key=aside, CopySource={"Bucket": self.bucket, "Key": key})

    def _digest(self, footage: Footage, hashes: Hashes) -> Digests:
        if not self.able.algorithm:
            with self.reading:
                return Digests(hashes.of(footage))
        running = Checksum(self.able.algorithm, part_bytes_of(footage.size))
        with self.reading:
            sha256 = hashes.of(footage, running.add)
        running.close_part()
        return Digests(sha256, running.text(running.whole), tuple(running.parts))

    def _upload(self, footage: Footage, key: str, digests: Digests, progress: Progress, *,
                may_replace: bool) -> tuple[bool, str]:  # fmt: skip
        """Whether the endpoint checked what it took, and the ETag that it then told. When the end of an upload is
        unclear (a lost response, a 412 that may mean our own object) that is False, and what is there decides."""
        is_checked = self.able.parts if self._in_parts(footage) else bool(self.able.algorithm)
        kind = CONTENT_TYPES.get(footage.path.suffix.lower(), "application/octet-stream")
        more = {"ContentType": kind, "Metadata": {"sha256": digests.sha256}}
        if is_checked:
            more[f"Checksum{self.able.algorithm}"] = digests.whole
        self.plans[key] = digests, may_replace
        try:
            told = FileProgress(footage, progress)
            if self._in_parts(footage) or self.settings.bwlimit_bytes_per_sec:
                self.manager.upload(str(footage.path), self.bucket, key, more, [told]).result()
                return is_checked, ""
            answer = self._put(footage, key, more, told)
            is_same = answer.get(f"Checksum{self.able.algorithm}", digests.whole) == digests.whole
            return is_checked and is_same, plain_etag(answer.get("ETag", ""))
        except Exception as problem:
            if not is_unchanged(footage):
                raise Gone("changed while it was sent") from problem
            if concerns_all(problem) or isinstance(problem, OSError) or self._head(key) is None:
                raise
            log.info("%s: the end of its upload is unclear (%s), so what is there is compared",
                     printable(footage.recorded), explain_s3(problem))  # fmt: skip
            return False, ""
        finally:
            self.plans.pop(key, None)

    def _put(self, footage: Footage, key: str, more: Mapping[str, Any], told: FileProgress) -> dict[str, Any]:
        """In one piece, without the transfer manager, which costs a third more and keeps the server's answer."""
        told.on_queued()
        try:
            with open_same(footage) as handle:
                answer = dict(self.client.put_object(Bucket=self.bucket, Key=key, Body=handle, **more))
            told.on_progress(footage.size)
            return answer
        finally:
            told.on_done()

    def _in_parts(self, footage: Footage) -> bool:
        return footage.size >= (S3_PART_BYTES if self.able.multipart else S3_LARGEST_PUT_BYTES)

    # -- proof --

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            return dict(self.client.head_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED"))
        except self.client.exceptions.ClientError as problem:
            if http_status(problem) == 404 and code_of(problem) != "NoSuchBucket":
                return None
            raise

    def _judge(self, footage: Footage, key: str, digests: Digests, *, accepted: bool = False) -> Outcome | None:
        """What the object under the key is: None when there is none, proven, a conflict (other footage), or failed: it
        says that it is this file, and is not."""
        head = self._head(key)
        if head is None:
            return None
        claims = {name.lower(): value for name, value in head.get("Metadata", {}).items()}.get("sha256")
        if claims and claims != digests.sha256:
            if footage.kind == "journal" and self.is_recorded(footage, self.target_id):
                return Outcome(footage, "failed", digests.sha256, why=f"{key} is an earlier form of it")
            return Outcome(footage, "conflict", digests.sha256, why=f"{key} is other footage, which is kept")
        proof = ""
        if head["ContentLength"] == footage.size:
            proof = self._proof(footage, key, head, digests, accepted=accepted and bool(claims))
        if proof:
            return Outcome(footage, "proven", digests.sha256, f"{proof};etag={plain_etag(head.get('ETag', ''))}")
        if not claims and not self._is_earlier(footage, key, head["ContentLength"]):
            return Outcome(footage, "conflict", digests.sha256, why=f"{key} is something else, which is kept")
        what = "damaged; it is sent again" if claims else "an earlier form of it"
        return Outcome(footage, "failed", digests.sha256, why=f"{key} is {what}")

    def _is_earlier(self, footage: Footage, key: str, size: int) -> bool:
        """Whether an object that claims nothing (its server may have lost that) is an earlier form of a journal: how
        the file begins, or what was recorded."""
        if footage.kind != "journal":
            return False
        there = self._hash_back(key)
        with open_same(footage) as handle:
            begins = hashlib.sha256(handle.read(size)).hexdigest()
        return there == begins or self.is_recorded(footage, self.target_id, there)

    def _proof(self, footage: Footage, key: str, head: dict[str, Any], digests: Digests, *, accepted: bool) -> str:
        """How it is known that the object is the file; "" when it is not. From cheap to dear."""
        if accepted:
            return self.able.algorithm.lower()
        stored = head.get(f"Checksum{self.able.algorithm}") if self.able.parts else None
        if stored and head.get("ChecksumType") == "FULL_OBJECT":
            return self.able.algorithm.lower() if stored == digests.whole else ""
        if has_etag(footage, head.get("ETag", "")):
            return "etag"
        return "readback" if self._hash_back(key) == digests.sha256 else ""

    def _listed(self, batch: Iterable[Footage]) -> dict[str, tuple[int, str]]:
        """Key -> size and ETag, of those that are there: a listing for each folder, from the first that is asked for,
        some at a time."""
        folders: dict[str, list[str]] = {}
        for key in sorted(map(key_of, batch)):
            folders.setdefault(key.rpartition("/")[0] + "/", []).append(key)
        pages = self.client.get_paginator("list_objects_v2")

        def listing(folder: str) -> dict[str, tuple[int, str]]:
            wanted = set(folders[folder])
            return {one["Key"]: (one["Size"], plain_etag(one.get("ETag", "")))
                    for page in pages.paginate(Bucket=self.bucket, Prefix=folder, StartAfter=folders[folder][0][:-1])
                    for one in page.get("Contents", []) if one["Key"] in wanted}  # fmt: skip

        pool = ThreadPoolExecutor(S3_AT_ONCE, "list")
        try:
            return {key: found for listed in pool.map(listing, folders) for key, found in listed.items()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def present(self, proven: Sequence[Archived], hashes: Hashes) -> set[str]:
        self._recall()
        there = set()
        with self._told():
            found = self._listed(one.footage for one in proven)
            for one in proven:
                size, etag = found.get(key_of(one.footage), (-1, ""))
                if size == one.record.size and (etag == one.record.etag or not one.record.etag
                                                or self._is_still(one, hashes)):  # fmt: skip
                    there.add(one.footage.recorded)
        if proven and self._read_id() != self.target_id:
            raise CannotStart(f"s3: {self.address} was replaced; nothing is deleted")
        return there

    def _is_still(self, one: Archived, hashes: Hashes) -> bool:
        """Whether an object with another ETag than when it was proven has the content that was: a copy within S3, a
        change of its encryption, and listings of some endpoints change the ETag."""
        with suppress(Gone, OSError):
            return self._compared(one, hashes).state == "verified"
        return False

    # -- reading --

    def verify(self, batch: Sequence[Archived], hashes: Hashes, *, deep: bool) -> list[Finding]:
        self._recall()
        findings: list[Finding] = []
        with self._told():
            listed = self._listed(one.footage for one in batch)
            for one in batch:
                if self.settings.time_is_up():
                    break
                findings.append(self._weigh(one, listed.get(key_of(one.footage)), hashes, deep=deep))
        if self._read_id() != self.target_id:
            raise CannotStart(f"s3: {self.address} was replaced; what was found there counts for nothing")
        return findings

    def _weigh(self, one: Archived, listed: tuple[int, str] | None, hashes: Hashes, *, deep: bool) -> Finding:
        if listed is None or listed[0] != one.record.size:
            return sized(one, listed[0] if listed else None)
        try:
            if one.is_local and not deep:
                return self._compared(one, hashes)
            if deep or (one.record.etag and one.record.etag != listed[1]):  # which a copy within S3 changes as well
                return hashed(one, self._hash_back(key_of(one.footage)))
        except (Gone, OSError) as problem:
            return Finding(one, "unreadable", "size", f"the file here: {gone(one.footage, problem).why}")
        except Exception as problem:  # of boto3 and urllib3: one object cannot be read, others can
            if concerns_all(problem):
                raise
            return Finding(one, "unreadable", "size", explain_s3(problem))
        return Finding(one, "verified", "etag" if one.record.etag else "size")

    def _compared(self, one: Archived, hashes: Hashes) -> Finding:
        """With the file that is still here."""
        digests, key = self._digest(one.footage, hashes), key_of(one.footage)
        if digests.sha256 != one.record.sha256:
            return Finding(one, "different", "checksum", HERE_IS_OTHER)
        proof = self._proof(one.footage, key, self._head(key) or {}, digests, accepted=False)
        level = {"etag": "etag", "readback": "content"}.get(proof, "checksum")
        return Finding(one, "verified", level, proof=proof) if proof else different(one, level)

    def _hash_back(self, key: str) -> str:
        digest = hashlib.sha256()
        for piece in self.client.get_object(Bucket=self.bucket, Key=key)["Body"].iter_chunks(READ_BYTES):
            digest.update(piece)
        return digest.hexdigest()

    def bring(self, batch: Sequence[Footage], folder: Path) -> dict[str, Path]:
        brought = {}
        for number, one in enumerate(batch):
            part = folder / str(number)
            try:
                body = self.client.get_object(Bucket=self.bucket, Key=key_of(one))["Body"]
                with part.open("wb") as target:
                    for piece in body.iter_chunks(READ_BYTES):
                        target.write(piece)
            except Exception as problem:
                if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
                    raise
                log.warning("s3: %s: %s", key_of(one), explain_s3(problem))
                if concerns_all(problem):
                    break
            else:
                brought[one.recorded] = part
        return brought

    def close(self) -> None:
        """Cancel what is still on its way, and abort its uploads, within seconds: a connection that hangs may not hold
        us up. What is left open is remembered, and aborted by the next run."""
        if self.manager:
            why = KeyboardInterrupt, KeyboardInterrupt("the run ends"), None  # shutdown(True) fails during an upload
            ending = threading.Thread(target=self.manager.__exit__, args=why, daemon=True)
            ending.start()
            ending.join(S3_CLOSE_SEC)


class FileProgress:
    """Passes on what s3transfer reports about one file; after a retry it counts back."""

    def __init__(self, footage: Footage, progress: Progress) -> None:
        self.footage, self.progress = footage, progress
        self.task: Any = None

    def on_queued(self, **_: Any) -> None:
        if self.progress.bars:
            self.task = self.progress.bars.add_task(f"  {printable(self.footage.path.name)}", total=self.footage.size)

    def on_progress(self, bytes_transferred: int, **_: Any) -> None:
        self.progress.add(bytes_transferred)
        if self.progress.bars and self.task is not None:
            self.progress.bars.advance(self.task, bytes_transferred)

    def on_done(self, **_: Any) -> None:
        if self.progress.bars and self.task is not None:
            self.progress.bars.remove_task(self.task)


def plain_etag(etag: str) -> str:
    return re.sub("[^0-9A-Za-z-]", "", etag)


def checksum_algorithms() -> tuple[str, ...]:
    """CRC64NVME is what S3 itself keeps; it needs awscrt."""
    try:
        import awscrt.checksums  # noqa: F401
    except ImportError:
        return ("CRC32",)
    return "CRC64NVME", "CRC32"


# --- a run -------------------------------------------------------------------------------------------------------


class Memory:
    """`.nas_sync/targets.json`: what is known of each target, by its name: the id, whether it syncs, ..."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.values = read_json(file) or {}

    def of(self, name: str) -> dict[str, Any]:
        value = self.values.get(name)
        return value if isinstance(value, dict) else {}

    def put(self, name: str, value: Mapping[str, Any]) -> None:
        self.values[name] = dict(value)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, self.values)


class Progress:
    """A bar for all bytes of a step where stderr is a terminal; else nothing, because each file gets a line."""

    def __init__(self, shown: bool) -> None:  # noqa: FBT001
        self.shown = shown
        self.bars: Any = None
        self.task: Any = None
        self.done_bytes = 0

    @contextmanager
    def step(self, name: str, total_bytes: int) -> Iterator[None]:
        if not self.shown or not total_bytes:
            yield
            return
        self.done_bytes = 0
        with progress_bars() as self.bars:
            self.task = self.bars.add_task(name, total=total_bytes)
            try:
                yield
            finally:
                self.bars, self.task = None, None

    def add(self, size_bytes: int) -> None:
        """So many more bytes have been sent; any thread."""
        self.done_bytes += size_bytes
        if self.bars:
            self.bars.update(self.task, completed=self.done_bytes)

    def watcher(self, sizes: Mapping[str, int]) -> Callable[[Path], None] | None:
        """What looks at the output of an rsync that sends these files."""
        if not self.bars:
            return None
        before = self.done_bytes

        def look(output: Path) -> None:
            self.done_bytes = before + sum(sizes.get(name, 0) for name in read_items(output.read_bytes()))
            self.add(0)

        return look


class Work:
    """What one run knows and counts."""

    def __init__(self, settings: Settings, segment_sec: float, lock_fd: int | None) -> None:
        self.settings, self.segment_sec, self.lock_fd = settings, segment_sec, lock_fd
        self.hashes = Hashes(settings.state_dir / "hashes.json")
        self.memory = Memory(settings.state_dir / "targets.json")
        self.progress = Progress(sys.stderr.isatty() and not settings.quiet)
        self.counts: dict[str, Counter[str]] = {}
        self.bytes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.status = Status.DONE
        self.opened: dict[str, Target] = {}
        self.lost: dict[str, CannotStart] = {}
        self.stopped: set[str] = set()  # steps that could not be done, because a target was away
        self.conflicts: dict[str, Counter[str]] = {}  # step -> camera
        self.behind: dict[str, set[str]] = {}  # step -> what it could not settle, with --limit
        self.about: dict[str, Any] = {}  # more for the summary of --json
        self.synclog = SyncLog(settings.log_dir, ())

    # -- what is there --

    def look(self) -> list[Footage]:
        """The footage as it is now, with what the sync log says of it."""
        found = find_footage(self.settings, self.fail_once)
        self.synclog = SyncLog(self.settings.log_dir, [one.recorded for one in found])
        return found

    def unproven(self, target_id: str) -> list[Footage]:
        """Of the footage as it is now, what is not proven on a target."""
        found, self.synclog = find_unproven(self.settings, target_id, self.fail_once)
        return found

    @property
    def ids(self) -> dict[str, str]:
        """Target id -> name, of the configured targets that this host knows."""
        known = ((self.memory.of(name).get("id"), name) for name in self.settings.targets)
        return {str(target_id): name for target_id, name in known if target_id}

    def make_target(self, name: str) -> Target:
        return TARGETS[name](self.settings, self.memory, self.lock_fd, self.is_recorded)

    def target(self, name: str) -> Target:
        """The target, seen in this run and found to be the right one. Raises CannotStart."""
        if name in self.lost:
            raise self.lost[name]
        if name not in self.opened:
            with self.watching(name):
                made = self.make_target(name)
                made.open()
                self._refuse_itself(made)
            self.opened[name] = made
        return self.opened[name]

    def _refuse_itself(self, target: Target) -> None:
        """Raises CannotStart where the target's root is our source, by whatever way: each file would prove itself."""
        source = self.settings.ready_dir or self.settings.local_dir
        with suppress(OSError, ValueError):
            if source and (source / TARGET_FILE).read_text(encoding="ascii").strip() == target.target_id:
                raise CannotStart(f"{target.name}: the target is the footage itself: {source} holds its {TARGET_FILE}; "
                                  "archive to another place, and remove that file there")  # fmt: skip

    @contextmanager
    def watching(self, name: str) -> Iterator[None]:
        """A target that fails is not asked again in this run: it may have cost its whole timeout."""
        try:
            yield
        except CannotStart as problem:
            self.lost[name] = problem
            raise

    def is_recorded(self, footage: Footage, target_id: str, there: str = "") -> bool:
        """Whether what the target has under this name is our own earlier copy; journals grow, footage does not.
        `there`: its sha256, where it was read back because nothing else tells."""
        record = self.synclog.get(footage.recorded, target_id)
        if record is None or footage.kind == "journal":
            return record is not None and there in ("", record.sha256)
        try:
            return record.is_of(footage) and record.sha256 == self.hashes.of(footage)
        except (Gone, OSError):
            return False

    def limited(self, step: str, found: list[Footage]) -> list[Footage]:
        """At most --limit of them. What earlier runs could not settle comes last, else it would keep the rest back."""
        if self.settings.limit is None:
            return found
        told = (read_json(self.settings.state_dir / LAST_RUN) or {}).get(step, {})
        behind = self.behind[step] = {one.recorded for one in found}.intersection(told.get("behind", []))
        return sorted(found, key=lambda one: one.recorded in behind)[: self.settings.limit]

    def close(self) -> None:
        for target in self.opened.values():
            target.close()
        if not self.settings.dry_run:
            self.hashes.save()

    # -- what is told --

    def tell(self, step: str, footage: Footage, state: str, why: str = "", **more: str) -> None:
        """What became of a file; `more` is for --json."""
        self.counts.setdefault(step, Counter())[state] += 1
        if state in SETTLED_STATES:
            self.bytes[step] += footage.size
            self.behind.get(step, set()).discard(footage.recorded)
        elif step in self.behind:
            self.behind[step].add(footage.recorded)
        failed = state in FAILED_STATES
        if state == "conflict":
            self.conflicts.setdefault(step, Counter())[footage.camera] += 1
        words = f"{printable(footage.recorded)}: {step}: {state}" + (f": {why}" if why else "")
        if failed:
            self.fail(words)
        elif not self.progress.shown or state not in SETTLED_STATES:
            log.info("%s", words)
        if self.settings.json:
            print_row({"step": step, "file": printable(footage.recorded), "camera": footage.camera, "state": state,
                       "bytes": footage.size, "start": footage.start_sec, "why": mask(why), **more})  # fmt: skip

    def fail(self, words: str) -> None:
        log.error("%s", words)
        self.failures.append(words)
        self.status = max(self.status, Status.PARTIAL)

    def fail_once(self, words: str) -> None:
        """Of what meets every step of a run anew."""
        if words not in self.failures:
            self.fail(words)

    def fail_target(self, problem: CannotStart, step: str) -> None:
        """A target cannot be used; unless it is only that --max_duration left no time to ask it."""
        self.counts.setdefault(step, Counter())
        self.stopped.add(step)
        if self.settings.time_is_up() and RSYNC_STATUS[TIMED_OUT] in str(problem):
            return self.fail_once(f"--max_duration is over; the rest waits for the next run: {problem}")
        self.fail_once(str(problem))
        self.status = Status.CANNOT_START
        return None

    def remember(self) -> None:
        """What `status` tells later of the steps of this run."""
        file = self.settings.state_dir / LAST_RUN
        told = read_json(file) or {}
        for step in self.counts:
            names = [name for name in sorted(self.behind.get(step, ())) if name.isprintable()]
            told[step] = {"at": time.time(), "conflicts": self.conflicts.get(step, {}), "behind": names}
        with suppress(OSError):
            write_json(file, told)

    def late(self, step: str, count: int) -> None:
        self.counts.setdefault(step, Counter())["late"] += count
        self.fail(f"{step}: --max_duration is over; {count} files wait for the next run")

    def show_plan(self, step: str, files: Sequence[Footage]) -> None:
        """--dry_run: which files, and how much."""
        for one in files:
            if self.settings.json:
                print_row({"step": step, "file": printable(one.recorded), "camera": one.camera, "state": "planned",
                           "bytes": one.size, "start": one.start_sec})  # fmt: skip
            elif not self.settings.quiet:
                print(f"{step}\t{one.size}\t{printable(one.recorded)}")
        self.counts.setdefault(step, Counter())["planned"] += len(files)
        self.bytes[step] += sum(one.size for one in files)

    def summary(self) -> str:
        parts = [f"{step}: " + (", ".join(f"{count} {state}" for state, count in states.items())
                                or ("not done" if step in self.stopped else "nothing to do"))
                 + (f" ({size_text(self.bytes[step])})" if self.bytes[step] else "")
                 for step, states in self.counts.items()]  # fmt: skip
        return "; ".join(parts) or "nothing to do"


def print_row(row: Mapping[str, Any]) -> None:
    print(json.dumps(row, ensure_ascii=False), flush=True)


# --- backup and upload -------------------------------------------------------------------------------------------


def backup(work: Work) -> None:
    """To the NAS, with proof."""
    transfer(work, "backup", "nas", "nas.nas_target_dir")


def upload(work: Work) -> None:
    """To S3, with proof."""
    transfer(work, "upload", "s3", "s3.bucket")


def transfer(work: Work, step: str, name: str, key: str) -> None:
    """Everything that is not yet proven on the target, oldest first, in batches; recorded after each."""
    settings = work.settings
    if name not in settings.targets:
        raise UsageError(f"{step}: {key} is not set")
    target = work.target(name)
    waiting = work.limited(step, finished(work.unproven(target.target_id), work.segment_sec))
    work.counts.setdefault(step, Counter())
    if settings.dry_run:
        return work.show_plan(step, waiting)
    left = len(waiting)
    with work.progress.step(step, sum(one.size for one in waiting)):
        for batch in batches(waiting):
            if settings.time_is_up():
                return work.late(step, left)
            with work.watching(name):
                for outcomes in target.send(batch, work.hashes, work.progress):
                    record(work, step, target, outcomes)
                    left -= len(outcomes)
            if settings.time_is_up() and left:
                return work.late(step, left)
    return None


def batches(files: Sequence[Footage], most_bytes: int = BATCH_BYTES) -> Iterator[list[Footage]]:
    batch: list[Footage] = []
    total_bytes = 0
    for one in files:
        if batch and (len(batch) >= BATCH_FILES or total_bytes + one.size > most_bytes):
            yield batch
            batch, total_bytes = [], 0
        batch.append(one)
        total_bytes += one.size
    if batch:
        yield batch


def record(work: Work, step: str, target: Target, outcomes: Sequence[Outcome]) -> None:
    """First the sync log, durably; then the words."""
    now, proven = time.time(), [one for one in outcomes if one.state == "proven"]
    work.synclog.append([Record(one.footage.recorded, one.footage.size, one.footage.mtime_ns, one.sha256,
                                target.target_id, one.proof, now) for one in proven])  # fmt: skip
    for one in sorted(outcomes, key=lambda one: by_age(one.footage)):
        work.tell(step, one.footage, one.state, one.why)


# --- holds -------------------------------------------------------------------------------------------------------


def read_holds(file: Path) -> list[Hold]:
    """Raises CannotStart when there is a file that cannot be understood: what it protects must not be deleted."""
    if not file.exists():
        return []
    try:
        listed = (read_json(file) or {})["holds"]
        return [Hold(str(one["camera"]), float(one["start"]), float(one["end"])) for one in listed]
    except (KeyError, TypeError, ValueError) as problem:
        raise CannotStart(f"{file}: the list of holds cannot be read; mend it before anything is deleted") from problem


def hold_files(settings: Settings) -> list[Path]:
    """The list of holds, and those from before a ready folder or a recorder's folder came into use."""
    homes = [settings.state_dir, *(home / STATE_FOLDER for home in (settings.local_dir, settings.clips_dir) if home)]
    return [home / "holds.json" for home in dict.fromkeys(homes)]


def all_holds(settings: Settings) -> list[Hold]:
    return list(dict.fromkeys(one for file in hold_files(settings) for one in read_holds(file)))


def is_held(footage: Footage, settings: Settings, holds: Sequence[Hold]) -> bool:
    """Touches a hold, of its camera or of the same device by another name. A file ends at the latest when it was last
    written, unless that is said to be before its start; an uncertain start may be a day earlier or later."""
    if not holds:  # asked of everything that is here
        return False
    written_sec, day_later_sec = footage.mtime_ns / 1e9, footage.start_sec + UNCERTAIN_SEC + footage.doubt_sec
    start_sec = footage.start_sec - footage.doubt_sec
    end_sec = (min(written_sec, day_later_sec) if written_sec >= footage.start_sec else day_later_sec) + 1
    names = names_of(footage.camera)
    names |= {name.lower() for name in same_device(names, settings)}
    return any(hold.camera.lower() in names and start_sec < hold.end_sec and hold.start_sec < end_sec for hold in holds)


def hold(settings: Settings, words: Sequence[str]) -> int:
    """`hold add|list|remove CAMERA FROM TO`."""
    file = settings.state_dir / "holds.json"
    action, given = (words[0], words[1:]) if words else ("list", [])
    if (action, len(given)) not in (("add", 3), ("remove", 3), ("list", 0)):
        raise UsageError("hold: say hold add CAMERA FROM TO, hold remove CAMERA FROM TO, or hold list")
    if action == "list":
        return show_holds(settings)
    zone = parse_zone(None)
    wanted = Hold(given[0], parse_time(given[1], "FROM", zone), parse_time(given[2], "TO", zone))
    if wanted.end_sec <= wanted.start_sec:
        raise UsageError("hold: TO is not after FROM")
    if action == "add" and not is_known(wanted.camera, known_cameras(settings)):
        log.warning("hold: %s: no footage of a camera of this name is here; is it spelled right?", wanted.camera)
    also = twins(wanted.camera, settings)
    with run_lock(file.with_suffix(".lock"), "hold", HOLD_WAIT_SEC):
        if action == "remove" and wanted not in all_holds(settings):
            raise UsageError(f"hold: there is no hold of {wanted.camera} with these times; see hold list")
        for each in hold_files(settings) if not settings.dry_run else ():
            change_holds(each, [wanted, *(replace(wanted, camera=name) for name in also)],
                         add=action == "add" and each == file)  # fmt: skip
    log.info("hold: %s%s: %s to %s %s %s", wanted.camera, f" and {', '.join(also)} (the same device)" if also else "",
             utc_text(wanted.start_sec), utc_text(wanted.end_sec), "would be" if settings.dry_run else "is",
             "spared by cleanup" if action == "add" else "no longer held")  # fmt: skip
    return show_holds(settings) if settings.json else Status.DONE


def show_holds(settings: Settings) -> int:
    holds = all_holds(settings)
    for one in holds:
        text = f"{one.camera}\t{utc_text(one.start_sec)}\t{utc_text(one.end_sec)}"
        print(json.dumps(as_row(one)) if settings.json else text)
    if settings.json:
        print_row({"summary": {"status": int(Status.DONE), "holds": len(holds)}})
    elif not holds:
        log.info("hold: nothing is held")
    return Status.DONE


def twins(camera: str, settings: Settings) -> list[str]:
    """Its other names; that of a Rhombus camera leads to its UUID by its folder or its clips."""
    folders = [names_of(name) for name in known_cameras(settings) if camera.lower() in names_of(name)]
    return same_device(names_of(camera).union(*folders), settings)


def change_holds(file: Path, wanted: Sequence[Hold], *, add: bool) -> None:
    before = read_holds(file)
    kept = [one for one in before if one not in wanted] + (list(wanted) if add else [])
    if kept != before:
        write_json(file, {"holds": [as_row(one) for one in kept]})


def as_row(hold: Hold) -> dict[str, Any]:
    return {"camera": hold.camera, "start": hold.start_sec, "end": hold.end_sec}


def utc_text(moment_sec: float) -> str:
    return datetime.fromtimestamp(moment_sec, timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


# --- cleanup -----------------------------------------------------------------------------------------------------


def is_due(proofs: Sequence[Record | None], grace_sec: float, now: float) -> bool:
    """Proven on every required target, and the grace time has passed; a proof from the future does not count yet."""
    for proof in proofs:
        if proof is None:
            return False
        wait_sec = max(grace_sec, UNSYNCED_GRACE_SEC) if proof.how.endswith("-unsynced") else grace_sec
        if not max(proof.since_sec, 0) <= now - wait_sec or proof.at_sec > now:
            return False
    return True


def choose(files: Sequence[Footage], may_go: Collection[Footage], retention: Mapping[str, Any], now: float,
           free_bytes: int) -> tuple[list[Footage], int]:  # fmt: skip
    """What to delete on one disk, oldest first, and how many bytes stay short because nothing else may go."""
    keep_days, max_bytes, min_free_bytes = (retention[name] for name in ("keep_days", "max_bytes", "min_free_bytes"))
    total_bytes = sum(one.size for one in files)
    excess = max(total_bytes - max_bytes if max_bytes else 0, min_free_bytes - free_bytes)
    limitless = not (keep_days or max_bytes or min_free_bytes)
    chosen = []
    for one in sorted(may_go, key=by_age):
        is_old = keep_days and now - one.start_sec - one.doubt_sec >= keep_days * 86400
        if limitless or is_old or excess > 0:
            chosen.append(one)
            excess -= one.size
    return chosen, max(0, excess)


def cleanup(work: Work) -> None:
    """Delete local footage that is, as it is now, proven on every required target. The only place that deletes it."""
    settings = work.settings
    work.counts.setdefault("cleanup", Counter())
    if not settings.delete_after_upload:
        log.info("cleanup: upload.delete_after_upload is false: everything is kept")
        return None
    ring = bool(settings.retention["without_archive"])
    if not settings.required and not ring:
        raise UsageError("cleanup: no target is configured, so nothing is proven and nothing may be deleted")
    targets = [work.target(name) for name in settings.required]
    found = [one for one in work.look() if one.kind in ("recording", "clip")]
    now, grace_sec = time.time(), float(settings.retention["grace_sec"])
    holds = all_holds(settings)
    may_go = finished(found, work.segment_sec) if ring else [
        one for one in found if is_due([work.synclog.proof(one, t.target_id) for t in targets], grace_sec, now)]
    may_go = [one for one in may_go if not is_held(one, settings, holds)]
    chosen, short_bytes = choose_everywhere(found, may_go, settings.retention, now)
    chosen = work.limited("cleanup", chosen)
    if settings.dry_run:
        return work.show_plan("cleanup", chosen)
    if is_unusual(chosen, found, settings) and not settings.delete_many:
        total = size_text(sum(one.size for one in chosen))
        return work.fail(f"cleanup: would delete {len(chosen)} files, {total}; that is "
                         "unusually much, so nothing was deleted; if it is right, run: nas_sync.py cleanup "
                         "--delete_many")  # fmt: skip
    left = len(chosen)
    for batch in batches(chosen):
        if settings.time_is_up():
            return work.late("cleanup", left)
        delete(work, batch, targets)
        left -= len(batch)
    if short_bytes:
        work.counts["cleanup"]["short"] += 1
        where = " and ".join(settings.required) or "any target"
        work.fail(f"cleanup: {size_text(short_bytes)} more should go, but nothing else may be deleted: "
                  f"{len(found) - len(chosen)} files are not proven on {where}, "
                  "within their grace time or held; no footage was deleted for it")  # fmt: skip
    return None


def choose_everywhere(found: Sequence[Footage], may_go: Sequence[Footage], retention: Mapping[str, Any],
                      now: float) -> tuple[list[Footage], int]:  # fmt: skip
    """By disk, because space on one does not help another."""
    chosen, short_bytes = [], 0
    disks: dict[int, list[Footage]] = {}
    devices = {root: root.stat().st_dev for root in {one.root for one in found}}
    for one in found:
        disks.setdefault(devices[one.root], []).append(one)
    may = set(may_go)
    for files in disks.values():
        more, short = choose(files, [one for one in files if one in may], retention, now,
                             shutil.disk_usage(files[0].root).free)  # fmt: skip
        chosen += more
        short_bytes += short
    return sorted(chosen, key=by_age), short_bytes


def is_unusual(chosen: Sequence[Footage], found: Sequence[Footage], settings: Settings) -> bool:
    if len(chosen) > settings.retention["unusual_files"] > 0:
        return True
    share = sum(one.size for one in chosen) / max(1, sum(one.size for one in found))
    return bool(settings.retention["without_archive"]) and share > MANY_SHARE and len(chosen) > MANY_AT_LEAST


def delete(work: Work, batch: Sequence[Footage], targets: Sequence[Target]) -> None:
    """Ask each target whether it still has the files; what it lost is recorded as lost, and sent again."""
    for target in targets:
        proofs = {one: proof for one in batch if (proof := work.synclog.proof(one, target.target_id))}
        there = target.present([Archived(one, proof, True) for one, proof in proofs.items()], work.hashes)
        lost = [one for one in proofs if one.recorded not in there]
        work.synclog.append([replace(proofs[one], proof=LOST, at_sec=time.time()) for one in lost])
        for one in lost:
            work.tell("cleanup", one, "lost", f"{target.name} no longer has it as it was proven; kept here, sent again "
                      "by the next run")  # fmt: skip
        batch = [one for one in batch if one.recorded in there]
    for one in batch:
        try:
            why = obstacle(work, one, targets)
            if not why:
                one.path.unlink()
        except Gone as problem:
            work.tell("cleanup", one, "changed", str(problem))
            continue
        except OSError as problem:
            work.tell("cleanup", one, "failed", f"cannot be deleted: {problem.strerror}")
            continue
        work.tell("cleanup", one, "kept" if why else "deleted", why)
        if not why and one.root == work.settings.ready_dir:
            prune(one.path.parent, one.root)


def obstacle(work: Work, footage: Footage, targets: Sequence[Target]) -> str:
    """Why a file that is due must stay after all: the last look before it is deleted. Raises Gone, OSError."""
    if is_held(footage, work.settings, all_holds(work.settings)):
        return "held"
    if has_writer(footage.path):
        return "it is open for writing"
    if not targets and not is_unchanged(footage):
        return "changed"
    for target in targets:
        proof = work.synclog.proof(footage, target.target_id)
        if not proof or proof.sha256 != work.hashes.of(footage):
            if proof:  # the name, size and time of other footage: to be looked at anew
                work.synclog.append([replace(proof, proof=LOST, at_sec=time.time())])
            raise Gone(f"its content is not what was proven on {target.name}; kept, and looked at anew by the next run")
    told = (read_json(footage.path.with_suffix(".json")) or {}).get("sha256") if footage.kind == "clip" else None
    if told and told != work.hashes.of(footage):
        return "its sidecar tells another SHA-256, so it is not what was downloaded; look at both"
    return ""


def prune(folder: Path, root: Path) -> None:
    """Remove folders that have become empty, up to the source."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


# --- verify ------------------------------------------------------------------------------------------------------


def need_room(folder: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes + ROOM_BYTES:
        raise CannotStart(f"{folder}: {size_text(size_bytes)} are to be copied there, and only {size_text(free_bytes)} "
                          "are free")  # fmt: skip


def missing(one: Archived) -> Finding:
    return Finding(one, "missing", "presence", "the target no longer has it", LOST)


def different(one: Archived, level: str) -> Finding:
    return Finding(one, "different", level, "the target holds other content than was archived", LOST)


def sized(one: Archived, size: int | None) -> Finding:
    if size is None:
        return missing(one)
    return Finding(one, "verified", "size") if size == one.record.size else different(one, "size")


def hashed(one: Archived, found: str) -> Finding:
    """From what the target, or reading back, says: a sha256, or that there is none."""
    if found == "missing":
        return missing(one)
    if not re.fullmatch("[0-9a-f]{64}", found):
        return Finding(one, "unreadable", "presence", "the target cannot read it")
    if found != one.record.sha256:
        return different(one, "content")
    return Finding(one, "verified", "content", proof="content")


class Timeline:
    """What a recorded file was: which camera, when; from the sidecars and journals that stay here, else its name."""

    def __init__(self, settings: Settings, segment_sec: float) -> None:
        self.settings, self.segment_sec = settings, segment_sec
        self.spans: dict[str, dict[str, list[tuple[float, float]]]] = {}
        self.within = Sources(settings)._within

    def span(self, camera: str, name: str, mtime_ns: int) -> tuple[float, float] | None:
        """As the recorder's journal says."""
        if camera not in self.spans:
            root = self.settings.local_dir
            self.spans[camera] = journal_spans(root / RECORDER_JOURNAL / camera) if root else {}
        spans = self.spans[camera].get(name)
        return span_of(spans, mtime_ns / 1e9) if spans else None

    def sidecar(self, path: str) -> dict[str, Any]:
        """Of a clip by its path in the sync log; empty when it is not here."""
        name = Path(path).with_suffix(".json")
        ready_dir, clips_dir = self.settings.ready_dir, self.settings.clips_dir
        places = [root / place for root, place in ((ready_dir, name), (clips_dir, name.name)) if root]
        return next(filter(None, map(read_json, places)), {})

    def footage(self, record: Record) -> Footage:
        """As it was when it was archived. It has no place here: its `path` leads nowhere."""
        prefix = prefix_of(record.path)
        relative = record.path.removeprefix(prefix)
        parts = relative.split("/")
        found = CLIP_NAME.fullmatch(parts[-1])
        kind = {EVIDENCE_PREFIX: "evidence", JOURNAL_PREFIX: "journal"}.get(prefix) or (
            "sidecar" if relative.endswith(".json") else "clip" if found else "recording")  # fmt: skip
        start_sec, basis = self._start(record, parts, kind)
        return Footage(Path(os.devnull), relative, parts[0], kind, start_sec, basis, record.size, record.mtime_ns,
                       prefix)  # fmt: skip

    def _start(self, record: Record, parts: Sequence[str], kind: str) -> tuple[float, str]:
        midnight_sec = day_sec(parts[1]) if len(parts) == 3 and DAY_FOLDER.fullmatch(parts[1]) else None
        if midnight_sec is not None:
            start_sec = self.within(parts[-1], midnight_sec)
            return midnight_sec if start_sec is None else start_sec, "folder"
        start_sec, basis = None, "name"
        if kind in ("clip", "sidecar") and self.settings.clips_dir:
            start_sec, basis = clip_start(self.settings.clips_dir / parts[-1], self.settings.zone)
        elif kind == "recording" and (span := self.span(parts[0], parts[-1], record.mtime_ns)):
            return span[0], "journal"
        start_sec = name_sec(parts[-1], self.settings.zone) if start_sec is None else start_sec
        return (record.mtime_ns / 1e9, "mtime") if start_sec is None else (start_sec, basis)

    def bounds(self, one: Footage) -> tuple[float, float]:
        """Start and end, epoch seconds: from sidecar or journal; else a recording ends when it was last written."""
        if one.kind in ("clip", "sidecar"):
            with suppress(KeyError, TypeError, ValueError):
                asked = (self.sidecar(one.recorded) or read_json(one.path.with_suffix(".json")) or {})["requested"]
                return float(asked["start_ms"]) / 1000, float(asked["end_ms"]) / 1000
            return one.start_sec, one.start_sec + self.segment_sec
        if span := self.span(one.camera, one.path.name, one.mtime_ns):
            return span[0], max(span)
        written_sec = one.mtime_ns / 1e9
        is_likely = one.start_sec < written_sec <= one.start_sec + UNCERTAIN_SEC
        return one.start_sec, written_sec if is_likely else one.start_sec + self.segment_sec


def verify(work: Work) -> None:
    """What the sync log says is on the targets, against what they hold; longest unverified first."""
    work.synclog = SyncLog(work.settings.log_dir)
    examine(work, list(work.synclog), time.time() + 1)


def verify_local(work: Work) -> None:
    """Part of `run`: what is still here, where its proof has become old."""
    local = work.look()
    due_before = time.time() - float(work.settings.retention["verify_days"]) * 86400
    proofs = [work.synclog.proof(one, target_id) for one in local for target_id in work.ids]
    examine(work, [one for one in proofs if one], due_before)


def examine(work: Work, records: Sequence[Record], due_before: float) -> None:
    """Look at these records, where they are older than that, on every target that answers."""
    settings = work.settings
    if not settings.targets:
        raise UsageError("verify: no target is configured; set nas.nas_target_dir or s3.bucket")
    work.counts.setdefault("verify", Counter())
    records = [one for one in records if one.proves and one.at_sec < due_before]
    if not records:
        return
    sources = Sources(settings)
    local = {one.recorded: one for one in find_footage(settings)}
    timeline = Timeline(settings, work.segment_sec)
    plans = []
    for name in settings.targets:
        try:
            target_id = work.target(name).target_id
        except CannotStart as problem:
            work.fail_target(problem, "verify")
            continue
        due = sorted((one for one in records if one.target == target_id), key=lambda one: one.at_sec)
        plan = [archived(one, local, timeline) for one in due]
        plan = [one for one in plan if sources.wants(one.footage.camera)][: settings.limit]
        plans.append((due[0].at_sec if due else 0.0, name, plan))
    for _, name, plan in sorted(plans, key=lambda one: one[0]):
        if settings.dry_run:
            work.show_plan("verify", [one.footage for one in plan])
        elif plan:
            examine_target(work, name, plan, local, timeline)


def archived(record: Record, local: Mapping[str, Footage], timeline: Timeline) -> Archived:
    here = local.get(record.path)
    is_local = here is not None and record.is_of(here)
    return Archived(here if here and is_local else timeline.footage(record), record, is_local)


def examine_target(work: Work, name: str, plan: Sequence[Archived], local: Mapping[str, Footage],
                   timeline: Timeline) -> None:  # fmt: skip
    """In batches, each recorded when it is over."""
    by_path = {one.footage.recorded: one for one in plan}
    left = len(plan)
    with work.progress.step(f"verify {name}", sum(one.record.size for one in plan)):
        for batch in batches([one.footage for one in plan]):
            if work.settings.time_is_up():
                break
            try:
                with work.watching(name):
                    findings = work.target(name).verify([by_path[one.recorded] for one in batch], work.hashes,
                                                        deep=work.settings.deep)  # fmt: skip
            except CannotStart as problem:
                if not work.settings.time_is_up():
                    return work.fail_target(problem, "verify")
                break
            now = time.time()
            findings = [against_sidecar(one, local, timeline) for one in findings]
            work.synclog.append([replace(record, proof=LOST, at_sec=now) if one.proof == LOST else
                                 record.again(one.proof, now)
                                 for one in findings if one.proof and (record := one.archived.record)])  # fmt: skip
            for one in findings:
                tell_finding(work, name, one)
            left -= len(findings)
    if left:
        work.late("verify", left)
    return None


def against_sidecar(finding: Finding, local: Mapping[str, Footage], timeline: Timeline) -> Finding:
    """The chain from the download to the archive: what the sidecar of a clip says is what was archived."""
    one = finding.archived
    if finding.state != "verified" or one.footage.kind != "clip" or (one.record.path in local and not one.is_local):
        return finding
    told = timeline.sidecar(one.record.path).get("sha256")
    if not told or told == one.record.sha256:
        return finding
    return replace(finding, state="different", why="its sidecar tells another SHA-256, so it is not the clip that was "
                   "downloaded")  # fmt: skip


def tell_finding(work: Work, name: str, finding: Finding) -> None:
    """A line only for what is not well; the rest is counted by level."""
    one, is_well = finding.archived, finding.state == "verified"
    path = printable(one.record.path)
    work.counts["verify"][f"verified by {finding.level}" if is_well else finding.state] += 1
    why = finding.why
    if is_well:
        work.bytes["verify"] += one.record.size
        work.progress.add(one.record.size)
        log.debug("%s: verify: on %s by %s", path, name, finding.level)
    else:
        records = ((other, work.synclog.get(one.record.path, target_id)) for target_id, other in work.ids.items())
        where = ["here"] * one.is_local + [
            other for other, found in records
            if found and other != name and found.proves and found.sha256 == one.record.sha256]  # fmt: skip
        why += f"; it is still {' and '.join(where)}" if where else "; there is no other copy that we know of"
        work.fail(f"{path}: verify: {finding.state} on {name}: {why}")
    if work.settings.json:
        print_row({"step": "verify", "target": name, "file": path, "camera": one.footage.camera, "state": finding.state,
                   "level": finding.level, "bytes": one.record.size, "start": one.footage.start_sec,
                   "why": why})  # fmt: skip


# --- status ------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """How one camera stands with one target."""

    camera: str
    target: str
    archived_files: int = 0
    archived_bytes: int = 0
    lost_files: int = 0  # no longer there, and not here either
    last_proof_sec: float = 0  # epoch
    bytes_by_hour: Counter[bytes] = field(default_factory=Counter)  # of the last day
    waiting_files: int = 0
    waiting_bytes: int = 0
    oldest_start_sec: float = 0  # epoch, of what waits
    unproven_files: int = 0  # of those that wait: a log names them, but for other content, or without proof
    conflicts: int = 0  # seen by the last run

    @property
    def bytes_per_sec(self) -> float:
        """What the busiest hour of the last day has shown to be possible."""
        return max(self.bytes_by_hour.values(), default=0) / 3600

    def row(self, now: float, target_bytes_per_sec: float) -> dict[str, Any]:
        drain_sec = self.waiting_bytes / target_bytes_per_sec if target_bytes_per_sec else None
        return {
            "camera": self.camera, "target": self.target, "waiting_files": self.waiting_files,
            "waiting_bytes": self.waiting_bytes,
            "oldest_sec": round(now - self.oldest_start_sec) if self.waiting_files else 0,
            "last_success": self.last_proof_sec or None, "bytes_per_sec": round(self.bytes_per_sec),
            "drain_sec": round(drain_sec) if drain_sec is not None else 0 if not self.waiting_files else None,
            "unproven_files": self.unproven_files, "conflicts": self.conflicts, "lost_files": self.lost_files,
            "archived_files": self.archived_files, "archived_bytes": self.archived_bytes,
        }  # fmt: skip


class Survey:
    """What is here, and what the sync log says of the rest; no target is asked."""

    def __init__(self, work: Work, now: float) -> None:
        self.work, self.now = work, now
        self.settings = work.settings
        self.sources = Sources(self.settings)
        self.names = work.ids
        self.tallies: dict[tuple[str, str], Tally] = {}
        self.incoming: dict[int, int] = {}  # bytes of the last day, by disk
        sources = self.sources
        self.local = files_of(sources.recorded(), sources.downloaded(), sources.ready(), sources.others())
        self.synclog = SyncLog(self.settings.log_dir)
        self._count_archive()
        self._count_waiting()
        self._count_conflicts()

    def of(self, camera: str, target: str) -> Tally:
        if (camera, target) not in self.tallies:
            self.tallies[camera, target] = Tally(camera, target)
        return self.tallies[camera, target]

    def _count_archive(self) -> None:
        """Written for a million lines: fields of bytes, and one dictionary for each camera and target."""
        day_ago = self.now - DAY_SEC
        recent, recent_ns = utc_text(day_ago).encode(), int(day_ago * 1e9)
        here = {encode_path(one.recorded).encode() for one in self.local}
        known: dict[tuple[bytes, bytes], Tally | None] = {}
        last: dict[Any, bytes] = {}
        arrived: dict[bytes, int] = {}
        for line in self.synclog.all_lines():
            path, size, mtime_ns, _, target, proof, at, _ = line.split(b"\t")
            is_below = path.startswith((b"alerts/", b"journal/")) and prefix_of(path.decode())
            key = path[: path.find(b"/", 8 if is_below else 0)], target
            if key not in known:
                known[key] = self._tally_of(*key)
            tally = known[key]
            if tally is None:
                continue
            if proof == b"lost":
                tally.lost_files += path not in here
                continue
            tally.archived_files += 1
            tally.archived_bytes += int(size)
            if at > last.get(key, b""):
                last[key] = at
            if at > recent:
                arrived_at = since_of(proof) if b";since=" in proof else at
                if arrived_at > recent:
                    tally.bytes_by_hour[arrived_at[:13]] += int(size)
            if int(mtime_ns) > recent_ns and path not in here:
                arrived[path] = int(size)
        for key, at in last.items():
            if tally := known[key]:
                moment = datetime.fromisoformat(at.decode().replace("Z", "+00:00"))
                tally.last_proof_sec = max(tally.last_proof_sec, moment.timestamp())
        self.arrived_bytes = sum(arrived.values())

    def _tally_of(self, folder: bytes, target: bytes) -> Tally | None:
        """None for cameras that were not asked for, and targets that are no longer configured."""
        camera, name = decode_path(folder.decode()), self.names.get(target.decode())
        camera = re.sub("^(alerts|journal)/", "", camera)
        return self.of(camera, name) if name and self.sources.wants(camera) else None

    def _count_waiting(self) -> None:
        ready_dir, ids = self.settings.ready_dir, {name: key for key, name in self.names.items()}
        for one in self.local:
            is_unorganized = bool(ready_dir) and one.kind in ("recording", "clip", "sidecar") and one.root != ready_dir
            for name in self.settings.targets:
                tally = self.of(one.camera, name)
                if not is_unorganized and self.synclog.has_proof(one, ids.get(name, "")):
                    continue
                tally.oldest_start_sec = min(one.start_sec, tally.oldest_start_sec or one.start_sec)
                tally.waiting_files += 1
                tally.waiting_bytes += one.size
                is_bare = encode_path(one.recorded).encode() in self.synclog.bare
                tally.unproven_files += is_bare or bool(self.synclog.line(one.recorded, ids.get(name, "")))

    def _count_conflicts(self) -> None:
        for step, about in (read_json(self.settings.state_dir / LAST_RUN) or {}).items():
            names = {"backup": ["nas"], "upload": ["s3"]}.get(step, self.settings.targets)
            for camera, count in dict(about.get("conflicts", {})).items():
                for name in names:
                    if name in self.settings.targets and self.sources.wants(camera):
                        self.of(camera, name).conflicts += int(count)

    # -- what comes of it --

    def rates(self) -> dict[str, float]:
        """Bytes a second of each target, all cameras together: its busiest hour of the last day."""
        hours: dict[str, Counter[bytes]] = {name: Counter() for name in self.settings.targets}
        for tally in self.tallies.values():
            hours[tally.target].update(tally.bytes_by_hour)
        return {name: max(counts.values(), default=0) / 3600 for name, counts in hours.items()}

    def disks(self) -> list[dict[str, Any]]:
        """Free space where footage lies, and how long it lasts when nothing is deleted."""
        day_ago_ns = (self.now - DAY_SEC) * 1e9
        rows, seen = [], {}
        for root in (self.settings.local_dir, self.settings.ready_dir, self.settings.clips_dir):
            if root and root.is_dir() and (device := root.stat().st_dev) not in seen:
                seen[device] = root
        for device, root in seen.items():
            fresh = sum(one.size for one in self.local
                        if one.mtime_ns > day_ago_ns and one.root.stat().st_dev == device)  # fmt: skip
            fresh += self.arrived_bytes if root == next(iter(seen.values())) else 0
            free_bytes = shutil.disk_usage(root).free
            rows.append({"disk": str(root), "free_bytes": free_bytes, "incoming_bytes_per_day": fresh,
                         "hours_left": round(free_bytes / fresh * 24, 1) if fresh else None})  # fmt: skip
        return rows

    def orphans(self) -> dict[str, int]:
        """What nobody takes care of, by reason."""
        found = {reason: len(paths) for reason, paths in sorted(self.sources.odd.items())}
        uploads = len(read_json(self.settings.state_dir / "s3_uploads.json") or {})
        return found | ({"an interrupted S3 upload, aborted by the next run": uploads} if uploads else {})


def since_of(proof: bytes) -> bytes:
    """When a file that was verified again had arrived, as the sync log writes times."""
    return utc_text(int(proof.partition(b";since=")[2].partition(b";")[0])).encode()


def status(work: Work) -> None:
    """How the archive stands, from what is known here; status 1 beyond the limits of the section `status`."""
    settings, now = work.settings, time.time()
    survey = Survey(work, now)
    rates = survey.rates()
    rows = [survey.tallies[key].row(now, rates[key[1]]) for key in sorted(survey.tallies)]
    disks, orphans = survey.disks(), survey.orphans()
    for words in beyond_limits(rows, disks, settings.limits):
        work.fail(words)
    notes = []
    if settings.targets:
        notes.append(f"nothing is ever deleted on {' and '.join(settings.targets)}: thin out the archive yourself, see "
                     "README, Thinning out the archive")  # fmt: skip
    notes += [f"{name}: not prepared on this host; run: nas_sync.py target init" for name in settings.targets
              if name not in work.ids.values()]  # fmt: skip
    if settings.json:
        for row in rows:
            print_row(row)
        work.about = {"disks": disks, "orphans": orphans, "notes": notes, "beyond": work.failures}
        return
    print("\n".join(status_table(rows, disks, orphans, notes)))


def beyond_limits(rows: Sequence[Mapping[str, Any]], disks: Sequence[Mapping[str, Any]],
                  limits: Mapping[str, Any]) -> list[str]:  # fmt: skip
    """A sentence for each limit that is exceeded; a limit of 0 is none."""
    words = []
    for row in rows:
        where = f"status: {row['camera']} on {row['target']}"
        if row["oldest_sec"] > limits["max_age_sec"] > 0:
            words.append(f"{where}: the oldest waiting file is {span_text(row['oldest_sec'])} old")
        if row["waiting_bytes"] > limits["max_waiting_bytes"] > 0:
            words.append(f"{where}: {size_text(row['waiting_bytes'])} wait")
        if limits["max_conflicts"] >= 0 and row["conflicts"] > limits["max_conflicts"]:
            words.append(f"{where}: {row['conflicts']} conflicts")
    for disk in disks:
        if disk["hours_left"] is not None and disk["hours_left"] < limits["min_hours_left"]:
            words.append(f"status: {disk['disk']}: full in {disk['hours_left']} hours at the present rate, when "
                         "nothing is deleted")  # fmt: skip
    return words


def span_text(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes < 48 * 60 else f"{minutes // 1440}d{minutes // 60 % 24:02}h"


def status_table(rows: Sequence[Mapping[str, Any]], disks: Sequence[Mapping[str, Any]], orphans: Mapping[str, int],
                 notes: Sequence[str]) -> list[str]:  # fmt: skip
    """For people: columns, then a line for each disk, orphan and note."""
    cells = [("camera", "target", "waiting", "bytes", "oldest", "last success", "rate", "drained in", "unproven",
              "conflicts", "lost", "archived")]  # fmt: skip
    for row in rows:
        last = utc_text(row["last_success"]) if row["last_success"] else "never"
        cells.append((printable(row["camera"]), row["target"], str(row["waiting_files"]),
                      size_text(row["waiting_bytes"]), span_text(row["oldest_sec"]) if row["waiting_files"] else "-",
                      last, f"{size_text(row['bytes_per_sec'])}/s", span_text(row["drain_sec"]),
                      str(row["unproven_files"]), str(row["conflicts"]), str(row["lost_files"]),
                      f"{row['archived_files']} ({size_text(row['archived_bytes'])})"))  # fmt: skip
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    for disk in disks:
        left = "" if disk["hours_left"] is None else (
            f", {disk['hours_left']} hours at the present {size_text(disk['incoming_bytes_per_day'])} a day, when "
            "nothing is deleted")  # fmt: skip
        lines.append(f"free on {printable(disk['disk'])}: {size_text(disk['free_bytes'])}{left}")
    lines += [f"orphans: {count} {reason}" for reason, count in orphans.items()]
    return lines + [f"note: {note}" for note in notes]


# --- find and fetch ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a piece of footage lies."""

    name: str  # local, ready, clips, nas, s3
    address: str
    footage: Footage
    record: Record | None  # None: here, and not archived


@dataclass(frozen=True)
class Piece:
    """One file of footage, wherever it is."""

    recorded: str
    camera: str
    kind: str
    start_sec: float
    end_sec: float
    size: int
    sha256: str  # "" when nothing has hashed it yet
    places: tuple[Place, ...]  # nearest first

    @property
    def name(self) -> str:
        return self.recorded.rpartition("/")[2]

    def covers(self, start_sec: float, end_sec: float) -> bool:
        """Whether anything of it lies between; `end_sec` itself does not count, except of a single moment."""
        return self.start_sec < max(end_sec, start_sec + TINY_SEC) and start_sec < self.end_sec


def pieces_of(work: Work, camera: str) -> list[Piece]:
    """All footage of a camera that is here or in the sync log, by time; sidecars come with their clips' times."""
    settings = replace(work.settings, only=(camera,))
    sources, timeline = Sources(settings), Timeline(settings, work.segment_sec)
    found: dict[tuple[str, int, int], list[Place]] = {}
    roots = {settings.local_dir: "local", settings.ready_dir: "ready", settings.clips_dir: "clips"}
    for one in files_of(sources.recorded(), sources.ready(), sources.downloaded()):
        place = Place(roots.get(one.root, "local"), str(one.path), one, None)
        found.setdefault((one.recorded, one.size, one.mtime_ns), []).append(place)
    for record in SyncLog(settings.log_dir, paths_of(sources.wants)):
        if record.proves:
            footage, name = timeline.footage(record), work.ids.get(record.target, record.target)
            place = Place(name, address_of(settings, name, footage), footage, record)
            found.setdefault((record.path, record.size, record.mtime_ns), []).append(place)
    return sorted((made for places in found.values() for made in as_pieces(places, timeline)),
                  key=lambda one: (one.start_sec, one.recorded))  # fmt: skip


def as_pieces(places: Sequence[Place], timeline: Timeline) -> Iterator[Piece]:
    """One, or one for each content where targets hold different ones under the same name, size and time."""
    contents = sorted({one.record.sha256 for one in places if one.record}) or [""]
    for sha256 in contents:
        own = [one for one in places if not one.record or one.record.sha256 == sha256]
        own.sort(key=lambda one: PLACES.index(one.name) if one.name in PLACES else len(PLACES))
        first = own[0].footage
        start_sec, end_sec = timeline.bounds(first)
        yield Piece(first.recorded, first.camera, first.kind, start_sec, end_sec, first.size, sha256, tuple(own))


def address_of(settings: Settings, name: str, footage: Footage) -> str:
    if name == "nas":
        return f"{str(settings.nas['nas_target_dir']).rstrip('/')}/{footage.recorded}"
    return f"s3://{settings.s3['bucket']}/{key_of(footage)}" if name == "s3" else f"{name}/{footage.recorded}"


def find(work: Work) -> None:
    """Where the footage of a moment is, as far as is known here; no target is asked."""
    words, at_text = work.settings.words, work.settings.at
    if len(words) != 1 or not at_text:
        raise UsageError("find: say find CAMERA --at TIME")
    moment_sec = parse_time(at_text, "--at", parse_zone(None))
    pieces = [one for one in pieces_of(work, words[0]) if one.kind != "sidecar"]
    hits = [one for one in pieces if one.covers(moment_sec, moment_sec)]
    for one in hits:
        for place in one.places:
            tell_place(work, one, place)
    if hits:
        return
    near = [f"the {words} at {utc_text(moment)}" for words, moment in (
        ("one before ends", max((one.end_sec for one in pieces if one.end_sec <= moment_sec), default=0)),
        ("next begins", min((one.start_sec for one in pieces if one.start_sec > moment_sec), default=0)))
        if moment]  # fmt: skip
    near += [f"a log of the older scripts names {path}, without proof: look for it on the target"
             for path in older_names(work, words[0], moment_sec)]  # fmt: skip
    typo = "" if pieces or near else spelling(words[0], known_cameras(work.settings))
    work.fail(f"find: no footage of {words[0]} at {utc_text(moment_sec)} is known here"
              + (f"; {', '.join(near)}" if near else typo))  # fmt: skip


def older_names(work: Work, camera: str, moment_sec: float) -> list[str]:
    """What logs of the older scripts, which hold nothing but paths, name for a moment."""
    settings = replace(work.settings, only=(camera,))
    bare = SyncLog(settings.log_dir, paths_of(Sources(settings).wants)).bare
    timeline = Timeline(settings, work.segment_sec)
    named = {path: timeline.footage(Record(path, 0, 0, "", "", LOST, 0))
             for path in sorted(line.decode("utf-8", "surrogateescape") for line in bare)}  # fmt: skip
    return [printable(path) for path, one in named.items()
            if one.start_sec <= moment_sec < one.start_sec + work.segment_sec]  # fmt: skip


def tell_place(work: Work, piece: Piece, place: Place) -> None:
    start, end = utc_text(piece.start_sec), utc_text(piece.end_sec)
    if work.settings.json:
        proof = {"proof": place.record.how, "proven_at": place.record.at_sec} if place.record else {}
        print_row({"place": place.name, "address": printable(place.address), "camera": piece.camera,
                   "kind": piece.kind, "start": piece.start_sec, "end": piece.end_sec, "bytes": piece.size,
                   "sha256": piece.sha256, **proof})  # fmt: skip
        return
    print(f"{place.name}\t{start}\t{end}\t{printable(place.address)}")


def chosen_pieces(work: Work) -> tuple[list[Piece], Path, float, float]:
    """What `fetch` and `export` were asked for, with the sidecars of its clips; where to; from and to."""
    words, command = list(work.settings.words), work.settings.command
    is_export = command == "export"
    at_text = None if is_export else work.settings.at
    if len(words) != (2 if at_text else 4):
        more = "" if is_export else ", or fetch CAMERA DIR --at TIME"
        raise UsageError(f"{command}: say {command} CAMERA FROM TO DIR{more}")
    zone, times = parse_zone(None), [at_text] if at_text else words[1:3]
    bounds = [parse_time(text, name, zone) for text, name in zip(times, ("FROM", "TO"), strict=False)]
    if not at_text and bounds[1] <= bounds[0]:
        raise UsageError(f"{command}: TO is not after FROM")
    chosen = [one for one in pieces_of(work, words[0]) if one.covers(bounds[0], bounds[-1])]
    if not chosen:
        raise CannotStart(f"{command}: no footage of {words[0]} of that time is known here"
                          f"{spelling(words[0], known_cameras(work.settings))}")  # fmt: skip
    folder = folder_of(words[-1])
    assert folder is not None
    return chosen[: work.settings.limit], folder, bounds[0], bounds[-1]


def named(pieces: Sequence[Piece]) -> dict[str, Piece]:
    """File name -> piece; a second one of the same name becomes NAME_1. The same in every run over the same pieces."""
    taken: dict[str, Piece] = {}
    for one in pieces:
        if not any(other.sha256 == one.sha256 != "" and other.name == one.name for other in taken.values()):
            taken[next(name for name in other_names(one.name) if name not in taken)] = one
    return taken


def fetch(work: Work) -> None:
    """Footage back into a folder: each file from the nearest place that has it, checked before it gets its name."""
    pieces, folder, _, _ = chosen_pieces(work)
    if work.settings.dry_run:
        return work.show_plan("fetch", [one.places[0].footage for one in pieces])
    collect(work, "fetch", named(pieces), folder)
    return None


def collect(work: Work, step: str, wanted: Mapping[str, Piece], folder: Path) -> dict[str, str]:
    """File name -> sha256 of what is in the folder afterwards and is right."""
    work.counts.setdefault(step, Counter())
    make_folder(folder)
    there: dict[str, str] = {}
    open_names = []
    for name, piece in wanted.items():
        drop_reserved(folder / name)
        if os.path.lexists(folder / name):
            sha256 = piece.sha256 or work.hashes.of(piece.places[0].footage)
            is_same = (folder / name).is_file() and sha256_of(folder / name) == sha256
            there |= {name: sha256} if is_same else {}
            tell_piece(work, step, folder / name, piece, "there" if is_same else "conflict",
                       "" if is_same else "other content has its name in that folder; it was left")  # fmt: skip
        else:
            open_names.append(name)
    need_room(folder, sum(wanted[name].size for name in open_names))
    sweep(folder)
    work_folder = folder / f"{FETCH_FOLDER}{os.getpid()}"
    why: dict[str, str] = {}
    try:
        for kind in PLACES:
            mine = [name for name in open_names if name not in there
                    and any(place.name == kind for place in wanted[name].places)]  # fmt: skip
            if mine and not work.settings.time_is_up():
                there |= collect_from(work, step, kind, {name: wanted[name] for name in mine}, work_folder, why)
    finally:
        shutil.rmtree(work_folder, ignore_errors=True)
    for name in open_names:
        if name not in there:
            tell_piece(work, step, folder / name, wanted[name], "failed",
                       why.get(name, "no place that is known here has it"))  # fmt: skip
    return there


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise CannotStart(f"{folder}: cannot be made: {problem.strerror}") from problem


def sweep(folder: Path) -> None:
    """Remove what a killed fetch has left, never that of one at work."""
    for left in folder.glob(f"{FETCH_FOLDER}*"):
        pid = left.name.removeprefix(FETCH_FOLDER)
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)


def collect_from(work: Work, step: str, kind: str, wanted: Mapping[str, Piece], work_folder: Path,
                 why: dict[str, str]) -> dict[str, str]:  # fmt: skip
    """From one place, in batches; `why` learns what did not come."""
    got: dict[str, str] = {}
    places = {name: next(place for place in piece.places if place.name == kind) for name, piece in wanted.items()}
    names = {place.footage: name for name, place in places.items()}
    for batch in batches(list(names)):
        shutil.rmtree(work_folder, ignore_errors=True)
        work_folder.mkdir(parents=True)
        if places[names[batch[0]]].record:
            try:
                brought = work.target(kind).bring(batch, work_folder)
            except CannotStart as problem:
                log.warning("%s", quotable(str(problem)))
                why |= dict.fromkeys(wanted, str(problem))
                break
        else:
            brought = copy_here(work, batch, work_folder)
        for footage in batch:
            name, piece = names[footage], wanted[names[footage]]
            part = brought.get(footage.recorded)
            final = work_folder.parent / name
            sha256 = accept(part, piece, footage, final) if part else ""
            if sha256:
                got[name] = sha256
                tell_piece(work, step, final, piece, "fetched", f"from {kind}")
            else:
                why[name] = f"{kind}: " + ("what came is not what was archived" if part else "it could not be read")
                log.warning("%s: %s", printable(piece.recorded), why[name])
    return got


def copy_here(work: Work, batch: Sequence[Footage], work_folder: Path) -> dict[str, Path]:
    copied = {}
    for number, one in enumerate(batch):
        with suppress(Gone, OSError):
            copy_checked(one, work_folder / str(number), work.hashes)
            copied[one.recorded] = work_folder / str(number)
    return copied


def accept(part: Path, piece: Piece, footage: Footage, final: Path) -> str:
    """Give what was brought its name when it is right; its sha256, or "" when it is not."""
    sha256 = sha256_of(part)
    if piece.sha256 and sha256 != piece.sha256:
        return ""
    with part.open("rb+") as handle:
        os.fsync(handle.fileno())
    os.utime(part, ns=(footage.mtime_ns, footage.mtime_ns))
    if not publish(part, final):
        return ""
    part.unlink(missing_ok=True)
    return sha256


def tell_piece(work: Work, step: str, path: Path, piece: Piece, state: str, why: str = "") -> None:
    """`stdout` carries the paths of the files that are there now."""
    work.tell(step, piece.places[0].footage, state, why, path=printable(path))
    if state in SETTLED_STATES and not work.settings.json and not work.settings.quiet:
        print(printable(path))


def export(work: Work) -> None:
    """A folder to hand over: clips, sidecars and recordings, SHA256SUMS, and one page that lists them."""
    pieces, folder, start_sec, end_sec = chosen_pieces(work)
    wanted = named(pieces)
    if work.settings.dry_run:
        return work.show_plan("export", [one.places[0].footage for one in pieces])
    make_folder(folder)
    foreign = sorted(one.name for one in folder.iterdir()
                     if one.name not in {*wanted, "SHA256SUMS", "index.html"} and not one.name.startswith(FETCH_FOLDER))
    if foreign:
        raise UsageError(f"export: {folder} holds other files ({printable(foreign[0])}); give a new or an empty folder")
    there = collect(work, "export", wanted, folder)
    with part_file(folder / "SHA256SUMS") as part:
        part.write_bytes(b"".join(sum_line(there[name], name) for name in sorted(there)))
    page = export_page(work.settings.words[0], start_sec, end_sec, wanted, there, folder)
    with part_file(folder / "index.html") as part:
        part.write_text(page, encoding="utf-8")
    return None


def sum_line(sha256: str, name: str) -> bytes:
    """As `sha256sum -c` reads it: a name with control characters is escaped, and the line says so."""
    raw = os.fsencode(name)
    escaped = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"\\" if escaped != raw else b"") + sha256.encode() + b"  " + escaped + b"\n"


def uncovered(pieces: Iterable[Piece], start_sec: float, end_sec: float) -> list[tuple[float, float]]:
    """Stretches between the two times of which there is no footage."""
    gaps, reached_sec = [], start_sec
    for one in sorted(pieces, key=lambda one: one.start_sec):
        if one.start_sec > reached_sec + SEAM_SEC:
            gaps.append((reached_sec, min(one.start_sec, end_sec)))
        reached_sec = max(reached_sec, one.end_sec)
    return gaps + ([(reached_sec, end_sec)] if reached_sec + SEAM_SEC < end_sec else [])


def export_page(camera: str, start_sec: float, end_sec: float, wanted: Mapping[str, Piece], there: Mapping[str, str],
                folder: Path) -> str:  # fmt: skip
    """One page without scripts or outside parts."""
    from html import escape
    from urllib.parse import quote

    rows = []
    for name, piece in wanted.items():
        shown = f'<a href="./{quote(os.fsencode(name))}">{escape(printable(name))}</a>' if name in there else (
            f"{escape(printable(name))}: <strong>not exported</strong>")  # fmt: skip
        cells = (shown, escape(piece.kind), utc_text(piece.start_sec), utc_text(piece.end_sec), str(piece.size),
                 f"<code>{there.get(name, '')}</code>", escape(sidecar_words(folder / name)))  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    footage = [piece for name, piece in wanted.items() if name in there and piece.kind != "sidecar"]
    gaps = [f"<li>{utc_text(start)} to {utc_text(end)}</li>" for start, end in uncovered(footage, start_sec, end_sec)]
    title = f"{escape(printable(camera))}, {utc_text(start_sec)} to {utc_text(end_sec)}"
    return PAGE.format(title=title, rows="\n".join(rows), made=utc_text(time.time()),
                       gaps="<ul>" + "".join(gaps) + "</ul>" if gaps else "<p>None.</p>")  # fmt: skip


def sidecar_words(file: Path) -> str:
    """What the sidecar of a clip tells that its reader should know."""
    is_clip = file.suffix == ".mp4" and CLIP_NAME.fullmatch(file.name)
    about = (read_json(file.with_suffix(".json")) or {}) if is_clip else {}
    gaps = about.get("gaps")
    words = ["complete"] if about.get("complete") is True else ["incomplete"] if about.get("complete") is False else []
    for gap in gaps if isinstance(gaps, list) else []:
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            words.append(f"gap {utc_text(gap['start_ms'] / 1000)} to {utc_text(gap['end_ms'] / 1000)}: {gap['reason']}")
    return "; ".join(words)


# --- commands ----------------------------------------------------------------------------------------------------


def run_all(work: Work) -> None:
    """organize, backup, upload, verify of what is here, cleanup: each where configured. A target that is away does not
    stop the others."""
    settings = work.settings
    steps: list[Callable[[Work], None]] = []
    steps += [organize] if settings.ready_dir and (settings.local_dir or settings.clips_dir) else []
    steps += [backup] if "nas" in settings.targets else []
    steps += [upload] if "s3" in settings.targets else []
    steps += [verify_local] if settings.targets else []
    steps += [cleanup] if settings.targets or settings.retention["without_archive"] else []
    if not settings.targets and not settings.retention["without_archive"]:
        raise UsageError("run: no target is configured; set nas.nas_target_dir or s3.bucket")
    for step in steps:
        try:
            step(work)
        except CannotStart as problem:
            work.fail_target(problem, step.__name__.removesuffix("_local"))


def prepare_targets(work: Work, words: Sequence[str]) -> None:
    """`target init|check`, on every configured target."""
    if list(words) not in (["init"], ["check"]):
        raise UsageError("target: say target init or target check")
    if not work.settings.targets:
        raise UsageError("target: none is configured; set nas.nas_target_dir or s3.bucket")
    for name in work.settings.targets:
        about: dict[str, Any] = {}
        try:
            if words[0] == "init":
                target_id = work.make_target(name).initialise()
                if not work.settings.json:
                    print(f"{name}\t{target_id}")
            target = work.target(name)
            about = {"id": target.target_id, "address": target.address, "about": target.check()}
            for line in about["about"]:
                log.info("%s", line)
        except CannotStart as problem:
            work.fail(str(problem))
            work.status = Status.CANNOT_START
            about["why"] = mask(str(problem))
        if work.settings.json:
            print_row({"target": name, "state": "failed" if "why" in about else "ready", **about})


# command -> what it does, and its help
COMMANDS: dict[str, tuple[Callable[[Work], None], str]] = {
    "run": (run_all, "organize, backup, upload, verify of what is here and cleanup, each where configured"),
    "organize": (organize, "finished footage into nas.ready_for_backup_dir, by camera and date"),
    "backup": (backup, "what waits to the NAS, with proof"),
    "upload": (upload, "what waits to S3, with proof"),
    "verify": (verify, "what is recorded against what the targets hold; status 1 when anything is missing or differs"),
    "cleanup": (cleanup, "delete local footage that is proven on every required target"),
    "status": (status, "how each camera stands with each target; asks no target"),
    "find": (find, "where the footage of a moment is: find CAMERA --at TIME"),
    "fetch": (fetch, "footage back into a folder: fetch CAMERA FROM TO DIR, or fetch CAMERA DIR --at TIME"),
    "export": (export, "a folder to hand over, with SHA256SUMS and a page: export CAMERA FROM TO DIR"),
}
READERS = ("status", "find", "fetch", "export")  # change nothing of ours, so they need no lock
ASKED_BY_HAND = ("find", "fetch", "export")  # whoever asks sees the answer, so nobody is notified
TARGETS: dict[str, Callable[[Settings, Memory, int | None, Callable[[Footage, str], bool]], Target]] = {
    "nas": NasTarget,
    "s3": S3Target,
}


def has_records(log_dir: Path) -> bool:
    """Whether the newest sync log is one of ours; the older scripts wrote bare paths."""
    newest = max(log_dir.glob("*.synced"), default=None)
    return bool(newest and read_record(newest.read_bytes().rstrip().rpartition(b"\n")[2]))


def check_folders(settings: Settings) -> None:
    """Raises CannotStart: a source that is not there is a disk that is not mounted, not an empty one."""
    for folder in (settings.local_dir, settings.clips_dir):
        if folder and not folder.is_dir():
            raise CannotStart(f"{folder}: there is no such folder; is its disk mounted?")
    if settings.ready_dir and not settings.state_dir.is_dir() and has_records(settings.log_dir):
        raise CannotStart(f"{settings.ready_dir}: is its disk mounted? There is a sync log, but no "
                          f"{STATE_FOLDER}; footage would end up below the mount; if it is right: mkdir -p "
                          f"{settings.state_dir}")  # fmt: skip
    try:
        for folder in (settings.state_dir, settings.lock_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        settings.lock_file.open("a").close()
    except OSError as problem:
        raise CannotStart(f"{problem.filename}: cannot be written: {problem.strerror}") from problem


def own_lock(settings: Settings) -> Path | None:
    """Readers need none; a verify of everything takes hours, and backups go on beside it."""
    if settings.command in READERS:
        return None
    return settings.lock_file.with_suffix(".verify.lock") if settings.command == "verify" else settings.lock_file


@contextmanager
def lock_for(settings: Settings, wait_sec: float) -> Iterator[int | None]:
    """The lock of a command, which its children hold too; what a killed run has left is removed."""
    if not (file := own_lock(settings)):
        yield None
        return
    with run_lock(file, "nas_sync", wait_sec) as lock:
        for folder in (Path(tempfile.gettempdir()), settings.state_dir):
            for left in folder.glob(f"{scratch(settings)}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield lock.fileno()


def scratch(settings: Settings) -> str:
    """How names of temporary folders begin: alike for those runs only that one lock keeps apart."""
    return f"nas_sync-{zlib.crc32(os.fsencode(own_lock(settings) or settings.state_dir)):08x}-"


def one_round(arguments: argparse.Namespace, config: Mapping[str, Any], config_file: Path) -> int:
    """One run of a command, told to notify.* however it ends; returns its status."""
    settings = settle(arguments, config, config_file)
    if arguments.command == "hold":
        return hold(settings, arguments.words)
    try:
        work = locked_round(arguments, config, settings)
    except Exception as problem:
        status = getattr(problem, "status", Status.PARTIAL)
        if status in (Status.PARTIAL, Status.CANNOT_START):
            tell(settings, config, status, str(problem))
        raise
    tell(settings, config, work.status, "\n".join([work.summary(), *work.failures[:FAILURES_TOLD]]))
    return work.status


def locked_round(arguments: argparse.Namespace, config: Mapping[str, Any], settings: Settings) -> Work:
    """One run of a command under the lock; returns what it did."""
    wait_sec = parse_duration(arguments.lock_wait or 0, "--lock_wait")
    check_folders(settings)
    with lock_for(settings, wait_sec) as lock_fd:
        recording = config["recording"]
        segment_sec = (recording["defaults"] or {}).get("segment_time") or recording["segment_duration"]
        work = Work(settings, float(segment_sec), lock_fd)
        known = known_cameras(settings) if settings.only else ()
        for name in (name for name in settings.only if not is_known(name, known)):
            tell_typo = log.warning if settings.command in (*READERS, "verify", "target") else work.fail
            tell_typo(f"--camera {name}: no footage of a camera of this name is here, and the config has none"
                      f"{spelling(name, known)}")  # fmt: skip
        try:
            if arguments.command == "target":
                prepare_targets(work, arguments.words)
            else:
                COMMANDS[arguments.command][0](work)
        except CannotStart as problem:
            work.fail_target(problem, arguments.command)
        finally:
            work.close()
        if arguments.command in COMMANDS and arguments.command not in READERS and not settings.dry_run:
            work.remember()
        finish(work, arguments)
    return work


def finish(work: Work, arguments: argparse.Namespace) -> None:
    if arguments.command in COMMANDS and arguments.command not in ("status", "find"):
        log.info("%s", work.summary())
    if arguments.json:
        print_row({"summary": {"status": int(work.status), "bytes": dict(work.bytes), **work.about,
                               "steps": {step: dict(states) for step, states in work.counts.items()}}})  # fmt: skip


def told_file(settings: Settings, key: str) -> Path | None:
    """Where it stands what was told of `key`, which comes here from where it stood while a disk was away.

    No folder is made: it would hide below a mount that its disk is away. None: all of them are away."""
    folders = dict.fromkeys((settings.state_dir, settings.lock_file.parent, settings.log_dir))
    usable = [folder / "notify.json" for folder in folders if os.access(folder, os.W_OK)]
    for other in usable[1:]:
        if elsewhere := (read_json(other) or {}).get(key):
            if key not in (read_json(usable[0]) or {}):
                remember_told(usable[0], key, elsewhere)
            remember_told(other, key, None)
    return usable[0] if usable else None


def tell(settings: Settings, config: Mapping[str, Any], status: int, report: str) -> None:
    """How a run ended, to notify.*; where nothing can be remembered, each run tells it."""
    if not settings.dry_run and settings.command in COMMANDS and settings.command not in ASKED_BY_HAND:
        key = f"nas_sync {settings.command}"
        notify(config["notify"], told_file(settings, key), key, status, report)


def service(every_sec: float, once: Callable[[], int]) -> int:
    """Repeat until SIGTERM or Ctrl-C, which end it with status 0. A round that fails does not end it."""
    with suppress(Terminated, KeyboardInterrupt):
        while True:
            began = time.monotonic()
            try:
                once()
            except UsageError:
                raise
            except ProgramError as problem:
                log.log(logging.WARNING if isinstance(problem, Busy) else logging.ERROR, "%s", problem)
            except OSError as problem:  # a full disk, a folder that is away: perhaps not in the next round
                log.error("%s: %s: the next round tries again", problem.filename or "state", problem.strerror)
            time.sleep(max(0.0, every_sec - (time.monotonic() - began)))
    return Status.DONE


# --- command line ------------------------------------------------------------------------------------------------


ACTING = ("run", "organize", "backup", "upload", "verify", "cleanup")
# flag -> the commands that it means something to (none: all), and what argparse is told
FLAGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "--at": (("find", "fetch"), {"metavar": "TIME", "help": "a moment: epoch seconds, ISO 8601, or '2 hours ago'"}),
    "--deep": (("verify",), {"action": "store_true", "help": "read back what the target cannot hash itself"}),
    "--camera": ((*ACTING, "status"),
                 {"metavar": "CAMERA", "action": "append", "help": "only this camera; repeatable"}),
    "--limit": ((*ACTING, "fetch", "export"),
                {"metavar": "N", "type": int, "help": "at most so many files per step (default: all)"}),
    "--max_duration": ((*ACTING, "fetch", "export"),
                       {"metavar": "SEC", "help": "end the run after so long (default: 0, no limit)"}),
    "--bwlimit": (("run", "backup", "upload", "verify", "fetch", "export"),
                  {"metavar": "RATE", "help": "bytes a second, such as 500K or 10M (default: 0, no limit)"}),
    "--lock_wait": ((*ACTING, "target"), {"metavar": "SEC", "help": "wait so long for another run (default: 0)"}),
    "--every": ((*ACTING, "status"), {"metavar": "SEC", "help": "repeat; 0: every upload.check_interval"}),
    "--dry_run": ((*ACTING, "fetch", "export", "hold"),
                  {"action": "store_true", "help": "show what would be done, change nothing"}),
    "--delete_many": (("run", "cleanup"), {"action": "store_true", "help": "cleanup may delete unusually much"}),
    "--json": ((), {"action": "store_true", "help": "results as JSON Lines, the last one a summary"}),
    "--cameras_config": ((), {"metavar": "FILE", "type": Path, "help": "an older cameras.json, over config.yaml"}),
    "--backup_config": ((), {"metavar": "FILE", "type": Path, "help": "an older backup.json, over config.yaml"}),
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    parser = argparse.ArgumentParser(prog="nas_sync.py", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    others = {"target": (None, "init: mark the targets as ours, once; check: are they there, what can they do"),
              "hold": (None, "add, list or remove stretches that cleanup spares")}  # fmt: skip
    words = {"target": "init or check", "hold": "add, list or remove; CAMERA FROM TO", "find": "CAMERA",
             "fetch": "CAMERA FROM TO DIR, or with --at CAMERA DIR", "export": "CAMERA FROM TO DIR"}  # fmt: skip
    for name, (_, what) in {**COMMANDS, **others}.items():
        made = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        if name in words:
            made.add_argument("words", metavar="WORD", nargs="*", help=words[name])
        add_flags(made, name)
        add_common_flags(made)
    return parser


def add_flags(made: argparse.ArgumentParser, command: str) -> None:
    """Those that mean something to it; the others are as if they were not given."""
    for flag, (commands, how) in FLAGS.items():
        if not commands or command in commands:
            made.add_argument(flag, **how)
        else:
            made.set_defaults(**{flag.removeprefix("--"): None})


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, configure, refuse early, act; returns the exit status."""
    arguments, unknown = build_parser().parse_known_args(argv)
    start_logging(arguments)
    if hasattr(arguments, "words") and not any(one.startswith("-") for one in unknown):
        arguments.words, unknown = arguments.words + unknown, []  # those after a flag
    if unknown:
        word = next((one for one in unknown if one.startswith("-")), unknown[0]).partition("=")[0]
        raise UsageError(f"{arguments.command}: {word} means nothing here; see nas_sync.py {arguments.command} --help")
    overlays = [read_overlay(file) for file in (arguments.cameras_config, arguments.backup_config)]
    beside = Path(__file__).resolve().parent
    config: dict[str, Any] = {**load_config(arguments.config, SECTIONS, beside, *overlays)}
    config_file = arguments.config or beside / "config.yaml"
    if arguments.every is None:
        return one_round(arguments, config, config_file)
    settle(arguments, config, config_file)  # refuse before the first round
    every_sec = parse_duration(arguments.every, "--every") or float(config["upload"]["check_interval"])
    return service(max(1.0, every_sec), lambda: one_round(arguments, config, config_file))


if __name__ == "__main__":
    sys.exit(run(main))
