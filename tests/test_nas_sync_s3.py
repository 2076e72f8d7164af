"""nas_sync.py and S3: uploads with proof, and everything that can go wrong with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from archive_servers import FaultProxy, LyingS3, RcloneS3, wait_until

import nas_sync

ROOT = Path(__file__).resolve().parent.parent
MB = 1 << 20
START = "20261101_120000"
KEY = f"Gate/2026/11/01/{START}.mp4"
LONG_AGO_SEC = 1_793_000_000
PATIENCE_SEC = 60


@dataclass
class Result:
    status: int
    out: str
    log: str


@dataclass
class House:
    """A folder with footage, a config file, and the program as a user runs it."""

    folder: Path
    s3: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.footage.mkdir(parents=True, exist_ok=True)
        self.configure()

    @property
    def footage(self) -> Path:
        return self.folder / "recordings"

    @property
    def state(self) -> Path:
        return self.footage / ".nas_sync"

    def configure(self, **s3: Any) -> None:
        self.s3 = {**self.s3, **s3}
        config = {"storage": {"local_path": str(self.footage)}, "s3": self.s3, **self.more}
        config["retention"] = {"grace_sec": 0, **config.get("retention", {})}
        self.config.write_text(yaml.safe_dump(config))
        self.config.chmod(0o600)

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def record(self, size: int = 300_000, name: str = f"{START}.mp4", camera: str = "Gate") -> Path:
        """A finished recording of random bytes."""
        file = self.footage / camera / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(os.urandom(size))
        os.utime(file, (LONG_AGO_SEC, LONG_AGO_SEC))
        return file

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(self.folder), **self.environment}
        command = [sys.executable, str(ROOT / "nas_sync.py"), *arguments, "--config", str(self.config)]
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str) -> Result:
        process = self.start(*arguments)
        try:
            out, log = process.communicate(timeout=PATIENCE_SEC)
        finally:
            process.kill()
        assert "Traceback" not in log, log
        return Result(process.returncode, out, log)

    def init(self) -> None:
        done = self.run("target", "init")
        assert done.status == 0, done.log

    def records(self) -> list[nas_sync.Record]:
        return list(nas_sync.SyncLog(self.state / "synced").records.values())


@pytest.fixture
def house(tmp_path, swift):
    made = House(tmp_path, swift.config(swift.new_bucket()))
    made.init()
    return made


def content(server: Any, house: House, key: str = KEY) -> bytes:
    return server.client().get_object(Bucket=house.s3["bucket"], Key=key)["Body"].read()


# --- the way it should be ---


def test_footage_is_uploaded_proven_and_only_then_deleted(house, swift):
    small, large = house.record(), house.record(20 * MB, "20261101_130000.mp4")
    expected = small.read_bytes(), large.read_bytes()
    done = house.run("upload")
    assert done.status == 0, done.log
    assert (content(swift, house), content(swift, house, "Gate/2026/11/01/20261101_130000.mp4")) == expected
    head = swift.client().head_object(Bucket=house.s3["bucket"], Key=KEY)
    assert head["ContentType"] == "video/mp4"
    assert [(one.path, one.proof, one.sha256) for one in house.records()][0] == (
        f"Gate/{START}.mp4", "crc64nvme", head["Metadata"]["sha256"])  # fmt: skip
    assert small.exists() and large.exists()
    assert house.run("cleanup").status == 0
    assert not small.exists() and not large.exists()
    assert list(house.state.glob("s3_uploads.json")) and not json.loads((house.state / "s3_uploads.json").read_text())
