"""How fine-tuning learns; the defaults are for the bundled model and for SAM 3."""

from dataclasses import dataclass, field

from medsam3_model.training.losses import LossWeights


@dataclass(frozen=True)
class TrainingSettings:
    """How a run learns.

    Attributes:
        steps: optimiser steps at most.
        minutes: after which the run stops where it is.
        learning_rate: peak; it rises over `warm_up` steps and falls linearly to a twentieth.
        weight_decay: of AdamW, on weights that are neither biases nor norms.
        clip_norm: longest gradient, over all parameters.
        images_per_step: images in a step, over all processes, each with one prompt: where
            embeddings are kept, another image costs no more than another prompt on the same one.
        views: augmented views per image to learn from that are encoded and kept; 0: the image
            alone.
        replay_share: of the images of a step, where there are any to replay.
        patience: validations without a better one after which the run stops.
        validate_every, save_every: in steps.
        seed: of all that is drawn.
        loss: weights of its terms.
    """

    steps: int = 400
    minutes: float = 120.0
    learning_rate: float = 2e-4
    warm_up: int = 20
    weight_decay: float = 0.1
    clip_norm: float = 5.0
    images_per_step: int = 8
    views: int = 3
    replay_share: float = 0.5
    validate_every: int = 50
    patience: int = 4
    save_every: int = 25
    seed: int = 0
    loss: LossWeights = field(
        default_factory=lambda: LossWeights(
            classification=1.5, presence=4.0, mask_focal=10.0, semantic_dice=20.0
        )
    )

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        rising = min(1.0, (step + 1) / max(self.warm_up, 1))
        return self.learning_rate * rising * (1 - 0.95 * step / max(self.steps - 1, 1))
