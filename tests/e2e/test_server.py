"""Starting and stopping a real Label Studio."""

import os
import socket
from pathlib import Path

import pytest

from backend.errors import LabelStudioUnavailableError, SettingsError
from backend.label_studio.client import LabelStudio
from backend.label_studio.server import REPOSITORY, LabelStudioServer
from tests.support.label_configs import BRIGHT_DISC_CONFIG


def test_a_second_start_finds_the_same_data_and_nothing_stays_behind(tmp_path: Path) -> None:
    template = REPOSITORY / ".cache" / "label-studio"
    first = LabelStudioServer(tmp_path, template_dir=template)
    with first, LabelStudio(first.url, first.token) as client:
        made = client.create_project("kept", BRIGHT_DISC_CONFIG)
        pid = first.pid
        assert pid is not None
        same_folder = LabelStudioServer(tmp_path, template_dir=template)
        with pytest.raises(SettingsError, match=f"as process {pid}"):
            same_folder.start()
        other = LabelStudioServer(tmp_path / "other", port=first.port, template_dir=template)
        with pytest.raises(SettingsError, match=f"Port {first.port} is taken"):
            other.start()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "Starting development server" in first.log_path.read_text()
    second = LabelStudioServer(tmp_path, template_dir=template)
    with second, LabelStudio(second.url, second.token) as client:
        assert [project["id"] for project in client.projects()] == [made["id"]]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", second.port)) != 0


def test_a_start_that_fails_shows_the_log(tmp_path: Path) -> None:
    broken = tmp_path / "label-studio"
    broken.write_text("#!/bin/sh\necho something is missing\nexit 3\n")
    broken.chmod(0o755)
    server = LabelStudioServer(tmp_path / "data", executable=broken)
    with pytest.raises(LabelStudioUnavailableError, match=r"(?s)status 3.*something is missing"):
        server.start()
    assert server.pid is None
