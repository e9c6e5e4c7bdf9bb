"""A real Label Studio on this machine, started and stopped: for the demo and for the tests.

Label Studio pins older releases of `rq`, `redis` and `pydantic`, so it lives in a virtual
environment of its own (`.venv-label-studio`) and is only ever run as a process.
"""

import fcntl
import os
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from backend.errors import LabelStudioUnavailableError, SettingsError
from backend.processes.stopping import end_processes

REPOSITORY = Path(__file__).parents[2]
DEFAULT_USER = "demo@example.org"
DEFAULT_PASSWORD = "medsam3-demo"  # noqa: S105  for tests, on the loopback address only
DEFAULT_TOKEN = "6d656473616d332d64656d6f2d746f6b656e2d31"  # noqa: S105  likewise

_HOST = "127.0.0.1"
_DATABASE = "label_studio.sqlite3"
# What a process needs from the caller's environment. Everything else stays out: Label Studio reads
# every variable with and without its prefix (`HOST`, `PORT`, `SECRET_KEY`, `DATABASE_NAME` ...).
_PASSED_ON = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"]
_PASSED_ON += ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]
_PASSED_ON += ["http_proxy", "https_proxy", "no_proxy"]


def find_executable() -> Path:
    """The `label-studio` command: `MEDSAM3_LABEL_STUDIO_BIN`, else the one of the repository's
    virtual environment `.venv-label-studio`, else one on the PATH.

    Raises:
        SettingsError: there is none.
    """
    installed = REPOSITORY / ".venv-label-studio" / "bin" / "label-studio"
    own = str(installed) if installed.exists() else shutil.which("label-studio")
    if executable := os.environ.get("MEDSAM3_LABEL_STUDIO_BIN") or own:
        return Path(executable)
    raise SettingsError(
        f"Label Studio is not installed in {installed.parent.parent}: "
        "`make demo` and `make test` install it there."
    )


@dataclass(eq=False)
class LabelStudioServer:
    """One Label Studio process with its data folder; also a context manager.

    Attributes:
        data_dir: folder of its database, uploads and log; kept between starts.
        port: port to listen on; 0 takes a free one.
        user, password: the first user, created at the first start.
        token: that user's legacy API token (40 hexadecimal digits).
        template_dir: folder in which a database with all migrations applied is kept, so that
            the first start of a new data folder takes seconds rather than half a minute.
        local_files_root: folder that Label Studio may serve under `/data/local-files/`.
        allow_private_backends: let it call backends on loopback and private addresses, which it
            refuses by default.
        executable: the `label-studio` command; by default `find_executable()`.

    Raises:
        SettingsError: the port is taken, or another process runs on the same data folder.
    """

    data_dir: Path
    _: KW_ONLY
    port: int = 0
    user: str = DEFAULT_USER
    password: str = field(default=DEFAULT_PASSWORD, repr=False)
    token: str = field(default=DEFAULT_TOKEN, repr=False)
    template_dir: Path | None = None
    local_files_root: Path | None = None
    allow_private_backends: bool = True
    executable: Path = field(default_factory=find_executable)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.data_dir = self.data_dir.absolute()
        self.port = self.port or free_port()

    @property
    def url(self) -> str:
        """The address of the web interface and the API."""
        return f"http://{_HOST}:{self.port}"

    @property
    def log_path(self) -> Path:
        """What the process printed, appended at every start."""
        return self.data_dir / "label-studio.log"

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, timeout_s: float = 180.0) -> "LabelStudioServer":
        """Start the process and wait until it answers.

        Raises:
            LabelStudioUnavailableError: it ended or did not answer in time; with the log's end.
            SettingsError: the port is taken, or another process runs on the same data folder.
        """
        if self.pid is not None:
            return self
        self._refuse_if_running()
        if not _is_free(self.port):
            # Without this, Label Studio would silently take the next free port.
            raise SettingsError(
                f"Port {self.port} is taken by another program: stop it or choose another port."
            )
        self.data_dir.mkdir(parents=True, exist_ok=True)
        database = self.data_dir / _DATABASE
        if not database.exists() and self.template_dir is not None:
            shutil.copyfile(migrated_database(self.template_dir, self.executable), database)
        if database.exists():
            _use_write_ahead_log(database)
        command = [str(self.executable), "start", "--no-browser"]
        command += ["--internal-host", _HOST, "--port", str(self.port)]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.data_dir,
                # Ctrl-C in the terminal goes to whoever started this server, who stops it.
                start_new_session=True,
            )
        self._pid_path.write_text(str(self._process.pid))
        try:
            self._wait_until_healthy(timeout_s)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the process, if it runs: SIGTERM, then SIGKILL after `timeout_s`."""
        process, self._process = self._process, None
        if process is not None:
            end_processes([process], timeout_s)
            self._pid_path.unlink(missing_ok=True)

    def __enter__(self) -> "LabelStudioServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _pid_path(self) -> Path:
        return self.data_dir / "label-studio.pid"

    def _environment(self) -> dict[str, str]:
        environment = _base_environment(self.data_dir)
        environment |= {
            "LABEL_STUDIO_USERNAME": self.user,
            "LABEL_STUDIO_PASSWORD": self.password,
            "LABEL_STUDIO_USER_TOKEN": self.token,
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        }
        if self.allow_private_backends:
            # Both are needed: with the first alone, POST /api/ml answers 403 but leaves a row.
            environment["LABEL_STUDIO_ML_BLOCK_LOCAL_IP"] = "false"
            environment["LABEL_STUDIO_SSRF_PROTECTION_ENABLED"] = "false"
        if self.local_files_root is not None:
            environment["LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"] = "true"
            environment["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"] = str(self.local_files_root)
        return environment

    def _refuse_if_running(self) -> None:
        try:
            pid = int(self._pid_path.read_text())
            running = b"label-studio" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return
        if running:
            raise SettingsError(
                f"Label Studio already runs on {self.data_dir} as process {pid}: "
                f"stop that one first (kill {pid})."
            )

    def _wait_until_healthy(self, timeout_s: float) -> None:
        import httpx2

        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        with httpx2.Client(timeout=5.0, trust_env=False) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                try:
                    if client.get(f"{self.url}/health").status_code == 200:
                        return
                except httpx2.TransportError:
                    pass
                time.sleep(0.1)
        status = self._process.poll()
        happened = f"ended with exit status {status}"
        if status is None:
            happened = f"did not answer within {timeout_s:.0f} s"
        raise LabelStudioUnavailableError(
            f"Label Studio {happened}; the end of {self.log_path}:\n{_last_lines(self.log_path)}"
        )


def free_port(preferred: int = 0) -> int:
    """A TCP port of the loopback address that this process may take: the preferred one, or any."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, preferred))
        except OSError:
            return free_port()
        port: int = probe.getsockname()[1]
        return port


def migrated_database(template_dir: Path, executable: Path) -> Path:
    """A SQLite file with Label Studio's migrations applied and nothing in it.

    Made once per Label Studio release, in about 30 seconds; processes that ask at the same time
    wait for the one that makes it.
    """
    template_dir = template_dir.absolute()
    template = template_dir / f"label-studio-{installed_version(executable)}.sqlite3"
    with _locked(template_dir / "lock"):
        if not template.exists():
            draft = template_dir / "draft"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            # Every command applies the migrations first; this one then only prints.
            done = subprocess.run(
                [str(executable), "version"],
                env=_base_environment(draft),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                cwd=draft,
                check=False,
            )
            if done.returncode != 0:
                raise LabelStudioUnavailableError(
                    f"Label Studio could not set up a database:\n{done.stderr[-2000:]}"
                )
            (draft / _DATABASE).rename(template)
            shutil.rmtree(draft)
    return template


def installed_version(executable: Path) -> str:
    """The release of Label Studio beside `executable`, read from its package's folder name."""
    site = executable.parent.parent / "lib"
    for metadata in sorted(site.glob("python*/site-packages/label_studio-*.dist-info")):
        return metadata.name.removeprefix("label_studio-").removesuffix(".dist-info")
    return "unknown"


def _base_environment(data_dir: Path) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return environment | {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data_dir),
        "DJANGO_DB": "sqlite",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        # Without this, what it prints reaches the log only when its buffer is full.
        "PYTHONUNBUFFERED": "1",
    }


def _use_write_ahead_log(database: Path) -> None:
    """Readers and a writer no longer block each other; the file keeps the mode."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex((_HOST, port)) != 0


def _last_lines(path: Path, count: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
