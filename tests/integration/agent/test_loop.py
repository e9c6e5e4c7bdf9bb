"""A loop with a scripted language model behind real HTTP: whatever it says, there is an answer."""

import base64
import io
import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from backend.agent.candidates import Found
from backend.agent.chat import ChatClient
from backend.agent.loop import Ending, Limits, LoopResult, Question, run_loop
from backend.agent.partner import ChatPartner
from backend.agent.segmenter import ModelSegmenter
from backend.errors import AgentConsentError
from backend.settings import Settings
from medsam3_model.images.reading import read_image
from tests.support.chat_server import ChatServer, Reply, call, calls, says
from tests.support.colour_model import ColourModel

SECRETS = ("Jane Roe", "scan-4711.png", "s3cr3t-label-studio-token")
QUESTION = Question("red", "Lesion", "the larger one")
# A busy machine takes its time; what is late is tested apart.
PATIENT = Limits(3, 600, 300)
GREEN_BOX = [100, 200, 350, 800]


def picture(scale: int = 1) -> np.ndarray:
    """A file with secrets in its metadata, as pixels: a red and a green disc on grey."""
    rows, columns = np.mgrid[: 120 * scale, : 260 * scale] / scale
    pixels = np.full((*rows.shape, 3), 90, np.uint8)
    pixels[(rows - 60) ** 2 + (columns - 60) ** 2 < 20**2] = (40, 220, 40)
    pixels[(rows - 60) ** 2 + (columns - 180) ** 2 < 24**2] = (220, 40, 40)
    notes = PngImagePlugin.PngInfo()
    exif = Image.Exif()
    exif[0x010E] = SECRETS[1]
    notes.add_text("PatientName", SECRETS[0])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=notes, exif=exif)
    return read_image(buffer.getvalue())


def settings_for(server: ChatServer, **more: Any) -> Settings:
    """Settings with consent."""
    given = {"agent_url": server.url, "agent_model": "scripted", "agent_send_images": True}
    return Settings(label_studio_api_key=SECRETS[2], **{**given, **more})


def run(
    server: ChatServer, limits: Limits | None = None, scale: int = 1, **more: Any
) -> tuple[LoopResult, ChatPartner]:
    """A loop about the red disc."""
    limits = limits or PATIENT
    image = picture(scale)
    settings = settings_for(server, **more)
    model: Any = ColourModel()
    segmenter = ModelSegmenter(model, model.encode_image(image), QUESTION.phrase)
    client = ChatClient(settings)
    try:
        partner = ChatPartner(client, image, settings)
        return run_loop(segmenter, partner, QUESTION, limits), partner
    finally:
        client.close()


CHOOSE_1 = call("choose", masks=[1])
BOX = call("segment_box", boxes=[GREEN_BOX])
NO_TOOLS = Reply({"error": {"message": "llama3.2-vision does not support tools"}}, 400)

# What the server says, how the loop ends, and how many requests that takes.
CASES: dict[str, tuple[Sequence[Reply], Ending, int]] = {
    "the own answer": ([CHOOSE_1], Ending.KEPT, 1),
    "a stop": ([call("stop", reason="fits")], Ending.KEPT, 1),
    "arguments as an object": ([calls("choose", {"masks": [1]})], Ending.KEPT, 1),
    "a lost brace": ([calls("choose", '{"masks": [1]')], Ending.KEPT, 1),
    "truncated arguments, then repaired": (
        [calls("choose", '{"masks": [1, "'), CHOOSE_1],
        Ending.KEPT,
        2,
    ),
    "truncated for good": ([calls("choose", '{"masks": [1, "')], Ending.FAILED, 2),
    "two calls, the first wins": (
        [calls("choose", '{"masks": [1]}', ("report_absent", "{}"))],
        Ending.KEPT,
        1,
    ),
    "a call in tags": (
        [says('Well. <tool_call>{"name": "choose", "arguments": {"masks": [1]}}</tool_call>')],
        Ending.KEPT,
        1,
    ),
    "a call as facebook's agent writes it": (
        [
            says(
                '<think>{"name": "x"}</think><tool>{"name": "choose", "parameters": {"masks": [1]}}'
            )
        ],
        Ending.KEPT,
        1,
    ),
    "bare JSON in a code block": (
        [says('```json\n{"name": "choose", "arguments": "{\\"masks\\": [1]}"}\n```')],
        Ending.KEPT,
        1,
    ),
    "no call at all": ([says("I like it.")], Ending.FAILED, 2),
    "no choices": ([Reply({"choices": []})], Ending.FAILED, 1),
    "a page": ([Reply(b"<html>nginx</html>")], Ending.FAILED, 1),
    "an error as a page": ([Reply(b"<html>nginx</html>", 502)], Ending.FAILED, 1),
    "no tools, then text": (
        [NO_TOOLS, says('{"name": "choose", "arguments": {"masks": [1]}}')],
        Ending.KEPT,
        2,
    ),
    "errors of the server": ([Reply({"error": "out of memory"}, 500)], Ending.FAILED, 1),
    "an unknown tool": ([call("delete_everything", all=True), CHOOSE_1], Ending.KEPT, 2),
    "an empty selection": ([call("choose", masks=[])], Ending.FAILED, 2),
    "an unknown mask": ([call("choose", masks=[99])], Ending.UNDECIDED, 4),
    "a repeated phrase": ([call("segment_phrase", phrase=" RED ")], Ending.FAILED, 5),
    "absent against the segmenter": ([call("report_absent", reason="x")], Ending.OVERRULED, 1),
    "a box": ([BOX, call("choose", masks=[2])], Ending.CHOSEN, 2),
    "a box with swapped corners": (
        [call("segment_box", boxes=[350, 800, 100, 200]), call("choose", masks=[2])],
        Ending.CHOSEN,
        2,
    ),
    "a box in fractions": (
        [call("segment_box", boxes=[[0.1, 0.2, 0.35, 0.8]]), call("choose", masks=[2])],
        Ending.CHOSEN,
        2,
    ),
    "a box in percent": (
        [call("segment_box", boxes=[["10%", "20%", "35%", "80%"]]), call("choose", masks=[2])],
        Ending.CHOSEN,
        2,
    ),
    "a box in pixels": (
        [
            call("segment_box", boxes=[[30, 30, 90, 90]], unit="pixel"),
            call("choose", masks=[2]),
        ],
        Ending.CHOSEN,
        2,
    ),
    "a box outside": ([call("segment_box", boxes=[[2000, 2000, 3000, 3000]])], Ending.FAILED, 2),
    "clicks": (
        [call("refine_with_clicks", mask=1, inside=[[690, 500]]), CHOOSE_1],
        Ending.KEPT,
        2,
    ),
    "what a burnt-in text asks for": (
        [says("As the image says: curl http://127.0.0.1:1/x, and <img src=x onerror=y>")],
        Ending.FAILED,
        2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_answer_ends_in_masks(case: str) -> None:
    replies, ending, requests = CASES[case]
    with ChatServer(replies) as server:
        result, partner = run(server)
    assert (result.ending, len(server.requests)) == (ending, requests), result.reason
    assert result.reason
    assert sum(exchange.requests for exchange in partner.exchanges) == requests
    if ending == Ending.CHOSEN:
        (mask,) = (candidate.mask for candidate in result.masks)
        assert mask[60, 60]
        assert not mask[60, 180]
    else:
        (mask,) = (candidate.mask for candidate in result.masks)
        assert mask[60, 180]
        assert not mask[60, 60]
    if ending == Ending.FAILED:
        assert partner.exchanges[-1].error


def test_slow_and_endless_servers_are_left_in_time() -> None:
    never = threading.Event()
    slow = Reply({}, wait=never)
    endless = Reply(b"x" * 1000, endless=True)
    for reply, said, action_s in (
        (slow, "did not answer within", 2),
        (endless, "more than 1048576 bytes", 60),
    ):
        with ChatServer([reply]) as server:
            started = time.monotonic()
            result, _ = run(server, Limits(3, 600, action_s))
            assert time.monotonic() - started < 60
            assert result.ending == Ending.FAILED
            assert said in result.reason
            assert [candidate.number for candidate in result.masks] == [1]
            never.set()
    # Each answer comes in time, all of them together do not.
    with ChatServer([call("segment_phrase", phrase="red")]) as server:
        result, _ = run(server, Limits(3, 0.001, 1))
    assert result.ending == Ending.FAILED
    assert "the time of 0 s is over" in result.reason


def test_what_is_sent_is_small_and_says_nothing_about_the_file() -> None:
    with ChatServer([BOX, call("choose", masks=[99]), call("choose", masks=[1])]) as server:
        run(server, scale=5, agent_api_key="key-of-the-server", agent_blank_border=0.1)
    assert len(server.requests) == 3
    for index, body in enumerate(server.requests):
        assert server.headers[index]["Authorization"] == "Bearer key-of-the-server"
        assert b'"stream": false' in body or b'"stream":false' in body
        pictures = server.pictures(index)
        assert len(pictures) == 2
        for uri in pictures:
            content = base64.b64decode(uri.partition(",")[2])
            image = Image.open(io.BytesIO(content))
            assert max(image.size) <= 1024
            assert not image.getexif()
            assert not [secret for secret in SECRETS if secret.encode() in content]
        first = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))))
        assert first[:40].max() < 20, "the border is black"
        assert not [secret for secret in SECRETS if secret.encode() in body]
        roles = [message["role"] for message in server.messages(index)]
        assert roles == ["system", "user"]
    text = json.dumps(server.messages(-1))
    assert "the larger one" in text
    assert "There is no mask 99" in text


def test_without_consent_nothing_is_sent() -> None:
    with ChatServer([CHOOSE_1]) as server:
        for more, said in (
            ({"agent_send_images": False}, "MEDSAM3_AGENT_SEND_IMAGES"),
            ({"agent_url": None}, "MEDSAM3_AGENT_URL"),
            ({"agent_model": None}, "MEDSAM3_AGENT_MODEL"),
            ({"agent_url": "http://llm.example.org/v1"}, "MEDSAM3_AGENT_ALLOWED_HOSTS"),
        ):
            with pytest.raises(AgentConsentError, match=said):
                ChatClient(settings_for(server, **more))
        assert server.requests == []
        allowed = {
            "agent_url": "http://LLM.example.org/v1",
            "agent_allowed_hosts": "llm.example.org",
        }
        ChatClient(settings_for(server, **allowed)).close()


def test_a_choice_against_the_figures_needs_the_same_preference_in_both_orders() -> None:
    class Doubting(ModelSegmenter):
        """Its phrase's map knows nothing of the green disc."""

        def first_look(self) -> Found:
            found = super().first_look()
            self._first[0].semantic[found.masks[0].mask] = 1
            return Found(
                tuple(self._found(m.mask, m.score, own=m.own) for m in found.masks),
                found.presence,
                float(self._first[0].semantic.sum()),
            )

    image = picture()
    model: Any = ColourModel()
    for preferred, ending in (((2, 1, 2, 1, 2, 1), Ending.CHOSEN), ((2, 2), Ending.OVERRULED)):
        replies = [BOX, call("choose", masks=[2]), *(call("choose", masks=[n]) for n in preferred)]
        with ChatServer(replies) as server:
            client = ChatClient(settings := settings_for(server))
            segmenter = Doubting(model, model.encode_image(image), QUESTION.phrase)
            partner = ChatPartner(client, image, settings)
            result = run_loop(segmenter, partner, QUESTION, PATIENT)
            client.close()
        assert (result.ending, len(server.requests)) == (ending, 2 + len(preferred))
        assert "choose the better one" in json.dumps(server.messages())
