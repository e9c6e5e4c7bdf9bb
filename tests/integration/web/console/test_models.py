"""The pages *Models*: figures of the gate, and what goes into service and out again."""

from flask.testing import FlaskClient
from sqlalchemy import select

from backend.models.versions import in_service
from backend.services import Services
from backend.tables import Promotion, PromotionKind
from tests.support.console import CONSOLE, admin, send
from tests.support.model_rows import REASON, add_versions

NEW = "tiny-p7-new"


def kinds(services: Services) -> list[str]:
    with services.database.reading() as session:
        return list(session.scalars(select(Promotion.kind).order_by(Promotion.id)))


def words(client: FlaskClient, path: str) -> str:
    answer = client.get(f"{CONSOLE}{path}")
    assert answer.status_code == 200
    return " ".join(answer.text.split())


def test_a_version_goes_into_service_against_the_gate_and_back(services: Services) -> None:
    (services.settings.data_dir / "detectors").mkdir()
    (services.settings.data_dir / "detectors" / f"{NEW}.safetensors").touch()
    add_versions(services, detector=NEW)
    console = admin(services)
    assert "not passed" in words(console, "/models?fragment=1")
    page = words(console, f"/models/{NEW}")
    assert REASON in page
    assert page.count("<circle") == 4
    assert page.count("+0.300 (+0.100 to +0.500)") == 2

    question = words(console, f"/models/{NEW}/promote/7")
    assert f'{NEW}</strong> takes the place of <strong class="text-break">tiny-base' in question
    assert REASON in question
    # Looking changes nothing, nor does the button without the tick.
    refused = send(console, f"/models/{NEW}/promote/7").text
    assert "did not pass the gate" in refused
    assert kinds(services) == []
    done = send(console, f"/models/{NEW}/promote/7", force="yes").text
    assert f"{NEW} serves project 7." in done
    assert kinds(services) == [PromotionKind.FORCED]
    assert in_service(services, 7) == NEW

    assert "tiny-base</strong> serves again" in words(console, "/models/rollback/7")
    assert "tiny-base serves project 7 again." in send(console, "/models/rollback/7").text
    assert in_service(services, 7) == "tiny-base"
    assert "no promotion that could be taken back" in words(console, "/models/rollback/7")
    assert "alert-danger" in send(console, "/models/rollback/7").text

    for path in ("/models/nothing", "/models/nothing/promote/7", f"/models/{NEW}/promote/8"):
        assert console.get(f"{CONSOLE}{path}").status_code == 404
    assert console.get(f"{CONSOLE}/models/rollback/{2**70}").status_code == 400
