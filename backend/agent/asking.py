"""One loop with the configured server: a client for one task, and the transcript of what it did."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.agent.chat import ChatClient
from backend.agent.loop import Limits, LoopResult, Question, Segmenter, run_loop
from backend.agent.partner import ChatPartner, Exchange
from backend.settings import Settings


@dataclass(frozen=True, eq=False)
class AskedServer:
    """What came of a loop with a server.

    Attributes:
        result: masks and how it ended.
        transcript: what was asked and answered, without pixels.
    """

    result: LoopResult
    transcript: Sequence[Exchange]

    @property
    def requests(self) -> int:
        """How many requests were sent."""
        return sum(exchange.requests for exchange in self.transcript)


def ask_server(
    segmenter: Segmenter, image: NDArray[np.uint8], question: Question, settings: Settings
) -> AskedServer:
    """Let the server of the settings guide a segmenter.

    Args:
        segmenter: of the encoded image.
        image: uint8 (H, W, 3), the same image.
        question: what is asked for.
        settings: the server, and the bounds of rounds, time and pictures.

    Raises:
        AgentConsentError: the settings do not allow that anything is sent.
        MedSAM3Error: the model cannot answer the phrase.
    """
    client = ChatClient(settings)
    try:
        partner = ChatPartner(client, image, settings)
        limits = Limits(
            settings.agent_rounds, settings.agent_task_s, settings.agent_request_timeout_s
        )
        result = run_loop(segmenter, partner, question, limits)
        return AskedServer(result, tuple(partner.exchanges))
    finally:
        client.close()
