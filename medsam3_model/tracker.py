"""SAM 3's tracker: masks of single objects from clicks, where the checkpoint holds it.

The tracker (SAM 2's mask decoder on SAM 3's image features) takes points, which the concept
detector does not. It reads the same vision transformer's output through a neck of its own, so an
image that is encoded already needs no second encoding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import Sam3TrackerVideoConfig
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

from medsam3_model.checkpoints import tracker_keys
from medsam3_model.checkpoints.weight_files import TensorFile, misfits
from medsam3_model.device import autocast
from medsam3_model.errors import CheckpointError, PromptError
from medsam3_model.tracker_memory import TrackerModel
from medsam3_model.types import ImageEmbedding
from medsam3_model.video.propagation import Levels, Propagation, Tracked, parse_prompts

# Facebook's bound on the logits of a mask that is given as a prompt.
_MASK_PROMPT_LIMIT = 32.0
# What facebook's tracker answers everywhere where there is no object.
_NO_OBJECT = -1024.0
# Radius of a painted click in cells of the mask prompt, and its logit.
_DISC, _PAINTED = 2.3, 8.0
_PROMPTS = ("points", "point_labels", "boxes", "masks")


@dataclass(frozen=True, eq=False)
class TrackerAnswer:
    """Masks of one object.

    Attributes:
        logits: float32 (N, h, w), over the whole image whatever its shape; -1024 where there is no
            object.
        iou: float32 (N,), how well each mask fits, as the model predicts.
        presence: probability that there is an object.
    """

    logits: npt.NDArray[np.float32]
    iou: npt.NDArray[np.float32]
    presence: float


@dataclass(frozen=True)
class TrackerTraits:
    """How a tracker is asked and read, where that differs from SAM 3's.

    Attributes:
        paints_clicks: it was trained with its clicks painted into the mask prompt, too, and is
            asked so by `Tracker.ask` and `Tracker.ask_each`.
        refines_boxes: a drawn box's object is the mean of the detector's answer and of what the
            tracker makes of it, see `box_answers.refined`.
        trusted_iou, trusted_stability: least predicted IoU, and least share of a mask that a logit
            of one more keeps, of a click's answer that nobody looks at before it counts.
    """

    paints_clicks: bool = False
    refines_boxes: bool = False
    trusted_iou: float = 0.7
    trusted_stability: float = 0.8


SAM3_TRAITS = TrackerTraits()


def _mirrored(points: Any, width: int) -> npt.NDArray[np.float64]:
    """Points x, y in pixels where a mirror shows them, (N, 2)."""
    return np.abs(np.asarray(points, np.float64).reshape(-1, 2) - [width, 0])


def _mirrored_box(box: Any, width: int) -> npt.NDArray[np.float64]:
    """A box x0, y0, x1, y1 in pixels where a mirror shows it."""
    (x0, y0), (x1, y1) = _mirrored(box, width)
    return np.array([x1, y0, x0, y1])


def _mean_of_best(answer: TrackerAnswer, mirrored: TrackerAnswer) -> TrackerAnswer:
    """One mask: mean log-odds of the best about an image and the best about its mirror image."""
    best, again = int(answer.iou.argmax()), int(mirrored.iou.argmax())
    both = np.stack([answer.logits[best], mirrored.logits[again][:, ::-1]])
    return TrackerAnswer(
        logits=both.clip(-_MASK_PROMPT_LIMIT, _MASK_PROMPT_LIMIT).mean(0, keepdims=True),
        iou=np.array([(answer.iou[best] + mirrored.iou[again]) / 2], np.float32),
        presence=(answer.presence + mirrored.presence) / 2,
    )


class Tracker:
    """SAM 3's tracker: points, a box or a mask in, one object's mask out, in images and videos."""

    def __init__(
        self,
        model: TrackerModel,
        neck: Sam3VisionNeck,
        trunk: Callable[[torch.Tensor], torch.Tensor],
        dtype: torch.dtype,
        encoder_hash: str,
        traits: TrackerTraits = SAM3_TRAITS,
    ) -> None:
        """Wrap loaded parts; most callers get one from `MedSAM3.tracker`.

        `trunk` is the vision transformer that is shared with the detector: pixel values
        (B, 3, S, S) to tokens (B, N, C).
        """
        self.traits = traits
        self.model = model
        self.neck = neck
        self.trunk = trunk
        self.dtype = dtype
        self.encoder_hash = encoder_hash
        # Of an image, and of what is seen of it in a mirror.
        self._latest: tuple[tuple[weakref.ref[torch.Tensor], list[torch.Tensor]], ...] = ()

    @torch.no_grad()
    def ask(
        self,
        image: ImageEmbedding,
        points: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask: Any = None,
    ) -> TrackerAnswer:
        """The object that clicks, a box and an earlier answer mean.

        Args:
            image: from `MedSAM3.encode_image`.
            points: (M, 2) x, y in pixels of the original image.
            point_labels: (M,), 1 in the object, 0 outside; default all 1.
            box: (4,) x0, y0, x1, y1 in pixels around the object; optional.
            mask: float (`mask_side`, `mask_side`), logits of an earlier answer; optional.

        Returns:
            Three masks that compete for a single click, which may mean a part or the whole; else
            one. Where the image is seen in a mirror, too, always one: the mean of the best each.

        Raises:
            PromptError: nothing was given, or it is malformed, or the embedding is of another
                encoder.
        """
        answer = self._ask(image, points, point_labels, box, mask)
        if image.mirrored is None:
            return answer
        width = image.original_size[1]
        mirrored = self._ask(
            image.mirrored(),
            None if points is None else _mirrored(points, width),
            point_labels,
            None if box is None else _mirrored_box(box, width),
            None if mask is None else np.ascontiguousarray(np.asarray(mask)[:, ::-1]),
        )
        return _mean_of_best(answer, mirrored)

    def _ask(
        self, image: ImageEmbedding, points: Any, point_labels: Any, box: Any, mask: Any
    ) -> TrackerAnswer:
        if image.encoder_hash != self.encoder_hash:
            raise PromptError("the image was encoded by another encoder: encode it again")
        prompts = self._prompts(image.original_size, points, point_labels, box, mask)
        clicks = prompts["points"]
        alone = box is None and mask is None
        multimask = alone and clicks is not None and clicks.shape[1] == 1
        if self.traits.paints_clicks and clicks is not None:
            labels = cast(torch.Tensor, prompts["point_labels"])
            prompts["masks"] = self.painted(prompts["masks"], clicks, labels)
        answer = self._decode(self._kept_levels(image), multimask=multimask, **prompts)
        return TrackerAnswer(
            logits=answer["masks"][0].float().cpu().numpy(),
            iou=answer["iou"][0].float().cpu().numpy(),
            presence=float(answer["object_logits"].float().sigmoid().reshape(-1)[0]),
        )

    @torch.no_grad()
    def ask_each(self, image: ImageEmbedding, points: Any) -> TrackerAnswer:
        """What each of N single clicks means, each on its own.

        Args:
            image: from `MedSAM3.encode_image`.
            points: (N, 2) x, y in pixels of the original image, each in an object.

        Returns:
            `logits` (N, 3, h, w) and `iou` (N, 3); `presence` is the largest of all.

        Raises:
            PromptError: as `ask`.
        """
        if image.encoder_hash != self.encoder_hash:
            raise PromptError("the image was encoded by another encoder: encode it again")
        prompts = self._prompts(image.original_size, points, None, None, None)
        clicks = cast(torch.Tensor, prompts["points"])[0, :, None]
        levels = [level.expand(len(clicks), -1, -1, -1) for level in self._kept_levels(image)]
        labels = torch.ones(clicks.shape[:2], dtype=torch.int64)
        answer = self._decode(
            levels,
            points=clicks,
            point_labels=labels,
            masks=self.painted(None, clicks, labels) if self.traits.paints_clicks else None,
            multimask=True,
        )
        return TrackerAnswer(
            logits=answer["masks"].float().cpu().numpy(),
            iou=answer["iou"].float().cpu().numpy(),
            presence=float(answer["object_logits"].float().sigmoid().max()),
        )

    def painted(
        self, masks: torch.Tensor | None, points: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """A mask prompt with the clicks as small discs in it.

        Interactive models that learn from few images take clicks as maps (RITM, Sofiiuk et al.
        2021): a place in a map needs no learning, a place as a Fourier feature does.

        Args:
            masks: (B, 1, h, w) logits, None: nothing is known yet.
            points: (B, P, 2) x, y in pixels of the square input.
            labels: (B, P), 1 in the object, 0 outside.

        Returns:
            (B, 1, h, w); later clicks lie over earlier ones.
        """
        side = self.mask_side
        pixels = int(cast(Any, self.model.prompt_encoder).input_image_size) / side
        if masks is None:
            masks = torch.zeros(len(points), 1, side, side)
        centres = torch.arange(side) + 0.5
        for place, inside in zip((points / pixels).unbind(1), labels.unbind(1), strict=True):
            across = (centres[None] - place[:, :1]).square()  # (B, side)
            down = (centres[None] - place[:, 1:]).square()
            disc = (down[:, :, None] + across[:, None, :] <= _DISC**2)[:, None]
            logits = torch.where(inside == 1, _PAINTED, -_PAINTED)[:, None, None, None]
            masks = torch.where(disc, logits, masks)
        return masks

    @property
    def has_memory(self) -> bool:
        """Whether it can follow an object from frame to frame; else it answers single images."""
        return _has_memory(self.model)

    @property
    def image_side(self) -> int:
        """Side of the square that images are resized to, in pixels."""
        return int(cast(Any, self.model.prompt_encoder).input_image_size)

    @property
    def mask_side(self) -> int:
        """Side of the masks' square, four times the encoder's patches along a side."""
        return int(cast(Any, self.model.prompt_encoder).mask_input_size[0])

    @torch.no_grad()
    def raw(
        self,
        pixel_values: torch.Tensor,
        points: torch.Tensor | None = None,
        point_labels: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        multimask: bool = False,
    ) -> dict[str, torch.Tensor]:
        """The decoder's own tensors, for B images with one object each.

        Args:
            pixel_values: (B, 3, S, S), scaled to -1..1.
            points: (B, P, 2) x, y in pixels of the square input.
            point_labels: (B, P), 1 in the object, 0 outside; default all 1.
            boxes: (B, 4) x0, y0, x1, y1 in the same pixels.
            masks: (B, 1, 4 * grid, 4 * grid) logits of an earlier answer.
            multimask: three masks that compete instead of one.

        Returns:
            `masks` (B, N, 4 * grid, 4 * grid) logits, -1024 where there is no object; `iou` (B, N)
            as predicted; `object_logits` (B, 1), positive where there is an object.
        """
        levels = self.levels(self.trunk(pixel_values))
        if points is not None and point_labels is None:
            point_labels = torch.ones(points.shape[:2], dtype=torch.int64, device=points.device)
        return self._decode(
            levels,
            points=points,
            point_labels=point_labels,
            boxes=boxes,
            masks=masks,
            multimask=multimask,
        )

    @torch.no_grad()
    def propagate_raw(
        self,
        pixel_values: torch.Tensor,
        prompts: Iterable[tuple[int, int, Mapping[str, Any]]],
        start: int,
        reverse: bool = False,
        *,
        memory_selection: bool = False,
    ) -> dict[int, dict[int, torch.Tensor]]:
        """Objects followed through the frames of a video, by the memory of earlier ones.

        Args:
            pixel_values: (T, 3, S, S), scaled to -1..1.
            prompts: (frame, object id, what shows the object there), in pixels of the square
                input: `points` (P, 2) x, y with `point_labels` (P,), 1 or 0; `box` (4,) x0, y0,
                x1, y1, alone or with points; or `mask` (S, S) of 0 and 1. All of them are answered
                before the run, wherever their frames lie. Of more than 16 points, a box counting
                as two, the first and the last eight are read, as facebook's predictor does.
            start: the frame from which the run goes, usually a prompted one.
            reverse: back to frame 0, after a run from `start` to the last frame, of which the first
                frames are remembered: facebook's way to go in both directions. A second call with
                `reverse=False` answers the frames after `start`.
            memory_selection: frames on which the objects are hardly seen are not remembered, as in
                facebook's text-prompted video.

        Returns:
            For each frame from `start` on, or back from it, and each object id, logits float32
            (4 * grid, 4 * grid) over the whole frame; -1024 where there is no object. A given mask
            comes back as logits of about +-1024.

        Raises:
            PromptError: the checkpoint's tracker has no memory, or a prompt is malformed, beyond
                the frames, or given twice.
        """
        device = next(self.neck.parameters()).device
        propagation = self.propagation(
            lambda frame: self.frame_levels(self.trunk(pixel_values[frame][None].to(device))),
            len(pixel_values),
            prompts,
            memory_selection=memory_selection,
        )
        tracked: Tracked = {}
        answers = {one.frame: one.logits for one in propagation.run(start, tracked=tracked)}
        if not reverse:
            return answers
        back = propagation.run(start, reverse=True, tracked=tracked)
        return {one.frame: one.logits for one in back}

    def propagation(
        self,
        levels: Levels,
        frames: int,
        prompts: Iterable[tuple[int, int, Mapping[str, Any]]],
        *,
        memory_selection: bool = False,
    ) -> Propagation:
        """Objects that can be followed through `frames` frames, one by one, in both directions.

        `levels` says the features and positions of a frame, as `frame_levels` makes them; the
        rest is as for `propagate_raw`.
        """
        if not self.has_memory:
            raise PromptError(
                "this checkpoint's tracker answers single images and has no memory of frames: "
                "take one with SAM 3's video part, such as facebook's sam3.pt"
            )
        return Propagation(
            self.model,
            levels,
            frames,
            parse_prompts(prompts, frames, self.image_side),
            dtype=self.dtype,
            memory_selection=memory_selection,
        )

    def _decode(
        self, levels: list[torch.Tensor], *, multimask: bool, **prompts: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """As `decode`, with -1024 for what is not there."""
        answer = self.decode(levels, multimask=multimask, **prompts)
        there = answer["object_logits"][:, :, None, None] > 0
        return {**answer, "masks": torch.where(there, answer["masks"], _NO_OBJECT)}

    def decode(
        self,
        levels: list[torch.Tensor],
        *,
        multimask: bool,
        points: torch.Tensor | None = None,
        point_labels: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """As `raw`, with gradients, from `levels`, and with masks also of what is not there."""
        model, finest = self.model, levels[-1]
        batch, device = finest.shape[0], finest.device
        if points is None and boxes is None:
            # Nothing but a mask: facebook's empty point stands in for the prompts.
            points = torch.zeros(batch, 1, 2)
            point_labels = -torch.ones(batch, 1, dtype=torch.int64)
        if masks is not None:
            masks = masks.clamp(-_MASK_PROMPT_LIMIT, _MASK_PROMPT_LIMIT).to(device).float()
        with autocast(device, self.dtype):
            sparse, dense = model.prompt_encoder(
                input_points=None if points is None else points[:, None].to(device),
                input_labels=None if point_labels is None else point_labels[:, None].to(device),
                input_boxes=None if boxes is None else boxes[:, None].to(device),
                input_masks=masks,
            )
            positions = model.get_image_wide_positional_embeddings().expand(batch, -1, -1, -1)
            logits, iou, _, object_logits = model.mask_decoder(
                image_embeddings=finest,
                image_positional_embeddings=positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                high_resolution_features=levels[:-1],
            )
        return {"masks": logits[:, 0], "iou": iou[:, 0], "object_logits": object_logits[:, 0]}

    def _kept_levels(self, image: ImageEmbedding) -> list[torch.Tensor]:
        """The tracker's features of an image; those of the latest are kept for further clicks."""
        # By the tensor: it is the same in every copy of an embedding.
        for hidden, levels in self._latest:
            if hidden() is image.last_hidden_state:
                return levels
        levels = self.levels(image.last_hidden_state)
        self._latest = ((weakref.ref(image.last_hidden_state), levels), *self._latest[:1])
        return levels

    def _levels_of(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Three feature levels, finest first, of the trunk's tokens (B, N, C)."""
        hidden = hidden.to(next(self.neck.parameters()).device)
        side = round(hidden.shape[1] ** 0.5)
        spatial = hidden.view(hidden.shape[0], side, side, -1).permute(0, 3, 1, 2)
        with autocast(hidden.device, self.dtype):
            levels = [layer(spatial) for layer in self.neck.fpn_layers[:3]]
            decoder = self.model.mask_decoder
            levels[:2] = [decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1])]
        return levels

    def levels(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """What `decode` reads, of the trunk's tokens (B, N, C) of images without a memory."""
        levels = self._levels_of(hidden)
        # A single image is a video's first frame: nothing is remembered yet, and that is said.
        return [*levels[:2], levels[2] + self.model.no_memory_embedding.view(1, -1, 1, 1)]

    def frame_levels(self, hidden: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Features of a video's frames, of the trunk's tokens (B, N, C), and their positions."""
        levels = self._levels_of(hidden)
        positions = [
            self.neck.position_encoding(level.shape, level.device, level.dtype) for level in levels
        ]
        return levels, positions

    def _prompts(
        self, size: tuple[int, int], points: Any, labels: Any, box: Any, mask: Any
    ) -> dict[str, torch.Tensor | None]:
        """One object's prompts in pixels of the model's square image, as `_decode` takes them."""
        height, width = size
        scale = np.array([self.image_side / width, self.image_side / height])
        where = np.asarray([] if points is None else points, np.float64).reshape(-1, 2)
        inside = np.ones(len(where), np.int64) if labels is None else np.asarray(labels, np.int64)
        if len(where) == 0 and box is None and mask is None:
            raise PromptError("a click, a box or a mask is needed")
        if inside.shape != (len(where),) or not np.isin(inside, (0, 1)).all():
            raise PromptError(f"{len(where)} points need as many labels, 1 or 0")
        prompts: dict[str, torch.Tensor | None] = dict.fromkeys(_PROMPTS)
        if box is not None:
            corners: npt.NDArray[np.float64] = np.asarray(box, np.float64).reshape(2, 2) * scale
            if not (np.isfinite(corners).all() and (corners[1] > corners[0]).all()):
                raise PromptError("a box is empty: x1 and y1 must be greater than x0 and y0")
            prompts["boxes"] = torch.from_numpy(corners.reshape(1, 4)).float()
        if len(where):
            if not np.isfinite(where).all():
                raise PromptError("a point has a coordinate that is not a finite number")
            if (where < 0).any() or (where > [width, height]).any():
                raise PromptError(f"a point is outside of the image of {width} x {height} pixels")
            prompts["points"] = torch.from_numpy(where * scale).float()[None]
            prompts["point_labels"] = torch.from_numpy(inside)[None]
        if mask is not None:
            logits = np.asarray(mask, np.float32)
            expected = (self.mask_side, self.mask_side)
            if logits.shape != expected or not np.isfinite(logits).all():
                raise PromptError(
                    f"a mask prompt must be finite logits of {expected[0]} x {expected[1]}, "
                    f"not {' x '.join(map(str, logits.shape))}"
                )
            prompts["masks"] = torch.from_numpy(logits)[None, None]
        return prompts


def has_tracker(file: TensorFile) -> bool:
    """Whether a checkpoint holds a tracker, in facebook's layouts or in Hugging Face's."""
    return bool(tracker_keys.tensors_of(file.shapes))


def load_tracker(
    file: TensorFile,
    sizes: Sam3TrackerVideoConfig,
    vision: Any,
    trunk: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    dtype: torch.dtype,
    encoder_hash: str,
    traits: TrackerTraits = SAM3_TRAITS,
) -> Tracker:
    """Load the tracker of a checkpoint, with the part that remembers earlier frames.

    Args:
        file: the checkpoint, facebook's `sam3.pt` or `sam3.1_multiplex.pt`, or a Hugging Face
            Sam3Video model.
        sizes: of the tracker.
        vision: a `Sam3VisionConfig`, sizes of the encoder whose trunk the detector shares.
        trunk: that trunk.
        device: where the parameters go.
        dtype: bfloat16 computes with autocast; the parameters stay float32.
        encoder_hash: of the frozen encoders that come with it.
        traits: how it is asked and read.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape. A file without any
            tensor of the memory is an image tracker's, as transformers' `Sam3TrackerModel`.
    """
    model, neck = _empty(sizes, vision)
    sources = tracker_keys.tensors_of(file.shapes)
    if not any(tracker_keys.is_of_memory(key) for key in sources):
        _leave_out_memory(model)
    for module, prefix in ((model, tracker_keys.MODEL), (neck, tracker_keys.NECK)):
        expected = {prefix + key: tuple(value.shape) for key, value in module.state_dict().items()}
        _check_fits(file, {k: v for k, v in sources.items() if k.startswith(prefix)}, expected)
        state = {
            key.removeprefix(prefix): torch.cat([file.read(part) for part in sources[key]]).to(
                device, torch.float32
            )
            for key in expected
        }
        module.load_state_dict(state, strict=True, assign=True)
    if _has_memory(model):
        _compute_buffers(model, sizes)
    if tracker_keys.is_multiplex(file.shapes):  # SAM 3.1 predicts the IoU itself, not its logit
        cast(Any, model.mask_decoder.iou_prediction_head).sigmoid_output = False
    nn.Module.to(model, device)
    model.eval().requires_grad_(False)
    neck.eval().requires_grad_(False)
    return Tracker(model, neck, trunk, dtype, encoder_hash, traits)


def empty_tracker(
    sizes: Sam3TrackerVideoConfig,
    vision: Any,
    trunk: Callable[[torch.Tensor], torch.Tensor],
    encoder_hash: str,
    traits: TrackerTraits,
) -> Tracker:
    """An image tracker whose parameters have no values yet, for training; as `load_tracker`."""
    model, neck = _empty(sizes, vision)
    _leave_out_memory(model)
    for module in (model, neck):
        module.to_empty(device="cpu")
    return Tracker(model, neck, trunk, torch.float32, encoder_hash, traits)


def _empty(sizes: Sam3TrackerVideoConfig, vision: Any) -> tuple[TrackerModel, Sam3VisionNeck]:
    with torch.device("meta"):
        return TrackerModel(sizes, remove_vision_encoder=True), Sam3VisionNeck(vision)


def _leave_out_memory(model: TrackerModel) -> None:
    """Take out what only a video needs: the file is an image tracker's."""
    for name in {key.split(".")[0] for key in model.state_dict()}:
        if tracker_keys.is_of_memory(f"{tracker_keys.MODEL}{name}."):
            delattr(model, name)


def _has_memory(model: TrackerModel) -> bool:
    return hasattr(model, "memory_attention")


def _compute_buffers(model: TrackerModel, sizes: Sam3TrackerVideoConfig) -> None:
    """Fill what no checkpoint stores: positions and rotary frequencies."""
    attention = model.memory_attention
    positions = attention.precompute_positions(sizes)
    attention.register_buffer("position_ids", positions, persistent=False)
    frequencies, _ = attention.rotary_emb.compute_axial_rope_parameters(sizes)
    attention.rotary_emb.register_buffer("inv_freq", frequencies, persistent=False)
    attention.rotary_emb.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)


def _check_fits(
    file: TensorFile, sources: Mapping[str, tuple[str, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    missing = [key for key in expected if key not in sources]
    unexpected = [part for key, parts in sources.items() if key not in expected for part in parts]
    misshapen = []
    for key in expected.keys() & sources.keys():
        shapes = [file.shapes[part] for part in sources[key]]
        stored = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if stored != expected[key]:
            misshapen += [f"{part} {list(file.shapes[part])}" for part in sources[key]]
    if problems := misfits(missing, unexpected, misshapen):
        raise CheckpointError(f"{file.path.name}: its tracker does not fit the model: {problems}")
