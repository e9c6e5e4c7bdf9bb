"""Settings of a fine-tuning run."""

from dataclasses import dataclass, field

from medsam3_model.training.losses import LossWeights

# With 1e-3 the bundled model learned little faster and forgot four times as much. As with Adam in
# general, the best rate falls with the width of the layers.
_RATE_AT_WIDTH = (4e-4, 64)


@dataclass(frozen=True)
class TrainingSettings:
    """How a run learns.

    Attributes:
        steps: optimiser steps at most.
        minutes: of training after which the run stops where it is; waiting does not count.
        learning_rate: after `warm_up` steps, constant, because nobody knows how many steps follow;
            None: what suits the model's width.
        average: the weights that are judged and kept are a moving average of those of the steps; so
            much of it stays at each step, less at the beginning. It does what a falling rate does.
        weight_decay: of AdamW, on weights that are neither biases nor norms.
        clip_norm: longest gradient, over all parameters.
        images_per_step: images in a step, over all processes, each with one prompt: where
            embeddings are kept, another image costs no more than another prompt on the same one.
        masked_share: of the prompts, those whose masks are learned from; pixels are most of a
            step's cost, and boxes, scores and presence are learned from all.
        views: augmented views per image to learn from that are encoded and kept; 0: the image
            alone.
        adapter: whether an adapter of the encoder's last blocks learns with the detector, see
            `checkpoints.encoder_adapter`; one that the start has already stays otherwise.
        replay_share: of the images of a step, where there are any to replay.
        patience: validations without a better one after which the run stops.
        judged_over: validations whose mean is compared: a few spared images swing by more from one
            to the next than what is learned meanwhile.
        unjudged_steps: so many where too few images are there to spare any, and so many at least
            where spared ones judge: what comes earlier may be the best of them by chance.
        validate_every, save_every: in steps.
        seed: of all that is drawn.
        loss: weights of its terms.
    """

    steps: int = 2000
    minutes: float = 10.0
    learning_rate: float | None = None
    warm_up: int = 20
    average: float = 0.98
    weight_decay: float = 0.1
    clip_norm: float = 5.0
    images_per_step: int = 8
    masked_share: float = 0.5
    views: int = 3
    adapter: bool = False
    replay_share: float = 0.25
    patience: int = 5
    judged_over: int = 3
    unjudged_steps: int = 160
    validate_every: int = 40
    save_every: int = 25
    seed: int = 0
    loss: LossWeights = field(
        default_factory=lambda: LossWeights(
            classification=1.5, presence=4.0, mask_focal=10.0, semantic_dice=20.0
        )
    )

    def rate(self, step: int, width: int) -> float:
        """The learning rate of a step, from 0, for a model with layers of this width."""
        rate, at_width = _RATE_AT_WIDTH
        constant = rate * at_width / width if self.learning_rate is None else self.learning_rate
        return constant * min(1.0, (step + 1) / max(self.warm_up, 1))

    def kept(self, step: int) -> float:
        """How much of the average stays at a step, from 0: it spans a ninth of the steps so far."""
        return min(self.average, (1 + step) / (10 + step))
