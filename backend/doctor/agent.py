"""The agent's server: whether it may be asked, answers, sees pictures, and how it calls tools."""

from PIL import Image, ImageDraw, ImageFont

from backend.agent.calls import first_call
from backend.agent.chat import ChatClient, Message
from backend.agent.pictures import sent_picture
from backend.agent.tools import Choose, read_action, tool_schemas
from backend.doctor.check import Check, fail, ok, warn
from backend.errors import AgentCallError, AgentConsentError, AgentServerError
from backend.settings import Settings

_NAME = "agent"
# Drawn on the picture: who does not see it will not guess it.
_NUMBER = 47
_SIDE = 96
_QUESTION = (
    "Call the tool choose with the number that you see in the picture. Without tools, answer "
    '<tool_call>{"name": "choose", "arguments": {"masks": [NUMBER]}}</tool_call>'
)


def check_agent(settings: Settings) -> Check | None:
    """Ask the server about one small picture of a number; None where no agent is set."""
    if settings.agent_url is None:
        return None
    try:
        client = ChatClient(settings)
    except AgentConsentError as error:
        return warn(_NAME, "nothing is sent", str(error))
    picture = sent_picture(_picture())
    messages: list[Message] = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": _QUESTION},
                {"type": "image_url", "image_url": {"url": picture.uri}},
            ],
        }
    ]
    tools = [t for t in tool_schemas(segmenting=False) if t["function"]["name"] == "choose"]
    try:
        answer = client.ask(messages, tools, settings.agent_request_timeout_s)
        call = first_call(answer)
        action = read_action(call, picture.size)
    except AgentServerError as error:
        return fail(_NAME, str(error), "start the server, or unset MEDSAM3_AGENT_URL")
    except AgentCallError as error:
        advice = "serve the model with its tool parser, or take one that follows instructions"
        return warn(_NAME, f"the server answers, but {error}", advice)
    finally:
        client.close()
    if action != Choose((_NUMBER,)):
        return warn(
            _NAME,
            "the model calls tools, but did not read the number in a picture",
            "take a model that sees pictures, or give its server a larger context",
        )
    way = "as native calls" if call.way == "native" else "as JSON in the text"
    return ok(_NAME, f"{settings.agent_model} sees pictures and calls tools {way}")


def _picture() -> Image.Image:
    picture = Image.new("RGB", (_SIDE, _SIDE), (255, 255, 255))
    font = ImageFont.load_default(_SIDE // 2)
    middle = (_SIDE // 2, _SIDE // 2)
    ImageDraw.Draw(picture).text(middle, str(_NUMBER), font=font, fill=(0, 0, 0), anchor="mm")
    return picture
