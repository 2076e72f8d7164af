"""A camera host with its NAS in a folder, and nas_sync.py run on it as a user would."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import nas_sync
import rhombus_logging

ROOT = Path(__file__).resolve().parent.parent
HOUR_SEC = 3600
START_SEC = 1_795_046_400  # 2026-11-19T00:00:00Z
UUID = "Gw9CxvMsTWSkqCbpR9lYGA"


@dataclass(frozen=True)
class Done:
    """How a run ended."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def states(self, step: str) -> dict[str, str]:
        """file name -> state, of a run with --json."""
        return {Path(row["file"]).name: row["state"] for row in self.rows if row.get("step") == step}


class Site:
    """Folders and config.yaml of one installation; `nas` is where a path target points to."""

    def __init__(self, folder: Path, organize: bool = True, **sections: Mapping[str, Any]) -> None:
        self.folder = folder
        self.rec, self.ready, self.clips = folder / "rec", folder / "ready", folder / "clips"
        self.nas, self.synced = folder / "nas", folder / "synced"
        for one in (self.rec, self.clips, self.nas):
            one.mkdir(parents=True, exist_ok=True)
        self.config: dict[str, Any] = {
            "storage": {"local_path": str(self.rec)},
            "rhombus": {"output_dir": str(self.clips)},
            "nas": {"nas_target_dir": str(self.nas), "success_log_dir": str(self.synced), "timeout": 20},
            "retention": {"grace_sec": 0},
        }
        if organize:
            self.config["nas"]["ready_for_backup_dir"] = str(self.ready)
        self.set(**sections)

    def set(self, **sections: Mapping[str, Any]) -> None:
        """Change some keys of config.yaml."""
        for section, values in sections.items():
            self.config.setdefault(section, {}).update(values)
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))

    # -- running --

    def command(self, *words: object) -> list[str]:
        config = str(self.folder / "config.yaml")
        return [sys.executable, str(ROOT / "nas_sync.py"), *map(str, words), "--config", config]

    def start(self, *words: object, prefix: Sequence[str] = (), **more: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*prefix, *self.command(*words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            **more,
        )

    def call(self, *words: object, prefix: Sequence[str] = (), timeout_sec: float = 60) -> Done:
        """In this process, which is quicker; with a `prefix` such as faketime in one of its own."""
        if not prefix:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = rhombus_logging.run(lambda: nas_sync.main(self.command(*words)[2:]))
            return Done(status, out.getvalue(), err.getvalue())
        with self.start(*words, prefix=prefix) as process:
            try:
                out, err = process.communicate(timeout=timeout_sec)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Done(process.returncode, out, err)

    def run(self, *words: object, **more: Any) -> Done:
        """With --json, for looking at the rows."""
        return self.call(*words, "--json", **more)

    def init(self) -> None:
        done = self.call("target", "init")
        assert done.status == 0, done.err

    # -- footage --

    def record(self, camera: str, hour: int, content: bytes = b"", name: str = "", folder: Path | None = None) -> Path:
        """A finished recording of that hour of 2026-11-19, as the recorder leaves it; with content of its own."""
        start_sec = START_SEC + hour * HOUR_SEC
        file = (folder or self.rec / camera) / (name or time.strftime("%Y%m%d_%H%M%S.mp4", time.gmtime(start_sec)))
        return self.write(file, content or f"{camera} {hour} {name!r} ".encode() * 1000, start_sec + HOUR_SEC - 1)

    def write(self, file: Path, content: bytes, mtime_sec: float) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (mtime_sec, mtime_sec))
        return file

    def clip(self, start_sec: int = START_SEC, content: bytes = b"a clip" * 1000) -> tuple[Path, Path]:
        """A clip of copy_footage.py, and its sidecar."""
        file = self.write(self.clips / f"Door_{UUID}_{start_sec}_video.mp4", content, START_SEC + 90_000)
        about = {
            "schema": 1, "requested": {"start_ms": start_sec * 1000, "end_ms": start_sec * 1000 + 60_000},
            "sha256": hashlib.sha256(content).hexdigest(),
        }  # fmt: skip
        sidecar = self.write(file.with_suffix(".json"), json.dumps(about).encode(), START_SEC + 90_000)
        return file, sidecar

    # -- what is where --

    def archived(self, root: Path | None = None) -> dict[str, bytes]:
        return contents(root or self.nas)

    def local(self) -> dict[str, bytes]:
        """Footage that is still here: path -> content."""
        return contents(self.rec) | contents(self.ready) | contents(self.clips)


def contents(root: Path) -> dict[str, bytes]:
    """Of every file below, without dot folders and dot files."""
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    }


def wait_for(happened: Any, what: str, timeout_sec: float = 30) -> Any:
    """Poll until `happened()` is true; its value."""
    deadline = time.monotonic() + timeout_sec
    while not (value := happened()):
        assert time.monotonic() < deadline, f"not within {timeout_sec} s: {what}"
        time.sleep(0.02)
    return value
