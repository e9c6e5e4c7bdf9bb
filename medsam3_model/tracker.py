"""SAM 3's tracker: masks of single objects from clicks, where the checkpoint holds it.

The tracker (SAM 2's mask decoder on SAM 3's image features) takes points, which the concept
detector does not. It reads the same vision transformer's output through a neck of its own, so an
image that is encoded already needs no second encoding.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Sam3TrackerConfig, Sam3TrackerModel, Sam3VisionConfig
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from medsam3_model.boxes import tight_box
from medsam3_model.checkpoints.weight_files import TensorFile
from medsam3_model.device import autocast
from medsam3_model.errors import CheckpointError, PromptError
from medsam3_model.types import Detections, ImageEmbedding

_MODEL, _NECK = "tracker_model.", "tracker_neck."
_PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")


class Tracker:
    """SAM 3's tracker for single images: points and a box in, one object's mask out."""

    def __init__(
        self, model: Sam3TrackerModel, neck: Sam3VisionNeck, dtype: torch.dtype, encoder_hash: str
    ) -> None:
        """Wrap loaded parts; most callers get one from `MedSAM3.tracker`."""
        self._model = model
        self._neck = neck
        self._dtype = dtype
        self._encoder_hash = encoder_hash
        self._latest: tuple[weakref.ref[ImageEmbedding], list[torch.Tensor]] | None = None

    @torch.no_grad()
    def segment(
        self, image: ImageEmbedding, points: Any, point_labels: Any = None, box: Any = None
    ) -> Detections:
        """The object that was clicked on.

        Args:
            image: from `MedSAM3.encode_image`.
            points: (M, 2) x, y in pixels of the original image.
            point_labels: (M,), 1 in the object, 0 outside; default all 1.
            box: (4,) x0, y0, x1, y1 in pixels around the object; optional.

        Returns:
            At most one mask; `scores` is the predicted IoU, `presence` the probability that there
            is an object, `semantic` the mask's probability.

        Raises:
            PromptError: neither points nor a box, or malformed ones, or an embedding of another
                encoder.
        """
        if image.encoder_hash != self._encoder_hash:
            raise PromptError("the image was encoded by another encoder: encode it again")
        prompts = self._prompts(image.original_size, points, point_labels, box)
        levels = self._levels(image)
        with autocast(levels[0].device, self._dtype):
            outputs = self._model(
                image_embeddings=levels,
                # One click is ambiguous (part or whole), so three masks compete.
                multimask_output=prompts["input_points"].shape[2] == 1 and box is None,
                **{key: value.to(levels[0].device) for key, value in prompts.items()},
            )
        # Of the masks that compete the one that the model itself trusts most.
        scores = outputs.iou_scores[0, 0].float()
        best = int(scores.argmax())
        logits = F.interpolate(
            outputs.pred_masks[:, 0, best : best + 1].float(),
            image.original_size,
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        mask = (logits > 0).cpu().numpy()
        masks = mask[None] if mask.any() else np.zeros((0, *mask.shape), np.bool_)
        boxes = [tight_box(mask) for mask in masks]
        return Detections(
            masks=masks,
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=scores[best : best + len(masks)].cpu().numpy(),
            presence=float(outputs.object_score_logits.float().sigmoid().reshape(-1)[0]),
            semantic=logits.sigmoid().cpu().numpy(),
            max_score=float(scores[best]),
        )

    def _levels(self, image: ImageEmbedding) -> list[torch.Tensor]:
        """The tracker's features of an image; those of the latest are kept for further clicks."""
        if self._latest is not None and self._latest[0]() is image:
            return self._latest[1]
        hidden = image.last_hidden_state.to(next(self._neck.parameters()).device)
        side = round(hidden.shape[1] ** 0.5)
        spatial = hidden.view(1, side, side, -1).permute(0, 3, 1, 2)
        with autocast(hidden.device, self._dtype):
            levels = [layer(spatial) for layer in self._neck.fpn_layers[:-1]]
            decoder = self._model.mask_decoder
            levels[:2] = [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1])]
        # A single image is a video's first frame: no memory yet.
        levels[2] = levels[2] + self._model.no_memory_embedding.view(1, -1, 1, 1)
        self._latest = (weakref.ref(image), levels)
        return levels

    def _prompts(
        self, size: tuple[int, int], points: Any, labels: Any, box: Any
    ) -> dict[str, torch.Tensor]:
        """The prompts in pixels of the model's square image."""
        height, width = size
        side = int(cast(Any, self._model.prompt_encoder).input_image_size)
        scale = np.array([side / width, side / height])
        where = np.asarray([] if points is None else points, np.float64).reshape(-1, 2)
        inside = np.ones(len(where), np.int64) if labels is None else np.asarray(labels, np.int64)
        if len(where) == 0 and box is None:
            raise PromptError("a click or a box is needed")
        if inside.shape != (len(where),) or not np.isin(inside, (0, 1)).all():
            raise PromptError(f"{len(where)} points need as many labels, 1 or 0")
        if not np.isfinite(where).all():
            raise PromptError("a point has a coordinate that is not a finite number")
        prompts = {}
        if box is not None:
            corners: npt.NDArray[np.float64] = np.asarray(box, np.float64).reshape(2, 2) * scale
            prompts["input_boxes"] = torch.from_numpy(corners.reshape(1, 1, 4)).float()
        if len(where) == 0:  # the padding point of a box alone
            where, inside = np.zeros((1, 2)), np.array([-10])
        prompts["input_points"] = torch.from_numpy(where * scale).float()[None, None]
        prompts["input_labels"] = torch.from_numpy(inside)[None, None]
        return prompts


def has_tracker(file: TensorFile) -> bool:
    """Whether a checkpoint holds a whole tracker."""
    return f"{_MODEL}prompt_encoder.point_embed.weight" in file.shapes


def load_tracker(
    file: TensorFile,
    config: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    encoder_hash: str,
) -> Tracker:
    """Load the tracker of a Sam3Video checkpoint.

    Args:
        file: the checkpoint.
        config: its config.json.
        device: where the parameters go.
        dtype: bfloat16 computes with autocast; the parameters stay float32.
        encoder_hash: of the frozen encoders that come with it.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
    """
    parts = {name: config["tracker_config"][name] for name in _PARTS}
    sizes: Any = Sam3TrackerConfig(**parts)
    vision: Any = Sam3VisionConfig(**config["detector_config"]["vision_config"])
    with torch.device("meta"):
        model = Sam3TrackerModel(sizes)
        neck = Sam3VisionNeck(vision)
    # The vision transformer is shared with the detector.
    model.vision_encoder = nn.Identity()
    for module, prefix in ((model, _MODEL), (neck, _NECK)):
        expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        wrong = [key for key, shape in expected.items() if file.shapes.get(prefix + key) != shape]
        if wrong:
            raise CheckpointError(
                f"{file.path.name}: the tracker does not fit, {len(wrong)} tensors are missing or "
                f"of another shape ({', '.join(prefix + key for key in wrong[:3])})"
            )
        state = {key: file.read(prefix + key).to(device, torch.float32) for key in expected}
        module.load_state_dict(state, strict=True, assign=True)
    nn.Module.to(model, device)
    return Tracker(model.eval().requires_grad_(False), neck.eval(), dtype, encoder_hash)
