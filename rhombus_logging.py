"""How a run of our programs is configured, logged and ended: what a user sees the same way in every one of them.

Exit statuses, the log with secrets masked, config.yaml, times as people write them, files that appear whole or not at
all, locks, "program not found", notifications, and the one place that turns exceptions and signals into a status.
Nothing here knows what a camera is; retries and child processes belong to the programs.

Needs: PyYAML for a config file; apprise only for `notify.urls`. Nothing is imported, opened or changed at import.
"""

from __future__ import annotations

import argparse
import copy
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import stat
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone, tzinfo
from enum import IntEnum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any
from urllib.parse import quote, unquote

LOCK_POLL_SEC = 0.2
NOTIFY_TIMEOUT_SEC = 20
CLUSTER_CONNECT_SEC, CLUSTER_SIGN_SEC, CLUSTER_LOOK_SEC, CLUSTER_DEAD_SEC = 10, 2.0, 0.5, 30.0
CLUSTER_OLD_SEC = 3600  # whoever left such a file was killed
EARLIEST_SEC, LATEST_SEC = 946_684_800, 4_102_444_800  # 2000 and 2100: outside of this a time is a slip
LAST_THREADS_SEC = 0.5  # for threads that are about to end when a program is over
SIGNAL_AGAIN_SEC = 0.05  # long enough for the finaliser that lost it to be over
SHORTEST_SECRET = 4  # shorter values would blank out ordinary words in the log
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
DEBUG_FORMAT = "%(asctime)s %(levelname)s %(threadName)s %(message)s"
# What a secret looks like where nobody registered it: tokens in addresses and headers, passwords in URLs.
SECRET_PATTERNS = (
    re.compile(r"(?i)(x-auth-(?:ft|apikey|access-token)['\"]?\s*[=:]\s*['\"]?)[^\s&'\",;]+"),
    re.compile(r"(RFT:)[A-Za-z0-9_-]+"),
    re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/]*(?=@)"),
)

log = logging.getLogger(__name__)


class Status(IntEnum):
    """Exit statuses, the same in every program."""

    DONE = 0  # done, or nothing to do
    PARTIAL = 1  # finished, but some items failed or are incomplete; a rerun retries only those
    USAGE = 2  # bad flag or config, nothing touched
    CANNOT_START = 3  # key refused, program, mount or server missing
    BUSY = 4  # another run holds the lock
    SIGINT = 130
    SIGTERM = 143


class ProgramError(Exception):
    """A failure that the user can act on: one sentence, and the status that the run ends with."""

    status = Status.CANNOT_START


class UsageError(ProgramError):
    """A flag or a config value is wrong; nothing was touched."""

    status = Status.USAGE


class CannotStart(ProgramError):
    """Something that the run needs is refused or missing."""


class Busy(ProgramError):
    """Another run holds the lock."""

    status = Status.BUSY


class Terminated(BaseException):
    """SIGTERM as an exception, so that `with` blocks clean up."""


# --- log ---------------------------------------------------------------------------------------------------------


class MaskingFormatter(logging.Formatter):
    """Writes a record in local time with its UTC offset, and never a secret: neither message nor traceback."""

    def __init__(self, pattern: str) -> None:
        super().__init__(pattern, "%Y-%m-%dT%H:%M:%S%z")
        self.secrets: set[str] = set()

    def format(self, record: logging.LogRecord) -> str:
        return self.mask(super().format(record))

    def mask(self, text: str) -> str:
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        for pattern in SECRET_PATTERNS:
            text = pattern.sub(r"\1***", text)
        return text


class StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Looks up sys.stderr for each line, so that a progress display can put itself in between."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


class WarningCount(logging.Handler):
    """Counts warnings, for `notify.on: warning`."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        self.count += 1


def _formatters() -> list[MaskingFormatter]:
    found = [handler.formatter for handler in logging.getLogger().handlers]
    return [formatter for formatter in found if isinstance(formatter, MaskingFormatter)]


def hide_secret(value: str | None) -> None:
    """From now on `value` appears in no log line, also not percent-encoded. Call it before the value is used."""
    if value and len(value) >= SHORTEST_SECRET:
        for formatter in _formatters():
            formatter.secrets.update({value, quote(value, safe="")})


def mask(text: str) -> str:
    """`text` without secrets, for what is written elsewhere than to the log: JSON, mail, state files."""
    for formatter in _formatters() or [MaskingFormatter(LOG_FORMAT)]:
        text = formatter.mask(text)
    return text


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every program has: --config, --log_file, --quiet, -g/--debug."""
    group = parser.add_argument_group("every program")
    group.add_argument("--config", metavar="FILE", type=Path, help="settings (default: config.yaml beside the program)")
    group.add_argument("--log_file", metavar="FILE", type=Path, help="also write the log to this file")
    group.add_argument("--quiet", action="store_true", help="nothing on stderr unless something failed (for cron)")
    group.add_argument("-g", "--debug", action="store_true", help="log requests, decisions and threads; never a secret")


def start_logging(arguments: argparse.Namespace) -> None:
    """Log to stderr (with --quiet only what failed) and to --log_file; replaces handlers of an earlier call."""
    logging.raiseExceptions = False  # on a full disk, logging would show arguments with secrets in them
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler.formatter, MaskingFormatter)]:
        root.removeHandler(old)
        old.close()
    handlers: list[logging.Handler] = [StderrHandler()]
    handlers[0].setLevel(logging.ERROR if arguments.quiet else logging.DEBUG)
    refused = ""
    if arguments.log_file:
        from logging.handlers import WatchedFileHandler  # goes on in a new file after logrotate

        try:
            handlers.append(WatchedFileHandler(arguments.log_file, encoding="utf-8"))
        except OSError as problem:
            refused = f"--log_file {arguments.log_file}: {problem.strerror}"
    for handler in [*handlers, WarningCount(logging.WARNING)]:
        handler.setFormatter(MaskingFormatter(DEBUG_FORMAT if arguments.debug else LOG_FORMAT))
        root.addHandler(handler)
    root.setLevel(logging.DEBUG if arguments.debug else logging.INFO)
    for chatty in ("urllib3", "asyncio", "tzlocal"):
        logging.getLogger(chatty).setLevel(logging.DEBUG if arguments.debug else logging.CRITICAL)
    if refused:  # now it can be said as all else is
        raise UsageError(refused)


# --- config ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """One setting: its default, what it may be (`text`, `whole`, `number`, `bool`, `list`, `map`), is it a secret."""

    default: Any = None
    kind: str = "text"
    secret: bool = False
    choices: tuple[str, ...] = ()
    keys: Mapping[str, Key] = field(default_factory=dict)  # of a map, or of each map in a list


_CAMERA_DEFAULTS = {
    "user": Key(), "password": Key(secret=True), "rtsp_port": Key(554, "whole"), "rtsp_path": Key(),
    "output_dir": Key(), "logs_dir": Key(), "segment_time": Key(3600, "whole"), "loglevel": Key("warning"),
    "core": Key(None, "whole")}  # fmt: skip
_STREAM = {  # of all cameras in `recording`, of one camera in `cameras`
    "filename": Key(), "container": Key(choices=("mkv", "mp4")), "audio": Key("copy", choices=("copy", "aac", "none")),
    "transport": Key("tcp", choices=("tcp", "udp")), "tls_verify": Key(True, "bool"), "tls_ca_file": Key(),
    "expected_video": Key(None, "text_or_map"), "expected_audio": Key(None, "text_or_map"),
    "first_frame": Key(75, "number"), "stall": Key(20, "number"), "socket_timeout": Key(10, "number"),
}  # fmt: skip
_GRABBER = {
    "name": Key(), "video_device": Key(secret=True), "audio_device": Key(), "capture_dir": Key(),
    "fps": Key(25, "number"), "size": Key(), "input_format": Key(),
}  # fmt: skip

# The one list of names: an unknown section or key anywhere in a config file is refused. `rhombus` and `notify` are
# read by the programs that are here; the other sections are those of existing installations.
CONFIG_KEYS: dict[str, dict[str, Key]] = {
    "rhombus": {
        "api_key": Key(secret=True), "cert": Key(), "private_key": Key(), "api_url": Key("us"), "org_uuid": Key(),
        "output_dir": Key("."), "location_uuid": Key([], "list"), "camera_uuid": Key([], "list"),
        "workers": Key(4, "whole"), "segment_workers": Key(0, "whole"), "clip_length": Key(0),
        "usewan": Key(False, "bool"), "lan_only": Key(False, "bool"), "verify_lan": Key(False, "bool"),
        "no_audio": Key(False, "bool"), "audio_offset": Key(0, "number"),
        "audio_codec": Key("copy", choices=("copy", "aac")), "bwlimit": Key("0"), "max_duration": Key(0),
        "timezone": Key(), "alert_buffer": Key(30), "max_alerts": Key(100, "whole"), "lag": Key(),
        "lookback": Key("72h"), "give_up_after": Key("7d"), "tries": Key(5, "whole"), "retry_wait": Key(1),
        "connect_timeout": Key(4), "read_timeout": Key(15), "status_max_age": Key("26h"),
        "status_max_pending": Key(100, "whole"), "status_max_lost": Key(0, "whole"),
        "status_min_free_bytes": Key(1_000_000_000, "whole"),
    },
    "notify": {
        "smtp_host": Key(), "smtp_port": Key(587, "whole"), "smtp_user": Key(), "smtp_pass": Key(secret=True),
        "alert_to": Key([], "list"), "urls": Key([], "list", secret=True), "ping_url": Key(secret=True),
        "on": Key("failure", choices=("failure", "warning", "always")), "repeat_after": Key(86400, "whole"),
        "after": Key(60, "number"),
    },
    "storage": {"local_path": Key(), "require_mount": Key(False, "bool"), "reserve_bytes": Key(1_000_000_000, "whole")},
    "cameras": {
        "name": Key(), "rtsp_url": Key(secret=True), "enabled": Key(True, "bool"), "station": Key(), "ip": Key(),
        "label": Key(), "rhombus_uuid": Key(), **_CAMERA_DEFAULTS, **_STREAM,
    },
    "recording": {"segment_duration": Key(3600, "whole"), "timezone": Key("UTC"), **_STREAM,
        "retry_wait": Key(1, "number"), "retry_max": Key(5, "number"), "retry_fast_for": Key(600, "number"),
        "retry_slow": Key(30, "number"), "retry_refused": Key(60, "number"), "fsync_every": Key(2, "number"),
        "clock_step": Key(2, "number"), "stop_wait": Key(2, "number"), "check_bytes": Key(256 << 20, "whole"),
        "defaults": Key({}, "map", keys=_CAMERA_DEFAULTS)},
    "watch": {"multiplier": Key(2, "number"), "disk_percent": Key(85, "number"), "restart_limit": Key(3, "whole")},
    "nas": {"ready_for_backup_dir": Key(), "nas_target_dir": Key(), "success_log_dir": Key(), "lock_dir": Key(),
            "rsync_options": Key([], "list"), "timeout": Key(120, "whole")},
    "s3": {"access_key_id": Key(secret=True), "secret_access_key": Key(secret=True), "bucket": Key(),
           "endpoint": Key(), "region": Key(), "addressing": Key("auto", choices=("auto", "path", "virtual"))},
    "upload": {"check_interval": Key(300, "whole"), "delete_after_upload": Key(True, "bool")},
    "retention": {"keep_days": Key(0, "number"), "max_bytes": Key(0, "whole"), "min_free_bytes": Key(0, "whole"),
                  "grace_sec": Key(900, "whole"), "required": Key([], "list"), "without_archive": Key(False, "bool"),
                  "unusual_files": Key(5000, "whole"), "verify_days": Key(7, "number")},
    "status": {"max_age_sec": Key(0, "whole"), "max_waiting_bytes": Key(0, "whole"), "max_conflicts": Key(-1, "whole"),
               "min_hours_left": Key(0, "number")},
    "analysis": {
        "black_mean": Key(20, "number"), "black_range": Key(6, "number"), "black_sec": Key(1, "number"),
        "freeze_same": Key(0.08, "number"), "freeze_noise": Key(0.35, "number"), "freeze_sec": Key(4, "number"),
        "freeze_noise_share": Key(0.01, "number"), "freeze_ignore_percent": Key(2, "number"),
        "silence_db": Key(-85, "number"), "silence_sec": Key(2, "number"), "quiet_db": Key(-65, "number"),
        "quiet_sec": Key(5, "number"), "audio_required": Key(False, "bool"), "cut_percent": Key(12, "number"),
        "masks": Key({}, "map"), "evidence_dir": Key(), "database": Key(secret=True),
        "capture_dirs": Key(["/var/www/html/stream/capture*/captures"], "list"), "alarm_percent": Key(80, "number"),
        **{f"{kind}_alarm_sec": Key(30 if kind in ("moved", "no_data") else 10, "number") for kind in (
            "freeze", "audio_loss", "no_data", "covered", "defocus", "moved", "no_signal")},
        "blackscreen_alarm_sec": Key(5, "number"), "clear_sec": Key(5, "number"), "reopen_sec": Key(60, "number"),
        "views": Key(["covered", "no_signal"], "list"), "view_messages": Key([], "list"),
        "covered_share": Key(0.2, "number"), "defocus_share": Key(0.55, "number"),
        "moved_likeness": Key(0.3, "number"), "view_relearn_sec": Key(3600, "number"),
    },
    "capture": {"grabbers": Key([], "list", secret=True, keys=_GRABBER), "stills_per_sec": Key(1, "number"),
                "stall": Key(20, "number"), "encoder": Key("auto"), "bitrate": Key("2M"),
                "clean_after": Key(600, "number"), "clean_max_bytes": Key(0, "whole"),
                "clean_wait": Key(3600, "number")},
}  # fmt: skip
VARIABLE = r"\$\{([^}]*)\}"  # ${NAME} in a value
LIST_SECTIONS = ("cameras",)  # a list of maps with these keys, not one map
ENVIRONMENT_OF = {  # environment > config file, for what should not stand in a file
    ("rhombus", "api_key"): "RHOMBUS_API_KEY", ("rhombus", "api_url"): "RHOMBUS_API_URL",
    ("notify", "smtp_host"): "SMTP_HOST", ("notify", "smtp_port"): "SMTP_PORT", ("notify", "smtp_user"): "SMTP_USER",
    ("notify", "smtp_pass"): "SMTP_PASS", ("notify", "alert_to"): "ALERT_TO",
}  # fmt: skip
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "text": ((str, int, float), "text"), "whole": ((int,), "a whole number"), "number": ((int, float), "a number"),
    "bool": ((bool,), "true or false"), "list": ((list,), "a list"), "text_or_map": ((str, dict), "text or a map"),
    "map": ((dict,), "a map of keys"),
}  # fmt: skip


def load_config(path: Path | None, sections: tuple[str, ...], beside: Path, *more: Any,
                secrets: bool | tuple[str, ...] = True) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The settings of `sections`, each key filled: environment > `more` (maps of sections) > file > default.

    `path` None means config.yaml in the folder `beside`, if it is there. Raises UsageError that names every mistake at
    once: unknown names anywhere, wrong types, unset ${NAMES} and leftover YOUR_… values in `sections`. A command that
    needs no password asks without `secrets`, or names the sections that it needs those of: the others are left out,
    and nothing is expected of them.
    """
    open_sections = sections if secrets is True else secrets or ()
    file = path or beside / "config.yaml"
    document = _read_yaml(file) if path or file.exists() else {}
    as_written = copy.deepcopy(document)
    for name, value in [item for overlay in more for item in overlay.items()]:
        document[name] = {**document[name], **value} if isinstance(document.get(name), dict) else value
    mistakes: list[str] = []
    for section, content in document.items():
        known = CONFIG_KEYS.get(str(section))
        if known is None:
            mistakes.append(f"{section}: there is no such section{_nearest(section, CONFIG_KEYS)}")
            continue
        for where, values in _maps_of(section, content, mistakes):
            if section not in open_sections:
                _leave_out_secrets(values, known)
            _check_map(where, values, known, section in sections, mistakes)
    if mistakes:
        raise UsageError(f"{file}{', or what was given over it' if any(more) else ''}: " + "; ".join(mistakes))
    _check_permissions(file, as_written)
    return {section: _fill(section, document.get(section), section in open_sections) for section in sections}


def _maps_of(section: str, content: Any, mistakes: list[str]) -> list[tuple[str, Any]]:
    """(name for a sentence, map) of a section, or of each map in a section that is a list."""
    if section not in LIST_SECTIONS:
        return [(section, content)]
    if content and not isinstance(content, list):
        mistakes.append(f"{section}: expected a list, in which each one begins with '- '")
        return []
    names = (isinstance(one, dict) and (one.get("name") or one.get("station")) for one in content or ())
    return [(f"{section}[{name or number}]", content[number - 1]) for number, name in enumerate(names, 1)]


def read_overlay(file: Path | None) -> dict[str, Any]:
    """An older cameras.json or backup.json as `more` for load_config; {} without one. Raises UsageError."""
    try:
        document = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError) as problem:
        raise UsageError(f"{file}: cannot be read as JSON: {problem}") from problem
    if not isinstance(document, (dict, list)):
        raise UsageError(f"{file}: expected a map of keys or a list of cameras")
    return as_sections(document)


def as_sections(document: Any) -> dict[str, Any]:
    """An older cameras.json or backup.json as sections of config.yaml.

    A list is `cameras`, `defaults` belongs to `recording`, flat keys of a backup belong to `nas`.
    """
    if isinstance(document, list):
        return {"cameras": document}
    sections: dict[str, Any] = {}
    for name, value in document.items():
        if name == "defaults":
            sections.setdefault("recording", {})["defaults"] = value
        elif isinstance(value, dict) or name == "cameras":
            sections[name] = {**sections.get(name, {}), **value} if isinstance(value, dict) else value
        else:
            sections.setdefault("nas", {})[name] = value
    return sections


def _read_yaml(file: Path) -> dict[Any, Any]:
    """What the file says; unlike YAML 1.1, nothing twice, and 0123 or 12:30 (a password) as they are written."""
    import yaml

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [name for name, _value in node.value if isinstance(name, yaml.ScalarNode) and name.value != "<<"]
            before: set[str] = set()
            for name in names:
                if name.value in before:
                    raise yaml.constructor.ConstructorError(None, None, f"{name.value} is given twice", name.start_mark)
                before.add(name.value)
            return super().construct_mapping(node, deep)

        def whole_number(self, node: yaml.ScalarNode) -> int | str:
            as_written = re.match(r"[+-]?0\d|.*:", node.value)
            return str(node.value) if as_written else self.construct_yaml_int(node)

    Strict.add_constructor("tag:yaml.org,2002:int", Strict.whole_number)
    try:
        document = yaml.load(file.read_text(encoding="utf-8"), Strict)  # noqa: S506  it is a SafeLoader
    except OSError as problem:
        raise UsageError(f"{file}: cannot be read: {problem.strerror}") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise UsageError(f"{file}: this is not valid YAML{where}: {getattr(problem, 'problem', problem)}") from problem
    if not isinstance(document, (dict, type(None))):
        raise UsageError(f"{file}: expected sections such as 'rhombus:' at the top")
    document = document or {}
    for values in document.values():
        if isinstance(values, dict) and True in values:  # YAML 1.1 reads the bare key `on:` as true
            values["on"] = values.pop(True)
    return document


def _check_map(where: str, values: Any, known: Mapping[str, Key], used: bool, mistakes: list[str]) -> None:
    """Check one map of keys against the names and kinds, replacing ${NAME} in place; mistakes are appended."""
    if not isinstance(values, dict):
        if values is not None:
            mistakes.append(f"{where}: expected a map of keys")
        return
    for name, value in list(values.items()):
        key = known.get(str(name))
        if key is None:
            mistakes.append(f"{where}.{name}: there is no such key{_nearest(name, known)}")
            continue
        if key.keys and key.kind == "map":
            _check_map(f"{where}.{name}", value, key.keys, used, mistakes)
        if used and value is not None:
            values[name] = _checked(f"{where}.{name}", value, key, mistakes)


def _leave_out_secrets(values: Any, known: Mapping[str, Key]) -> None:
    for name in values if isinstance(values, dict) else ():
        key = known.get(str(name), Key())
        if key.secret:
            values[name] = None
        _leave_out_secrets(values[name], key.keys)


def _checked(where: str, value: Any, key: Key, mistakes: list[str]) -> Any:
    if isinstance(value, list) and key.kind == "list":
        maps = [item for item in value if key.keys and isinstance(item, dict)]
        for item in maps:
            _check_map(where, item, key.keys, used=True, mistakes=mistakes)
        return [item if item in maps else _checked(where, item, Key(), mistakes) for item in value]
    if isinstance(value, str):
        names = re.findall(VARIABLE, value)
        mistakes += [f"{where}: the environment has no variable {name}" for name in names if name not in os.environ]
        value = re.sub(VARIABLE, lambda found: os.environ.get(found[1], ""), value)
        if value.startswith("YOUR_"):
            mistakes.append(f"{where}: still holds the placeholder {value}")
        if names and key.kind in ("whole", "number", "bool"):
            with suppress(ValueError):
                value = json.loads(value)
        if key.kind == "list":
            return [value]
    types, words = KINDS[key.kind]
    if not isinstance(value, types) or (isinstance(value, bool) and key.kind != "bool"):
        shown = "a list" if isinstance(value, list) else "***" if key.secret else repr(value)
        mistakes.append(f"{where}: expected {words}, found {shown}")
    elif key.choices and value not in key.choices:
        mistakes.append(f"{where}: expected one of {', '.join(key.choices)}, found {value!r}")
    return value


def _nearest(name: Any, known: Mapping[str, Any]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _fill(section: str, values: Any, secrets: bool) -> Any:
    if section in LIST_SECTIONS:
        return values or []
    filled = {name: key.default for name, key in CONFIG_KEYS[section].items()}
    filled |= {name: value for name, value in (values or {}).items() if value is not None}
    for (owner, name), variable in ENVIRONMENT_OF.items():
        if owner == section and (text := os.environ.get(variable)) and (secrets or not CONFIG_KEYS[owner][name].secret):
            kind = CONFIG_KEYS[section][name].kind
            if kind == "whole" and not text.isdigit():
                raise UsageError(f"{variable} in the environment: expected a whole number, found {text!r}")
            filled[name] = text.replace(",", " ").split() if kind == "list" else int(text) if kind == "whole" else text
    return filled


def _check_permissions(file: Path, document: Mapping[Any, Any]) -> None:
    """A secret in a file that others can read is warned about, and refused where systemd runs us."""
    if os.name != "posix" or not file.exists() or not file.stat().st_mode & stat.S_IROTH:
        return
    secrets = (secret for section, values in document.items()
               for one in (values if isinstance(values, list) else [values])
               for secret in _secrets_in(section, one or {}, CONFIG_KEYS[section]))  # fmt: skip
    if secret := next(secrets, None):
        sentence = f"{file}: others can read {secret}; run: chmod o-r {file}"
        if "INVOCATION_ID" in os.environ:
            raise UsageError(sentence)
        log.warning(sentence)


def _secrets_in(where: str, values: Mapping[str, Any], known: Mapping[str, Key]) -> Iterator[str]:
    """Names of secrets that stand in `values` themselves, not as ${NAME}; an RTSP address without a login is none."""
    for name, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if known[name].keys and isinstance(item, dict):
                yield from _secrets_in(f"{where}.{name}", item, known[name].keys)
        is_address = name in ("rtsp_url", "grabbers", "video_device", "database")
        if known[name].secret and value and "${" not in str(value) and (not is_address or "@" in str(value)):
            yield f"{where}.{name}"


# --- times -------------------------------------------------------------------------------------------------------


def parse_zone(name: str | None, what: str = "timezone") -> tzinfo:
    """The zone called `name`; without a name the host's, with its summer time. Raises UsageError."""
    if not name:
        from tzlocal import get_localzone

        return get_localzone()
    from zoneinfo import ZoneInfo

    try:
        return timezone.utc if name.upper() == "UTC" else ZoneInfo(name)
    except (OSError, ValueError, KeyError) as problem:
        raise UsageError(f"{what}: there is no time zone {name!r}; say for example Europe/Berlin") from problem


def parse_time(text: str, what: str, zone: tzinfo, now: float | None = None) -> float:
    """Epoch seconds from epoch seconds, ISO 8601, or words such as "2 hours ago"; without a zone in `zone`.

    Raises UsageError, which names the flag `what`.
    """
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text) and len(text) != len("20261120"):
        found = float(text)
        if found > LATEST_SEC * 10:
            raise UsageError(f"{what}: {text} looks like milliseconds; say seconds")
    else:
        from dateutil.parser import isoparse  # before 3.11 Python itself knows only some of ISO 8601

        moment: datetime | None
        try:
            moment = isoparse(text)
        except ValueError:
            moment = _words_time(text, zone, time.time() if now is None else now)
        if moment is None:
            raise UsageError(f'{what}: {text!r} is not a time; say epoch seconds, 2026-11-20T09:00, or "2 hours ago"')
        if not moment.tzinfo:
            moment, later = moment.replace(tzinfo=zone, fold=0), moment.replace(tzinfo=zone, fold=1)
            if moment.utcoffset() != later.utcoffset():
                log.warning("%s: %s comes twice or never, because summer time begins or ends then; taken as %s", what,
                            text, moment.isoformat(timespec="seconds"))  # fmt: skip
        found = moment.timestamp()
    if not EARLIEST_SEC <= found <= LATEST_SEC:
        raise UsageError(f"{what}: {text!r} is not between the years 2000 and 2100")
    return found


def parse_span(arguments: argparse.Namespace, zone: tzinfo) -> tuple[float | None, float | None]:
    """--since and --until in epoch seconds; None for one that is not given, which an empty one is not."""
    given = (arguments.since, "--since"), (arguments.until, "--until")
    since_sec, until_sec = (None if text is None else parse_time(text, flag, zone) for text, flag in given)
    if since_sec is not None and since_sec >= (time.time() if until_sec is None else until_sec):
        raise UsageError("--since is not before --until, or not in the past")
    return since_sec, until_sec


def parse_duration(text: str | float, what: str) -> float:
    """Seconds from `90`, `90m`, `1h30m`, `7d`. Raises UsageError, which names the flag `what`."""
    text = str(text).strip().lower()
    text = f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text) else text
    parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?", text)
    if not parts or not any(parts.groups()):
        raise UsageError(f"{what}: {text!r} is not a duration; say seconds, or for example 90m or 1h30m")
    days, hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def utc_day(moment_sec: float) -> str:
    return datetime.fromtimestamp(moment_sec, timezone.utc).date().isoformat()


def _words_time(text: str, zone: tzinfo, now: float) -> datetime | None:
    if not re.search(r"[a-z]{2}|^\d?\d:\d\d", text.lower()):
        return None  # 05/06/2026 would be guessed to be in May, and 2026-13-01 in January
    import dateparser

    # Hours and minutes are counted back, whatever clocks on the wall did meanwhile; days are those of the calendar.
    is_counted = re.search(r"\bnow$|(?:\b|\d)(?:h|hours?|m|min(?:ute)?s?|s|sec(?:ond)?s?)\s+ago$", text.lower())
    base = datetime.fromtimestamp(now, timezone.utc if is_counted else zone).replace(tzinfo=None)
    found = dateparser.parse(text, languages=["en"], settings={"RELATIVE_BASE": base, "PREFER_DATES_FROM": "past"})
    return found.replace(tzinfo=timezone.utc) if found and is_counted else found


# --- bytes -------------------------------------------------------------------------------------------------------


def parse_rate(text: str | float, what: str) -> int:
    """Bytes per second from `500K`, `10M` (1024 based, as rsync and rclone have it); `0` or nothing means no limit.

    Raises UsageError, which names the flag `what`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG])(?:i?B)?(?:/s)?|0?", str(text).strip(), re.IGNORECASE)
    if not match:
        raise UsageError(f"{what}: {text!r} needs a unit; say for example 500K or 10M (bytes a second)")
    return round(float(match[1] or 0) * 1024.0 ** ("KMG".index((match[2] or "K").upper()) + 1))


def progress_bars() -> Any:
    """A rich.progress.Progress on stderr, not started: what, bar, bytes, rate, time left.

    stdout is left alone where it carries results to a file or a pipe; on a terminal, bars and results take turns, and
    a long line of a result stays one line, to be copied as it is.
    """
    from rich import console, progress

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
               progress.TransferSpeedColumn(), progress.TimeRemainingColumn())  # fmt: skip
    shown_on = console.Console(stderr=True, soft_wrap=True)
    return progress.Progress(*columns, console=shown_on, redirect_stdout=sys.stdout.isatty())


def size_text(size_bytes: float) -> str:
    for unit, digits in (("B", 0), ("kB", 1), ("MB", 1)):
        if size_bytes < 1000:
            return f"{size_bytes:.{digits}f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


# --- files -------------------------------------------------------------------------------------------------------


def absolute(path: object) -> Path:
    """Of a path as a user gives it; links stay as they are."""
    return Path(os.path.abspath(Path(str(path)).expanduser()))  # noqa: PTH100


def fsync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can (Windows cannot open folders)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:  # some network filesystems refuse; the rename itself has happened
        log.debug("%s: this filesystem does not sync folders", folder)
    finally:
        os.close(handle)


@contextmanager
def part_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it is synced and renamed to `path`, on failure removed.

    A crash leaves either the old `path` or the new one, and at worst a `*.part` beside it.
    """
    part = path.with_name(f"{path.name[:48]}.{os.getpid()}.{threading.get_ident()}.part")  # a name has 255 bytes
    try:
        yield part
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
        fsync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, whole or not at all."""
    with part_file(path) as part:
        text = json.dumps(value, indent=1, ensure_ascii=False)  # names that are no text become JSON's \udcff
        part.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is none, or it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def append_line(path: Path, line: str) -> None:
    """Append one line and sync it. Lines of programs that run side by side never mix; a torn last line is closed."""
    with path.open("ab+") as handle:
        lock_file(handle, wait=True)
        torn = handle.seek(0, os.SEEK_END) > 0 and (handle.seek(-1, os.SEEK_END), handle.read(1))[1] != b"\n"
        handle.write((b"\n" if torn else b"") + line.encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


# --- locks -------------------------------------------------------------------------------------------------------


def lock_file(handle: IO[Any], *, wait: bool = False) -> bool:
    """Take the lock of an open file until it is closed; False when another process or handle has it.

    Where there are no such locks (Windows, some network mounts) it says so once in the debug log and answers True.
    """
    try:
        import fcntl
    except ImportError:
        log.debug("%s: this system has no file locks, going on without", handle.name)
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as problem:
        log.debug("%s: no lock on this filesystem (%s), going on without", handle.name, problem.strerror)
    return True


@contextmanager
def run_lock(path: Path, what: str, wait_sec: float = 0) -> Iterator[IO[bytes]]:
    """Hold `path` as the lock of `what` for the length of a `with` block; Busy names who has it.

    A child that is given the descriptor of the yielded file holds the lock as well, also when it outlives us.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_sec
    with path.open("ab+", buffering=0) as handle:
        while not lock_file(handle):
            if time.monotonic() >= deadline:
                handle.seek(0)
                raise Busy(f"{what}: another run holds {path} (process {handle.read().decode().strip() or 'unknown'})")
            time.sleep(LOCK_POLL_SEC)
        with suppress(OSError):  # on a full disk the lock is held all the same, it only does not say by whom
            handle.truncate(0)
            handle.write(str(os.getpid()).encode())
        yield handle


# --- programs ----------------------------------------------------------------------------------------------------


def find_program(name: str, needed_for: str, install: str) -> str:
    """The path of a program, or CannotStart that says what it is needed for and how to get it."""
    found = shutil.which(name)
    if not found:
        raise CannotStart(f"{name} was not found; it is needed for {needed_for}; {install}")
    return found


def find_ffmpeg(needed_for: str) -> str:
    """FFmpeg from PATH, else the one that the package imageio-ffmpeg brings along."""
    with suppress(ImportError, RuntimeError):
        if not shutil.which("ffmpeg"):
            import imageio_ffmpeg

            return str(imageio_ffmpeg.get_ffmpeg_exe())
    return find_program("ffmpeg", needed_for, "install it with 'pip install imageio-ffmpeg' or from your system")


def end_processes(find: Callable[[], Sequence[int]], who: str, whose: str, step_sec: float) -> None:
    """TERM, TERM, KILL to FFmpegs of a killed program, each `step_sec` after the other, while `find` finds any.

    The first makes FFmpeg finish its file, the second ends one that waits for the camera."""
    for what in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if not (processes := find()):
            return
        log.warning("%s: ending FFmpeg %s of a %s that was killed", who, processes[0], whose)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, what)
        until = time.monotonic() + step_sec
        while time.monotonic() < until and find():
            time.sleep(0.02)


# --- notifications -----------------------------------------------------------------------------------------------


def notify(settings: Mapping[str, Any], state_file: Path | None, key: str, status: int, report: str) -> None:
    """Tell `notify.*` how the run `key` ended: on failure (status 1 or 3), again after `repeat_after`, on recovery.

    The first line of `report` becomes the subject. What was told is remembered in `state_file`, where there is one, so
    that a failure that lasts is not told at every run. A notification that fails is a warning and never changes the
    result.
    """
    before, now = (read_json(state_file) or {}).get(key) if state_file else None, time.time()
    warned = any(isinstance(one, WarningCount) and one.count for one in logging.getLogger().handlers)
    failed = status in (Status.PARTIAL, Status.CANNOT_START) or (warned and settings["on"] == "warning")
    due = not before or before["status"] != status or now - before["told_at"] >= settings["repeat_after"]
    event, intro = "", ""
    if failed:
        event = "failed" if due else ""
    elif before:
        since = time.strftime("%Y-%m-%d %H:%M %z", time.localtime(before["since"]))
        event, intro = "recovered", f"failing since {since}, now well again\n\n"
    elif settings["on"] == "always":
        event = "done"
    results = []
    for channel in channels(settings).values() if event else ():
        try:
            send_message(channel, f"[{key}] {event}: {(report.splitlines() or [''])[0]}", intro + report)
            results.append(True)
        except Exception as problem:  # noqa: BLE001  a channel may fail in any way; the result of the run stands
            log.warning("notification not sent: %s", problem)
            results.append(False)
    sent = any(results) or not results  # by one channel is enough: the others would get it again and again
    after = None if sent else before
    if failed:
        first = before or {"since": now, "told_at": 0}
        after = {"since": first["since"], "status": status, "told_at": now if due and sent else first["told_at"]}
    else:
        ping(settings["ping_url"])
    if state_file and after != before:
        remember_told(state_file, key, after)


def remember_told(state_file: Path, key: str, value: Any) -> None:
    """Replace one key of a JSON file that runs side by side share; None removes it."""
    try:
        state_file.parent.mkdir(parents=True, exist_ok=True)
        with state_file.with_suffix(".lock").open("ab") as handle:
            lock_file(handle, wait=True)
            others = {name: one for name, one in (read_json(state_file) or {}).items() if name != key}
            write_json(state_file, others if value is None else {**others, key: value})
    except OSError as problem:
        log.warning("%s: not written: %s", state_file, problem.strerror)


def channels(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`notify.*` split into settings of one channel each, by a name that holds no secret."""
    mail = {"mail": {**settings, "urls": []}} if settings["smtp_host"] and settings["alert_to"] else {}
    others = {f"url {zlib.crc32(url.encode()):08x}": {**settings, "smtp_host": None, "urls": [url]}
              for url in settings["urls"]}  # fmt: skip
    return mail | others


def send_message(settings: Mapping[str, Any], subject: str, body: str, message_id: str = "") -> None:
    """One message to everybody in `notify.*`, without secrets; raises when a channel fails."""
    subject, body = mask(subject)[:200], mask(body)
    if settings["smtp_host"] and settings["alert_to"]:
        _send_mail(settings, subject, body, message_id)
    if settings["urls"]:
        try:
            import apprise
        except ImportError as problem:
            raise OSError("notify.urls needs the package apprise: pip install apprise") from problem
        posts = apprise.Apprise()
        for url in settings["urls"]:
            hide_secret(url)
            for piece in re.findall(r"[^:/?&=@.,]{8,}", unquote(url)):  # tokens, in the address that is called
                hide_secret(None if piece.islower() and piece.isalpha() else piece)
            posts.add(url)
        if not posts.notify(title=subject, body=body):
            raise OSError("notify.urls: at least one channel did not take the message")


def _send_mail(settings: Mapping[str, Any], subject: str, body: str, message_id: str = "") -> None:
    import smtplib
    import ssl
    from email import policy
    from email.message import EmailMessage
    from email.utils import localtime, make_msgid

    host, port, user = str(settings["smtp_host"]), int(settings["smtp_port"]), settings["smtp_user"]
    # Folding would begin the subject with a line break where it has a long path; mail filters would not know it again.
    message = EmailMessage(policy.default.clone(max_line_length=998) if subject.isascii() else policy.default)
    message["Subject"] = subject
    message["From"] = user if user and "@" in str(user) else f"camera-archive@{socket.gethostname()}"
    message["To"] = ", ".join(settings["alert_to"])
    message["Date"] = localtime()
    # One that is given tells a second delivery from a second message.
    message["Message-ID"] = f"<{message_id}@camera-archive>" if message_id else make_msgid(domain="camera-archive")
    message.set_content(body or subject)
    tls = ssl.create_default_context()
    is_safe, patience = port == smtplib.SMTP_SSL_PORT, NOTIFY_TIMEOUT_SEC
    kind = partial(smtplib.SMTP_SSL, context=tls) if is_safe else smtplib.SMTP
    with kind(host, port, timeout=patience) as server:
        server.ehlo()
        if not is_safe and server.has_extn("starttls"):
            server.starttls(context=tls)  # after which login and send_message say EHLO anew
            is_safe = True
        if user and settings["smtp_pass"]:
            if not is_safe and host not in ("localhost", "127.0.0.1", "::1"):
                raise OSError(f"{host} offers no TLS, so the password was not sent")
            hide_secret(str(settings["smtp_pass"]))
            server.login(str(user), str(settings["smtp_pass"]))
        server.send_message(message)


def ping(url: str | None) -> None:
    """Tell a dead-man's switch that the run ended well; its silence is what raises the alarm."""
    if not url:
        return
    import urllib.request

    hide_secret(url)
    try:
        if not url.startswith(("http://", "https://")):
            raise ValueError("expected an http or https address")
        urllib.request.urlopen(url, timeout=NOTIFY_TIMEOUT_SEC).close()  # noqa: S310
    except (OSError, ValueError) as problem:
        log.warning("notify.ping_url: not told: %s", problem)


# --- many machines -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cluster:
    """A connected Dask cluster. `sign` is a file in the shared folder: work goes on only while it is touched."""

    client: Any
    sign: Path


@contextmanager
def cluster(address: str, folder: Path, modules: Sequence[Path], needs: str = "") -> Iterator[Cluster]:
    """Connect to the scheduler at `address`, for work on `folder`, which every worker has to see under the same path.

    `modules` are sent to workers that have not the same files, in this order. `needs` names an environment variable
    that workers must have when the connection to any of them is neither encrypted nor local: a secret is not sent then.
    Leaving the block, or dying, ends the work on all workers within seconds. Raises CannotStart.
    """
    try:
        from distributed import Client
    except ImportError as problem:
        raise CannotStart("--scheduler needs the package distributed: pip install distributed") from problem
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    sign = folder / f"cluster.{os.getpid()}.{time.time_ns():x}.run"
    connect: Any = Client
    try:
        client = connect(address, timeout=CLUSTER_CONNECT_SEC, set_as_default=False)
    except Exception as problem:  # noqa: BLE001  the library raises what its transport raises
        raise CannotStart(f"--scheduler {address}: no Dask scheduler there ({type(problem).__name__})") from problem
    for old in folder.glob("cluster.*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > CLUSTER_OLD_SEC:
                old.unlink()
    ended = threading.Event()
    try:
        sign.touch()
        threading.Thread(target=_keep_young, args=(sign, ended), daemon=True, name="cluster").start()
        _check_workers(client, address, sign, modules, needs)
        yield Cluster(client, sign)
    finally:
        ended.set()
        sign.unlink(missing_ok=True)
        client.close(timeout=2)


def is_open_road(address: str) -> bool:
    """Whether others on the network could read what is sent to a Dask `address`."""
    host = address.partition("://")[2].rpartition(":")[0].strip("[]")
    return not (address.startswith(("tls://", "inproc://")) or host in ("localhost", "::1") or host.startswith("127."))


def _keep_young(sign: Path, ended: threading.Event) -> None:
    while not ended.wait(CLUSTER_SIGN_SEC):
        with suppress(OSError):
            os.utime(sign)


def _check_workers(client: Any, address: str, sign: Path, modules: Sequence[Path], needs: str) -> None:
    """Every worker sees `sign`, has `modules` as they are here, and the variable `needs` where it must."""
    files = {module.stem: hashlib.sha256(module.read_bytes()).hexdigest() for module in modules}

    def look(path: str, names: list[str], variable: str) -> tuple[bool, dict[str, str], bool]:  # sent by value
        import hashlib
        import os
        import sys
        from pathlib import Path

        has = {name: hashlib.sha256(Path(str(sys.modules[name].__file__)).read_bytes()).hexdigest()
               for name in names if name in sys.modules}  # fmt: skip
        return Path(path).exists(), has, variable in os.environ

    found = client.run(look, str(sign), list(files), needs)
    if not found:
        raise CannotStart(f"--scheduler {address}: it has no workers; start some with: dask worker {address}")
    if blind := sorted(worker for worker, (sees, _, _) in found.items() if not sees):
        raise CannotStart(f"{sign.parent.parent}: not seen by {', '.join(blind)}; --scheduler needs an output folder "
                          "that all workers share, under the same path")  # fmt: skip
    bare = sorted(worker for worker, (_, _, has) in found.items() if not has and is_open_road(worker))
    if needs and bare:
        raise CannotStart(f"{', '.join(bare)}: {needs} is not set there, and it is not sent over a connection that "
                          "others can read; set it for the workers, or use tls://")  # fmt: skip
    if any(has != files for _, has, _ in found.values()):
        for module in modules:
            client.upload_file(str(module))


def watch_sign(sign: Path, end: Callable[[str], None]) -> None:
    """On a worker: call `end` with the reason when whoever started the run has ended it, or has died."""
    seen, last = 0.0, time.monotonic()
    while True:
        try:
            young = sign.stat().st_mtime
        except OSError:
            return end("stopped by a signal")
        if young != seen:
            seen, last = young, time.monotonic()
        elif time.monotonic() - last > CLUSTER_DEAD_SEC:
            return end("the program that asked for it is gone")
        time.sleep(CLUSTER_LOOK_SEC)


# --- end of a run ------------------------------------------------------------------------------------------------


def tell_systemd(message: str) -> None:
    """sd_notify: one datagram to the socket that systemd names, nothing without it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        try:
            notifier.connect("\0" + address[1:] if address.startswith("@") else address)
            notifier.sendall(message.encode())
        except OSError as problem:
            log.debug("systemd was not told %s: %s", message, problem)


@contextmanager
def signals_as(stopping: threading.Event) -> Iterator[list[int]]:
    """Within the block a signal sets the event, and is noted in the list."""
    noted: list[int] = []

    def note(number: int, _frame: object) -> None:
        noted.append(number)
        stopping.set()

    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    for one, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(one, note)
    try:
        yield noted
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _open_standard_files() -> None:
    """Where the shell has closed them (`>&-`), a file of footage would take their place and get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123  open until the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123


def _flush_standard_files() -> None:
    """What a closed terminal or a full disk no longer takes is dropped; Python would make it the status 120."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _outlasts(thread: threading.Thread, give_up_at: float) -> bool:
    """Whether a thread lives longer than that, or nobody can tell: a signal came while it was being started."""
    try:
        thread.join(max(0.0, give_up_at - time.monotonic()))
    except RuntimeError:
        return True
    return thread.is_alive()


def _signal_again(lost: sys.UnraisableHookArgs) -> None:
    """A signal's exception that came in a finaliser, where Python drops it, comes once more a moment later."""
    if not issubclass(lost.exc_type, (KeyboardInterrupt, Terminated)):
        sys.__unraisablehook__(lost)
        return
    number = signal.SIGINT if issubclass(lost.exc_type, KeyboardInterrupt) else signal.SIGTERM
    if hasattr(signal, "pthread_kill"):
        again = threading.Timer(SIGNAL_AGAIN_SEC, signal.pthread_kill, (threading.main_thread().ident, number))
    else:
        again = threading.Timer(SIGNAL_AGAIN_SEC, signal.raise_signal, (number,))
    again.daemon = True
    again.start()


def run(main: Callable[[], int]) -> int:
    """Call `main` and turn whatever happens into an exit status; the last line of every program.

    SIGTERM becomes the exception Terminated. Threads of `main` that still hang in a system call half a second after it,
    or when a signal ended it, cannot hold the process up: whatever they were doing was not recorded as done.
    """
    others = {threading.main_thread(), *threading.enumerate()}

    def terminate(_signum: int, _frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    before, sys.unraisablehook = sys.unraisablehook, _signal_again
    _open_standard_files()
    try:
        status = int(main())
        try:
            sys.stdout.flush()
        except OSError as problem:
            problem.filename = "stdout"
            raise
    except ProgramError as problem:
        log.log(logging.WARNING if isinstance(problem, Busy) else logging.ERROR, "%s", problem)
        log.debug("where it was raised", exc_info=problem)
        status = int(problem.status)
    except KeyboardInterrupt:
        status = int(Status.SIGINT)
    except Terminated:
        status = int(Status.SIGTERM)
    except BrokenPipeError:  # the reader of stdout (head, grep -q) has gone; that is its right
        status = int(Status.PARTIAL)
    except Exception as problem:  # noqa: BLE001  the one place where a bug becomes a status
        if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            log.error("%s: %s: what is done is kept, the rest is for the next run", problem.filename or "state",
                      problem.strerror)  # fmt: skip
            log.debug("where it was raised", exc_info=problem)
        else:
            log.exception("this is a bug in the program, please report it with the lines below")
        status = int(Status.PARTIAL)
    sys.unraisablehook = before
    _flush_standard_files()
    ours = [thread for thread in threading.enumerate() if not thread.daemon and thread not in others]
    give_up_at = time.monotonic() + (0 if status in (Status.SIGINT, Status.SIGTERM) else LAST_THREADS_SEC)
    hangs = True
    with suppress(KeyboardInterrupt, Terminated):
        hangs = any(_outlasts(thread, give_up_at) for thread in ours)
    if hangs:
        logging.shutdown()
        os._exit(status)
    return status
