"""Annotators beside an agent: what its waiting for a language model costs their prompts."""

import threading

import numpy as np
from sqlalchemy import func, select

from backend.predictions.requests import request_pushes
from backend.tables import AgentRun
from tests.perf import bench_web
from tests.perf.bench_training_loop import clicks, wait_for_worker
from tests.support.chat_server import ChatServer, Reply, call
from tests.support.processes import running
from tests.support.waiting import wait_until

TASKS = 20
CLICKS = 40
ANSWER_S = 30.0


def measure() -> dict[str, float]:
    """p95 of prompts without tasks of an agent, and while 20 wait for a server that takes 30 s."""
    slow = Reply(lambda _: call("stop", reason="good"), wait=threading.Event(), wait_s=ANSWER_S)
    with ChatServer([slow]) as server, running(agent_url=server.url) as target:
        wait_for_worker(target)
        alone = clicks(target, CLICKS, pause_s=0.3)
        data = [
            {"id": 1000 + index, "data": {"image": f"/data/upload/{index % 4}.png"}}
            for index in range(TASKS)
        ]
        config = bench_web.CONFIG.replace("<Label ", '<Label mode="agent" ', 1)
        list(request_pushes(target.services, data, 8, config))

        def asked() -> bool:
            with target.services.database.reading() as session:
                runs = session.scalar(select(func.count()).select_from(AgentRun))
            return runs == TASKS and bool(server.requests)

        wait_until(asked, 120, otherwise="no agent was asked")
        beside = clicks(target, CLICKS, pause_s=0.3)
        assert len(server.requests) < TASKS, "the agent's tasks were done before the prompts"
    before, while_ = (float(np.percentile(times, 95)) for times in (alone, beside))
    return {
        "interactive_p95_without_agent_ms": round(before, 1),
        "interactive_p95_while_agent_ms": round(while_, 1),
        "interactive_p95_ratio_while_agent": round(while_ / before, 2),
    }
