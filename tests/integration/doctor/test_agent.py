"""What `doctor` finds out about an agent's server, with one small picture."""

import pytest

from backend.doctor.agent import check_agent
from backend.doctor.check import Status
from backend.settings import Settings
from tests.support.chat_server import ChatServer, Reply, call, says

NO_TOOLS = Reply({"error": {"message": "this model does not support tools"}}, 400)
TEXT = says('<tool_call>{"name": "choose", "arguments": {"masks": [47]}}</tool_call>')


@pytest.mark.parametrize(
    ("replies", "status", "said"),
    [
        ([call("choose", masks=[47])], Status.OK, "native calls"),
        ([NO_TOOLS, TEXT], Status.OK, "JSON in the text"),
        ([call("choose", masks=[3])], Status.WARN, "did not read the number"),
        ([says("A lovely picture.")], Status.WARN, "holds no call"),
        ([Reply({"error": "no such model"}, 404)], Status.FAIL, "answered 404"),
    ],
)
def test_one_picture_tells_how_a_model_calls(
    replies: list[Reply], status: Status, said: str
) -> None:
    with ChatServer(replies) as server:
        settings = Settings(
            agent_url=server.url,
            agent_model="scripted",
            agent_send_images=True,
            agent_request_timeout_s=300,
        )
        check = check_agent(settings)
    assert check is not None
    assert check.status == status
    assert said in check.message
    assert len(server.pictures()) == 1


def test_without_an_agent_or_consent_nothing_is_sent() -> None:
    assert check_agent(Settings()) is None
    with ChatServer([TEXT]) as server:
        check = check_agent(Settings(agent_url=server.url, agent_model="scripted"))
        assert check is not None
        assert "MEDSAM3_AGENT_SEND_IMAGES" in check.next_step
        assert server.requests == []
