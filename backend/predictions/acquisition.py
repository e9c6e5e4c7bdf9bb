"""Acquisition: which task to label next, as the score by which Label Studio orders them.

It serves the lowest score first. The strategies:

* `uncertainty`: where the model is least sure, from presence, instance scores and mask entropy;
* `tta`: where it answers differently when the image is mirrored (test-time augmentation);
* `diversity`: images unlike those that are labelled or come before (greedy k-center, the core-set
  of Sener and Savarese 2018, arXiv 1708.00489, on pooled embeddings);
* `random`: any order, the same at every look;
* `random-foreground`: likewise, but tasks in which the model detects nothing come last.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from backend.database import insert_or_ignore
from backend.services import Services
from backend.settings import Settings, Strategy
from backend.tables import ImageVector, Suggestion, SuggestionState, TaskRank, TrainingPolicy

if TYPE_CHECKING:
    from medsam3_model import Detections, ImageEmbedding

# A pixel below this probability says nothing about where an outline runs.
_LEAST_PROBABILITY = 0.05
# Tasks whose place in the order of diversity is exact.
_CENTRES = 1000
# What is multiplied in one go: a block of at most 16 MB.
_POINTS_TOGETHER, _COVERED_TOGETHER = 8192, 512


def strategy_of(session: Session, settings: Settings, project_id: int) -> Strategy:
    """The strategy that a project uses: its own choice, else the setting."""
    chosen = select(TrainingPolicy.strategy).where(TrainingPolicy.project_id == project_id)
    return cast(Strategy, session.scalar(chosen) or settings.strategy)


def score(
    services: Services,
    strategy: Strategy,
    project_id: int,
    task_id: int | None,
    detections: "Sequence[Detections]",
    mirrored: "Sequence[Detections]" = (),
) -> float:
    """A task's score under a strategy, 0 (next) to 1 (last).

    Args:
        services: database, for ranks.
        strategy: the project's.
        project_id: the project.
        task_id: the task; None where Label Studio did not say.
        detections: what the model detected, one per concept and page.
        mirrored: the same for the mirrored images, turned back; for `tta` alone.
    """
    if not detections:
        return 0.0
    if strategy == "random":
        return _lot(project_id, task_id)
    if strategy == "random-foreground":
        empty = not any(len(concept) for concept in detections)
        return _lot(project_id, task_id) / 2 + (0.5 if empty else 0.0)
    if strategy == "tta":
        return agreement(detections, mirrored)
    if strategy == "diversity":
        with services.database.reading() as session:
            row = session.get(TaskRank, (project_id, task_id or 0))
        return row.rank if row else _lot(project_id, task_id)
    return 1 - sum(uncertainty(concept) for concept in detections) / len(detections)


def uncertainty(detections: "Detections") -> float:
    """How unsure the model is about one concept, 0 to 1.

    The mean of three: of presence (1 at probability 0.5), of the instances' scores likewise, and
    the mean binary entropy (bits) of the semantic map where it says anything. Where no instance
    passed, the best score that was not good enough counts as the score.
    """
    scores = detections.scores if len(detections) else np.array([detections.max_score])
    parts = [1 - abs(2 * detections.presence - 1), float(np.mean(1 - np.abs(2 * scores - 1)))]
    inside = detections.semantic[detections.semantic > _LEAST_PROBABILITY]
    parts.append(float(_entropy(inside).mean()) if inside.size else 0.0)
    return float(np.mean(parts))


def agreement(detections: "Sequence[Detections]", mirrored: "Sequence[Detections]") -> float:
    """Mean Dice between the answers for images and for their mirror images, 0 to 1."""
    from medsam3_model.evaluation.metrics import dice

    pairs = zip(detections, mirrored, strict=True)
    return sum(dice(a.concept_mask()[0], b.concept_mask()[0]) for a, b in pairs) / len(detections)


@dataclass(frozen=True)
class PooledEmbedding:
    """An image's embedding, averaged over its patches: a row of `ImageVector`."""

    image_hash: str
    encoder_hash: str
    vector: bytes


def pooled(image_hash: str, embedding: "ImageEmbedding") -> PooledEmbedding:
    """The embedding of an image, averaged, as float16."""
    import torch

    vector = embedding.last_hidden_state.float().flatten(0, -2).mean(dim=0)
    content = vector.to("cpu", torch.float16).numpy().tobytes()
    return PooledEmbedding(image_hash, embedding.encoder_hash, content)


def remember_vectors(session: Session, vectors: Sequence[PooledEmbedding]) -> None:
    """Keep images' pooled embeddings, for `diversity`; those that are there stay."""
    if vectors:
        # Sorted: two workers with the same images wait for each other in the same order.
        rows = sorted(
            map(asdict, vectors), key=lambda row: (row["image_hash"], row["encoder_hash"])
        )
        insert_or_ignore(session, ImageVector, rows)


def rank_by_diversity(services: Services, project_id: int, unlabelled: set[int]) -> int:
    """Order the unlabelled tasks so that each is unlike all before it; returns how many.

    Tasks that were never predicted have no embedding yet; they keep a random place.
    """
    with services.database.reading() as session:
        rows = session.execute(
            select(Suggestion.task_id, ImageVector.vector)
            .join(ImageVector, ImageVector.image_hash == Suggestion.image_hash)
            .where(
                Suggestion.project_id == project_id,
                Suggestion.state == SuggestionState.DONE,
                Suggestion.task_id.is_not(None),
            )
            .order_by(Suggestion.task_id, Suggestion.created_at)
        ).all()
    vectors = {row.task_id: np.frombuffer(row.vector, np.float16) for row in rows}
    pool = [task_id for task_id in vectors if task_id in unlabelled]
    labelled = [task_id for task_id in vectors if task_id not in unlabelled]
    # A hundred thousand tasks take a minute or two: no transaction is open meanwhile.
    order = (
        k_center_order(
            np.stack([vectors[id_] for id_ in pool]).astype(np.float32),
            np.stack([vectors[id_] for id_ in labelled]).astype(np.float32) if labelled else None,
        )
        if pool
        else []
    )
    last = max(len(order) - 1, 1)
    with services.database.session() as session:
        session.execute(delete(TaskRank).where(TaskRank.project_id == project_id))
        # A task that was forgotten in the meantime does not come back.
        known = set(
            session.scalars(
                select(Suggestion.task_id).where(Suggestion.project_id == project_id).distinct()
            )
        )
        ranks = [
            {"project_id": project_id, "task_id": pool[index], "rank": place / last}
            for place, index in enumerate(order)
            if pool[index] in known
        ]
        if ranks:
            insert_or_ignore(session, TaskRank, ranks)
    return len(ranks)


def k_center_order(
    points: NDArray[np.float32], covered: NDArray[np.float32] | None = None
) -> list[int]:
    """Greedy k-center: indices of `points` (N, D), each farthest from all before and `covered`.

    Without covered points (M, D) the one nearest to the mean comes first. After `_CENTRES` the rest
    follows by its distance to those: N points cost as many passes at most, and nobody labels more
    before the next order is made.
    """
    # Each dimension by its own spread: a few of an embedding's are a hundred times the others.
    scale = np.maximum(points.std(axis=0), 1e-6)
    mean = points.mean(axis=0)
    # Around their mean, so that squares stay small and their differences exact.
    scaled = (points - mean) / scale
    squares = np.einsum("nd,nd->n", scaled, scaled)
    # `distance` holds each point's squared distance to the nearest one chosen or covered so far.
    if covered is None or not len(covered):
        order = [int(np.argmin(squares))]
        distance = _squared_distances(scaled, squares, scaled[order[0]][None])
    else:
        order = []
        distance = np.full(len(scaled), np.inf, np.float32)
        for start in range(0, len(covered), _COVERED_TOGETHER):
            centres = (covered[start : start + _COVERED_TOGETHER] - mean) / scale
            np.minimum(distance, _squared_distances(scaled, squares, centres), out=distance)
    # Chosen points go below every distance: a copy of one is at 0, and its turn still comes.
    distance[order] = -1
    while len(order) < min(len(points), _CENTRES):
        farthest = int(np.argmax(distance))
        order.append(farthest)
        # Only the new centre can be nearer than those before it, so each costs one pass.
        nearer = _squared_distances(scaled, squares, scaled[farthest][None])
        np.minimum(distance, nearer, out=distance)
        distance[order] = -1
    rest = np.argsort(-distance, kind="stable")[: len(points) - len(order)]
    return [*order, *rest.tolist()]


def _squared_distances(
    points: NDArray[np.float32], squares: NDArray[np.float32], centres: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Of each point (N, D) to the nearest of the centres (K, D); `squares` are the points' norms.

    |p - c|^2 = |p|^2 - 2 p c + |c|^2: one product of matrices, in blocks that fit in a cache.
    """
    found = np.empty(len(points), np.float32)
    norms = np.einsum("kd,kd->k", centres, centres)
    for start in range(0, len(points), _POINTS_TOGETHER):
        block = slice(start, start + _POINTS_TOGETHER)
        found[block] = squares[block] + (norms - 2 * points[block] @ centres.T).min(axis=1)
    return np.maximum(found, 0)


def _entropy(probability: NDArray[np.floating]) -> NDArray[np.floating]:
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.asarray(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


def _lot(project_id: int, task_id: int | None) -> float:
    digest = hashlib.sha256(f"{project_id}:{task_id}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
