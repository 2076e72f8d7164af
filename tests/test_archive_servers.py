"""The servers and faults that nas_sync.py is tested with do what its tests rely on."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys

import pytest
import yaml
from archive_servers import (
    HOST,
    ROOT,
    FaultProxy,
    LyingS3,
    RcloneS3,
    RsyncDaemon,
    SshServer,
    TcpProxy,
    free_port,
)
from botocore.exceptions import BotoCoreError, ClientError
from conftest import need

pytestmark = pytest.mark.slow  # the servers of the tests
CONTENT = bytes(range(256)) * 1000
WRONG_CRC32 = "AAAAAA=="


def rsync(*arguments: object) -> int:
    return subprocess.run(
        [need("rsync"), "-r", "--timeout=20", *map(str, arguments)], check=False, capture_output=True, timeout=60
    ).returncode


@pytest.fixture
def footage(tmp_path):
    folder = tmp_path / "footage"
    folder.mkdir()
    (folder / "one.mp4").write_bytes(CONTENT)
    return folder


def test_a_nas_over_ssh_takes_files_rejects_logins_and_changes_its_host_key(tmp_path, footage):
    need("rsync")
    need("sshd")
    with SshServer(tmp_path) as nas:
        assert rsync("-e", nas.ssh_command, f"{footage}/", nas.target) == 0
        assert (nas.root / "one.mp4").read_bytes() == CONTENT
        nas.reject()
        assert rsync("-e", nas.ssh_command, f"{footage}/", nas.target) != 0
        nas.accept()
        assert rsync("-e", nas.ssh_command, f"{footage}/", nas.target) == 0
        nas.change_host_key()
        assert rsync("-e", nas.ssh_command, f"{footage}/", nas.target) != 0
    assert rsync("-e", nas.ssh_command, f"{footage}/", nas.target) != 0


def test_an_rsync_daemon_takes_files_and_knows_only_its_module(tmp_path, footage):
    need("rsync")
    with RsyncDaemon(tmp_path) as nas:
        assert rsync(f"{footage}/", nas.target) == 0
        assert (nas.root / "one.mp4").read_bytes() == CONTENT
        assert rsync(f"{footage}/", nas.target_at(nas.port, "other")) == 5


def test_a_tcp_proxy_cuts_flips_and_stalls(tmp_path, footage):
    need("rsync")
    with RsyncDaemon(tmp_path) as nas, TcpProxy(nas.address) as proxy:
        proxy.cut_after(100_000)
        assert rsync(f"{footage}/", nas.target_at(proxy.port)) != 0
        assert rsync(f"{footage}/", nas.target_at(proxy.port)) == 0
        (nas.root / "one.mp4").unlink()
        proxy.stall_after(100_000)
        assert rsync("--timeout=1", f"{footage}/", nas.target_at(proxy.port)) == 30


def test_swift_refuses_wrong_checksums_signatures_and_overwriting(swift):
    client, bucket = swift.client(), swift.new_bucket()
    client.put_object(Bucket=bucket, Key="one", Body=CONTENT)
    with pytest.raises(ClientError, match="BadDigest"):
        client.put_object(Bucket=bucket, Key="two", Body=CONTENT, ChecksumCRC32=WRONG_CRC32)
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="one", Body=b"other", IfNoneMatch="*")
    assert client.get_object(Bucket=bucket, Key="one")["Body"].read() == CONTENT
    swift.secret_key, right = "wrong", swift.secret_key
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        swift.client().list_objects_v2(Bucket=bucket)
    swift.secret_key = right


def test_rclone_over_tls_refuses_uploads_with_trailers(tmp_path, tls):
    with RcloneS3(tmp_path, tls=tls) as server:
        bucket = server.new_bucket()
        with pytest.raises(ClientError, match="411|MissingContentLength"):
            server.client().put_object(Bucket=bucket, Key="one", Body=CONTENT)
        assert not (server.root / bucket / "one").exists()


def test_the_lying_server_takes_what_it_should_refuse(tls):
    with LyingS3(tls=tls, keep_framing=True, damage=lambda body: body[:-1]) as server:
        client, bucket = server.client(), server.new_bucket()
        client.put_object(Bucket=bucket, Key="one", Body=CONTENT)
        assert len(server.buckets[bucket]["one"].body) > len(CONTENT)
        client.put_object(Bucket=bucket, Key="one", Body=CONTENT, ChecksumCRC32=WRONG_CRC32, IfNoneMatch="*")
        assert server.buckets[bucket]["one"].body == CONTENT[:-1]
        assert client.head_object(Bucket=bucket, Key="one", ChecksumMode="ENABLED")["ChecksumCRC32"] == WRONG_CRC32


def test_the_lying_server_knows_multipart_uploads():
    with LyingS3() as server:
        client, bucket = server.client(), server.new_bucket()
        upload = client.create_multipart_upload(Bucket=bucket, Key="one")["UploadId"]
        assert [one["UploadId"] for one in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload]
        known = {"Bucket": bucket, "Key": "one", "UploadId": upload}
        parts = [
            {"PartNumber": number, "ETag": client.upload_part(**known, PartNumber=number, Body=CONTENT)["ETag"]}
            for number in (1, 2)
        ]
        client.complete_multipart_upload(**known, MultipartUpload={"Parts": parts})
        assert client.get_object(Bucket=bucket, Key="one")["Body"].read() == CONTENT * 2
        assert server.uploads == {}


def test_the_fault_proxy_flips_cuts_loses_and_answers(swift, tls):
    bucket = swift.new_bucket()
    with FaultProxy(swift.address, tls=tls) as proxy:
        swift.tls = tls
        client = swift.client(proxy.url)
        swift.tls = None
        plain = {"Bucket": bucket, "Key": "one", "Body": CONTENT}
        client.put_object(**plain)
        proxy.add("flip", method="PUT", after_bytes=500)
        with pytest.raises(ClientError, match="BadDigest|XAmzContentSHA256Mismatch"):
            client.put_object(**plain)
        cut = proxy.add("cut", method="PUT", after_bytes=100_000)
        client.put_object(**plain)  # boto3 tries again
        lost = proxy.add("lose_response", method="PUT")
        client.put_object(**plain)
        busy = proxy.add("answer", method="PUT", status=503, times=-1)
        with pytest.raises(ClientError, match="SlowDown"):
            client.put_object(**plain)
        assert (cut.happened, lost.happened, busy.happened) == (1, 1, 2)
        proxy.clear()
        proxy.add("flip_response", method="GET", after_bytes=7)
        with pytest.raises((BotoCoreError, AssertionError)):
            content = client.get_object(Bucket=bucket, Key="one")["Body"].read()
            assert hashlib.sha256(content).digest() == hashlib.sha256(CONTENT).digest()
    assert proxy.address[0] == HOST


def test_by_hand_the_same_nas_and_bucket_come_back_and_their_config_stands_on_stdout(tmp_path, footage):
    need("rsync")
    need("sshd")
    need("rclone")
    ports = ["--ssh_port", str(free_port()), "--s3_port", str(free_port())]
    command = [sys.executable, ROOT / "tests" / "archive_servers.py", tmp_path / "try", *ports]
    printed = []
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL) as archive:
            assert archive.stdout
            printed.append("".join(archive.stdout.readline() for _ in range(8)))
            settings = yaml.safe_load(printed[-1])
            assert rsync(*settings["nas"]["rsync_options"], f"{footage}/", settings["nas"]["nas_target_dir"]) == 0
            archive.send_signal(signal.SIGTERM)
            assert archive.wait(timeout=20) == 0
    assert printed[0] == printed[1]
    assert (tmp_path / "try" / "nas" / "one.mp4").read_bytes() == CONTENT
    assert (tmp_path / "try" / "rclone" / settings["s3"]["bucket"]).is_dir()
