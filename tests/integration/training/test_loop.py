"""From corrections to a version in service, through the real parts."""

import json
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.numpy import load_file
from sqlalchemy import select

from backend.corrections.tables import Revision
from backend.labeling.config import parse_label_config
from backend.models import promotion, versions
from backend.models.detectors import DetectorStore
from backend.models.loading import Models
from backend.services import Services
from backend.tables import GateVerdict, ModelVersion, Promotion
from backend.training import examples, gate, policies, runs
from backend.training.policies import PolicyChoices
from backend.training.run_log import log_of
from backend.training.tables import RunState, TrainingRun, Trigger
from backend.training.trainer import train_run
from medsam3_model import MedSAM3
from medsam3_model.checkpoints.detectors import load_detector
from medsam3_model.evaluation.metrics import dice
from tests.support.discs import disc
from tests.support.training_stage import CONFIG, TrainingStage, publish_weights


def on_unseen_discs(model: MedSAM3) -> float:
    text = model.encode_text(["optic disc"])
    scores = []
    for seed in range(500, 512):
        image, mask = disc(seed)
        (found,) = model.detect_all(model.encode_image(image), text)
        scores.append(dice(found.concept_mask()[0], mask))
    return sum(scores) / len(scores)


def finished(services: Services, run_id: str) -> TrainingRun:
    with services.database.reading() as session:
        return session.get_one(TrainingRun, run_id)


def test_corrections_become_a_version_in_service(stage: TrainingStage) -> None:
    services = stage.services
    stage.annotate(train=14, val=6)
    before = versions.in_service(services, stage.project_id)
    requested = runs.request_run(
        services, stage.project_id, Trigger.COMMAND, steps=48, learning_rate=2e-3
    )
    train_run(services, requested.run_id)
    run = finished(services, requested.run_id)
    assert run.state == RunState.DONE, run.error
    with services.database.reading() as session:
        verdict = session.get_one(GateVerdict, run.id)
        version = session.scalars(
            select(ModelVersion).where(ModelVersion.version == run.candidate)
        ).one()
        promotions = session.scalars(select(Promotion)).all()
    assert verdict.passed, verdict.reasons
    assert verdict.figures["overall"]["images"] == 6
    assert version.parent == before
    assert version.card is not None
    assert version.card["data"]["training_images"] == 14
    assert [one.version for one in promotions] == [version.version]
    assert versions.in_service(services, stage.project_id) == version.version
    assert DetectorStore(services.settings).names() == [version.version]
    lines = [line.text for line in log_of(services.redis, run.id)]
    judged = [line for line in lines if line.startswith("step ")]
    assert judged
    assert all("loss" in line and "Dice of the spared images" in line for line in judged)
    assert [re.split(":| after", line)[0] for line in lines if line not in judged] == [
        "a trainer takes the run",
        "collects corrections",
        f"dataset version {run.dataset_id}",
        f"training from {before}",
        "trains on 14 images and repeats 0 older ones",
        "training ended",
        "gate",
        "gate",
        f"promotion of {version.version}",
        "done",
    ]
    assert "; ".join(verdict.reasons)[:100] in " ".join(lines)


def test_a_project_that_chose_an_adapter_gets_versions_with_one(stage: TrainingStage) -> None:
    services, project = stage.services, stage.project_id
    policies.choose(services, project, PolicyChoices(adapter=True))
    stage.annotate(train=14, val=6)
    requested = runs.request_run(services, project, Trigger.COMMAND, steps=48, learning_rate=2e-3)
    train_run(services, requested.run_id)
    run = finished(services, requested.run_id)
    assert run.state == RunState.DONE, run.error
    assert run.options["adapter"] is True
    assert run.candidate == versions.in_service(services, project)
    models = Models(services)
    served, base = models.get(str(run.candidate)), models.get(str(run.incumbent))
    assert served.unadapted is base
    assert served.encoder_hash != base.encoder_hash
    assert on_unseen_discs(served) > on_unseen_discs(base)
    # The next run starts from there, whether an adapter learns in it or not.
    again = runs.request_run(services, project, Trigger.COMMAND, steps=2, adapter=False)
    train_run(services, again.run_id)
    run = finished(services, again.run_id)
    assert run.state == RunState.DONE, run.error
    assert models.get(str(run.candidate)).encoder_hash == served.encoder_hash


def test_the_gate_looks_closer_at_small_objects_as_annotators_are_answered(
    stage: TrainingStage,
) -> None:
    services = stage.services
    stage.annotate(train=2, val=4)
    requested = runs.request_run(services, stage.project_id, Trigger.COMMAND, steps=2)
    train_run(services, requested.run_id)
    assert finished(services, requested.run_id).state == RunState.DONE
    keys = []
    for path in services.settings.embedding_dir.glob("*/*.safetensors"):
        notes = json.loads(load_file(path)["notes"].tobytes())
        keys.append(notes["image_key"])
    # Both versions share the encoder, so each validation image's disc was encoded once.
    assert len([key for key in keys if "-window-" in key]) == 4


def test_the_gate_notes_how_sure_a_model_is_of_what_is_there(stage: TrainingStage) -> None:
    services = stage.services
    stage.annotate(val=2)
    requested = runs.request_run(services, stage.project_id, Trigger.COMMAND)
    with services.database.session() as session:
        dataset_id = examples.take(session, session.get_one(TrainingRun, requested.run_id))
        training_set = examples.load(session, dataset_id, parse_label_config(CONFIG))
    model = Models(services).get(versions.in_service(services, stage.project_id))
    images = examples.Images(services)

    def sureness() -> dict[tuple[str, str], set[float | None]]:
        found: dict[tuple[str, str], set[float | None]] = {}
        for answer in gate.answers(model, training_set.of("val"), images, "latest").given:
            found.setdefault((answer.phrase, answer.mode), set()).add(answer.sureness)
        return found

    presences = [
        model.detect_all(images.encoded(example).whole(model), model.encode_text(["optic disc"]))[
            0
        ].presence
        for example in training_set.of("val")
    ]
    noted = sureness()
    assert sorted(noted.pop(("optic disc", "T"))) == pytest.approx(
        sorted(math.log(presence / (1 - presence)) for presence in presences), abs=1e-3
    )
    # Nothing of what is absent, nor where a box says that it is there.
    assert noted == {("optic cup", "T"): {None}, ("optic disc", "T+I"): {None}}
    # Nor of a model whose answers do not depend on presence.
    model.settings = replace(model.settings, use_presence=False)
    assert sureness()["optic disc", "T"] == {None}


def images_fetched(stage: TrainingStage) -> Counter[str]:
    """How often each image was asked for since the last call."""
    requests = Counter(path for path in stage.label_studio.requests if "/upload/" in path)
    stage.label_studio.requests.clear()
    return requests


def test_a_run_fetches_an_image_once_and_none_whose_embeddings_are_there(
    stage: TrainingStage,
) -> None:
    services = stage.services
    stage.annotate(train=14, val=4)
    images_fetched(stage)

    def train() -> Counter[str]:
        # Without promotion every run makes the same version, which looks closer at the same parts.
        requested = runs.request_run(
            services, stage.project_id, Trigger.COMMAND, steps=12, auto_promote=False
        )
        train_run(services, requested.run_id)
        run = finished(services, requested.run_id)
        assert run.state == RunState.DONE, run.error
        return images_fetched(stage)

    first = train()
    assert len(first) > 4
    assert set(first.values()) == {1}
    assert train() == Counter()
    with services.database.session() as session:
        for revision in session.scalars(select(Revision)):
            # As for DICOM and NIfTI, whose size is not read when a correction is taken in.
            revision.images = [[*image[:2], None, None] for image in revision.images]
    once = train()
    assert len(once) == 14, "the size of every training image has to be read"
    assert set(once.values()) == {1}


def test_of_a_candidate_that_is_refused_the_weights_half_of_the_way_are_judged(
    stage: TrainingStage,
) -> None:
    """A version in service and a candidate that lie on two sides of a good one."""
    services, project = stage.services, stage.project_id
    stage.annotate(train=14, val=6)
    options = {"steps": 48, "learning_rate": 2e-3}
    first = runs.request_run(services, project, Trigger.COMMAND, **options)
    train_run(services, first.run_id)
    good = finished(services, first.run_id).candidate
    assert good is not None
    weights = load_detector(DetectorStore(services.settings).path(good)).state
    rng = torch.Generator().manual_seed(0)
    aside = {
        key: torch.randn(tensor.shape, generator=rng) * tensor.abs().mean()
        for key, tensor in weights.items()
    }

    def version(share: float) -> str:
        state = {key: tensor + share * aside[key] for key, tensor in weights.items()}
        base = services.settings.model
        return publish_weights(services, base, project, state, passed=False)

    second = runs.request_run(services, project, Trigger.COMMAND, **options)
    # The worse side is the candidate: it cannot pass as it is.
    models = Models(services)
    candidate, incumbent = sorted(
        (version(1.0), version(-1.0)), key=lambda one: on_unseen_discs(models.get(one))
    )
    promotion.promote(services, project, incumbent, force=True)
    made_by = {"run_id": second.run_id}
    services.database.update(ModelVersion, ModelVersion.version == candidate, **made_by)
    services.database.update(TrainingRun, TrainingRun.id == second.run_id, candidate=candidate)
    train_run(services, second.run_id)

    run = finished(services, second.run_id)
    assert run.state == RunState.DONE, run.error
    assert run.candidate not in (incumbent, candidate, good)
    assert versions.in_service(services, project) == run.candidate
    with services.database.reading() as session:
        verdict = session.get_one(GateVerdict, run.id)
        rows = {
            row.version: (row, promotion.verdict_of(session, row))
            for row in session.scalars(
                select(ModelVersion).where(ModelVersion.version.in_([candidate, run.candidate]))
            )
        }
    assert verdict.passed
    assert verdict.reasons[0].startswith(f"as it was trained ({candidate}) it did not pass: mean")
    made, of_it = rows[run.candidate]
    assert of_it is verdict
    assert made.card is not None
    assert made.card["training"]["half_way_to"] == candidate
    _, of_candidate = rows[candidate]
    assert of_candidate is not None
    assert not of_candidate.passed
    assert (
        of_candidate.figures["overall"]["difference"]
        < 0.1
        < verdict.figures["overall"]["difference"]
    )
