"""`medsam3 evaluate --mode agent`: three answers for each image, with partners of every kind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backend.agent.evaluation import evaluate_agent
from backend.errors import AgentConsentError, SettingsError
from backend.settings import Settings, get_settings
from medsam3_model.data.datasets import load_dataset
from medsam3_model.data.samples import Dataset
from medsam3_model.pretraining.phantoms.phantoms import phantom
from medsam3_model.types import TextEmbedding
from tests.support.chat_server import ChatServer, call
from tests.support.colour_model import ColourModel
from tests.support.commands import json_of, run
from tests.support.dataset_files import save

H, W = 64, 96


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Red discs that are meant beside larger red ones that are not: the phrase finds both."""
    folder = tmp_path_factory.mktemp("discs")
    rows, columns = np.mgrid[:H, :W]
    for number in range(4):
        meant = (rows - 20) ** 2 + (columns - 20 - number) ** 2 < 10**2
        other = (rows - 40) ** 2 + (columns - 70) ** 2 < 20**2
        pixels = np.full((H, W, 3), 60, np.uint8)
        pixels[meant | other] = (220, 30, 30)
        save(folder / "images" / f"{number}.png", pixels)
        save(folder / "masks" / f"{number}.png", (meant * 255).astype(np.uint8))
    return load_dataset(folder, concept="disc")


class AnyPhrase(ColourModel):
    """Knows colours alone; other phrases find nothing."""

    def encode_text(self, phrases: Sequence[str]) -> TextEmbedding:
        """Nothing in the images is blue."""
        return super().encode_text([p if p == "red" else "blue" for p in phrases])


def judged(discs: Dataset, partner: str, settings: Settings | None = None) -> Any:
    """A report of the colour model."""
    model: Any = AnyPhrase()
    return evaluate_agent(model, discs, {"disc": "red"}, partner, settings or Settings())


def test_an_oracle_gains_and_whoever_guesses_loses_nothing(discs: Dataset) -> None:
    oracle = judged(discs, "oracle").concepts[0]
    assert oracle.images == 4
    assert oracle.agent.mean == pytest.approx(oracle.boxes.mean)
    assert oracle.over_text.mean > 0.4
    assert judged(discs, "noisy:0.2").concepts[0].over_text.mean > 0
    for partner in ("random", "first"):
        assert judged(discs, partner).concepts[0].over_text.mean >= -0.01
    with pytest.raises(SettingsError, match="give oracle"):
        judged(discs, "noisy:much")


def test_the_configured_server_is_asked_and_only_with_consent(discs: Dataset) -> None:
    with ChatServer([call("stop", reason="fits")]) as server:
        settings = Settings(
            agent_url=server.url,
            agent_model="scripted",
            agent_task_s=600,
            agent_request_timeout_s=300,
        )
        with pytest.raises(AgentConsentError):
            judged(discs, "server", settings)
        assert server.requests == []
        agreed = settings.model_copy(update={"agent_send_images": True})
        report = judged(discs, "server", agreed)
    assert len(server.requests) == 4
    assert {image.ending for image in report.images} == {"kept"}
    assert report.concepts[0].requests == 1
    (exchange,) = report.images[0].transcript
    assert (exchange.prompt_tokens, exchange.answer) == (900, 'stop {"reason": "fits"}')
    assert [len(picture) for picture in exchange.pictures] == [64, 64]
    assert "base64" not in report.to_json()
    assert json.loads(report.to_json())["published"]["measured_here"] is False


def test_one_image_is_outlined_with_an_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = phantom("breast_ultrasound", 3)
    image = save(tmp_path / "Jane Roe.png", scan.image)
    box = call("segment_box", boxes=[[300, 300, 700, 700]])
    with ChatServer([box, call("stop", reason="it fits")]) as server:
        monkeypatch.setenv("MEDSAM3_AGENT_URL", server.url)
        monkeypatch.setenv("MEDSAM3_AGENT_MODEL", "scripted")
        monkeypatch.setenv("MEDSAM3_AGENT_TASK_S", "600")
        monkeypatch.setenv("MEDSAM3_AGENT_REQUEST_TIMEOUT_S", "300")
        get_settings.cache_clear()
        asked = ("agent", "try", image, "--prompt", "breast tumor", "--instruction", "the larger")
        refused = run(*asked)
        assert refused.exit_code == 1
        assert "MEDSAM3_AGENT_SEND_IMAGES" in refused.output
        assert server.requests == []
        monkeypatch.setenv("MEDSAM3_AGENT_SEND_IMAGES", "true")
        get_settings.cache_clear()
        answer = json_of(*asked, "--out", tmp_path / "mask.png")
        get_settings.cache_clear()
    assert (answer["ending"], answer["reason"]) == ("kept", "it fits")
    assert (answer["requests"], answer["rounds"]) == (2, 1)
    assert "the larger" in answer["transcript"][0]["text"]
    assert not [body for body in server.requests if b"Jane Roe" in body]
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.size == scan.image.shape[1::-1]
