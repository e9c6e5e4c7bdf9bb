"""The gate's stage of a run: which versions it judges, and what is tried where one is refused.

The gate refuses a version that is worse at a single concept, and few validation images make single
concepts swing. The weights half of the way to it often keep what it gained and lose less of what
was known (`medsam3_model.training.interpolation`), so they are judged, too, by the same rule.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.services import Services
from backend.training import gate, runs
from backend.training.annotators import Annotators
from backend.training.examples import Example, Images
from backend.training.gate import Answers, Verdict
from backend.training.options import RunOptions
from backend.training.run_log import RunLog, waited
from backend.training.tables import Stage, TrainingRun

if TYPE_CHECKING:
    from medsam3_model import MedSAM3

log = logging.getLogger(__name__)

HALF = 0.5


@dataclass(frozen=True)
class Judged:
    """The version that the verdict is about; `half_way` is its model where it is not the candidate
    as it was trained."""

    version: str
    verdict: Verdict
    half_way: "MedSAM3 | None" = None


class Judge:
    """Judges the versions of one run, by the images that it never trained on."""

    def __init__(
        self,
        services: Services,
        run: TrainingRun,
        images: Images,
        run_log: RunLog,
        judged_by: Sequence[Example],
    ) -> None:
        self._services, self._run, self._images, self._log = services, run, images, run_log
        self._judged_by, self._options = judged_by, RunOptions.from_json(run.options)

    def judge(self, candidate: "MedSAM3", incumbent: "MedSAM3", base: str) -> Judged:
        """Judge the candidate, and where it is refused the weights half of the way to it.

        Args:
            candidate: as it was trained.
            incumbent: what it was trained from, and what has to be beaten.
            base: the checkpoint that holds their encoders.
        """
        from medsam3_model.training.interpolation import model_between

        to_beat = self._answers(incumbent)
        verdict = self._verdict(candidate, to_beat)
        if verdict.passed or not verdict.enough_images:
            return Judged(candidate.version, verdict)
        half_way = model_between(incumbent, candidate, HALF, base=base)
        second = self._verdict(half_way, to_beat)
        if not second.passed:
            return Judged(candidate.version, verdict.and_half_way(second))
        return Judged(half_way.version, second.in_place_of(candidate.version, verdict), half_way)

    def _verdict(self, model: "MedSAM3", to_beat: Answers) -> Verdict:
        verdict = gate.decide(
            self._answers(model),
            to_beat,
            tolerance=self._options.gate_tolerance,
            min_images=self._options.gate_min_images,
        )
        said = f"{'passed' if verdict.passed else 'not passed'}: {'; '.join(verdict.reasons)}"
        log.info("%s: %s", model.version, said)
        self._log.note(f"gate: {model.version} {said}")
        return verdict

    def _answers(self, model: "MedSAM3") -> Answers:
        annotators = Annotators(self._services.redis)
        waits: list[float] = []

        def on_image() -> None:
            waits.append(annotators.wait())
            runs.at_stage(self._services, self._run.id, Stage.GATE)

        rule = self._options.consensus
        answers = gate.answers(model, self._judged_by, self._images, rule, on_image=on_image)
        if waiting := waited(sum(waits)):
            self._log.note(f"gate: {model.version} has answered{waiting}")
        return answers
