"""One Redis in a data folder, whatever happened to the process that started the last one."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from backend.errors import QueueError
from backend.processes.redis_server import RedisServer

STARTED_AND_KILLED = """
import os, signal, sys
from pathlib import Path
from backend.processes import redis_server
if sys.argv[2] == "survives":
    redis_server.dying_with_parent = lambda: None
server = redis_server.RedisServer(Path(sys.argv[1]))
server.start()
redis_server.Redis(unix_socket_path=sys.argv[1]).set("kept", "yes")
print(server._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def client(server: RedisServer) -> Redis:
    return Redis(unix_socket_path=str(server.socket))


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("fate", ["survives", "dies"])
def test_the_server_of_a_killed_owner_is_ended_and_its_queue_kept(
    data_dir: Path, fate: str
) -> None:
    socket = data_dir / "redis.sock"
    killed = subprocess.run(
        [sys.executable, "-c", STARTED_AND_KILLED, str(socket), fate],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    old = int(killed.stdout)
    assert killed.returncode == -signal.SIGKILL
    with RedisServer(socket) as server:
        assert not running(old)
        assert client(server).get("kept") == b"yes"


def test_a_second_owner_is_refused_until_the_first_stops(data_dir: Path) -> None:
    first, second = (RedisServer(data_dir / "redis.sock") for _ in range(2))
    first.start()
    with pytest.raises(QueueError, match=r"another `medsam3 serve`.*MEDSAM3_DATA_DIR"):
        second.start()
    assert client(first).ping()
    first.stop()
    with second:
        assert client(second).ping()


def test_a_killed_server_is_started_again_by_its_owner(redis_server: RedisServer) -> None:
    client(redis_server).set("kept", "yes")
    os.kill(client(redis_server).info("server")["process_id"], signal.SIGKILL)
    redis_server.start()
    assert client(redis_server).get("kept") == b"yes"


@pytest.mark.parametrize("damage", [b"garbage", b"*3\r\n$3\r\nSET\r\nnonsense"], ids=["all", "end"])
def test_a_damaged_file_is_emptied_and_the_log_says_so(
    data_dir: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    socket = data_dir / "redis.sock"
    with RedisServer(socket) as server:
        client(server).set("kept", "yes")
    for file in server.data_dir.rglob("*"):
        if file.is_file() and file.suffix not in (".log", ".lock"):
            file.write_bytes(damage)
    with caplog.at_level(logging.ERROR), RedisServer(socket) as server:
        assert client(server).get("kept") is None
    assert "starts empty" in caplog.text
