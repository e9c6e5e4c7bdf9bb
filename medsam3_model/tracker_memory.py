"""SAM 3's tracker model with its memory of earlier frames, computed in facebook's order.

transformers' `Sam3TrackerVideoModel` shrinks a mask before it makes it binary, and takes the mask
of a prompt at another size. Logits then differ by up to 11; in facebook's order they agree.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Sam3TrackerVideoModel

# A mask that is given as a prompt is sure of itself: facebook's logits inside and outside.
_SURE = 1024.0


class TrackerModel(Sam3TrackerVideoModel):
    """The tracker of facebook's reference, on transformers' modules.

    The encoder is shared with the detector and is no part of it.
    """

    def _encode_new_memory(
        self,
        current_vision_feats: Tensor,
        pred_masks_high_res: Tensor,
        object_score_logits: Tensor,
        is_mask_from_pts: bool,
    ) -> tuple[Tensor, Any]:
        """Memory of a frame: (HW, B, C) features and (HW, B, C) positions.

        Args:
            current_vision_feats: (HW, B, D), the coarsest level.
            pred_masks_high_res: (B, 1, S, S) logits.
            object_score_logits: (B, 1), positive where there is an object.
            is_mask_from_pts: the mask answers a prompt, so it is made binary.
        """
        logits = pred_masks_high_res.float()
        mask = (logits > 0).float() if is_mask_from_pts else logits.sigmoid()
        mask = mask * self.config.sigmoid_scale_for_mem_enc + self.config.sigmoid_bias_for_mem_enc
        size = [4 * side for side in self.prompt_encoder.mask_input_size]
        # After, not before it was made binary: an edge keeps its place between two pixels.
        mask = _resized(mask, size)
        batch = current_vision_feats.shape[1]
        height, width = self.backbone_feature_sizes[-1]
        spatial = current_vision_feats.permute(1, 2, 0).view(batch, self.hidden_dim, height, width)
        features, positions = self.memory_encoder(spatial, mask.to(spatial.dtype))
        gone = (object_score_logits <= 0).to(features.dtype).reshape(-1, 1, 1, 1)
        occluded = self.occlusion_spatial_embedding_parameter
        if occluded is not None:
            features = features + gone * occluded[..., None, None]
        return (
            features.to(torch.bfloat16).flatten(2).permute(2, 0, 1),
            positions.to(pred_masks_high_res.dtype).flatten(2).permute(2, 0, 1),
        )

    def _use_mask_as_output(
        self, backbone_features: Tensor, high_res_features: list[Tensor], mask_inputs: Tensor
    ) -> Any:
        """A given mask (B, 1, H, W) as the frame's answer, with the pointer made of it.

        Facebook's demo keeps it as logits of +-1024 at low resolution, and the memory is made of
        these; the pointer comes from the mask itself, at four times that resolution.
        """
        size = [4 * side for side in self.prompt_encoder.mask_input_size]
        given = _resized(mask_inputs.float(), size)
        dtype = backbone_features.dtype
        answer = self._single_frame_forward(
            input_masks=self.mask_downsample(given.to(dtype)),
            image_embeddings=cast(Any, [*high_res_features, backbone_features]),
        )
        there = (mask_inputs > 0).flatten(1).any(dim=1, keepdim=True).to(dtype)
        answer.pred_masks = self.given_logits(mask_inputs > 0)
        answer.high_res_masks = _resized(answer.pred_masks, [self.image_size] * 2)
        answer.iou_scores = torch.ones_like(there)
        answer.object_score_logits = (20 * there - 10)[:, None]
        pointer = cast(Tensor, answer.object_pointer)
        answer.object_pointer = there * pointer + (1 - there) * self.no_object_pointer
        return answer

    def given_logits(self, mask: Tensor) -> Tensor:
        """A given mask (B, 1, H, W) as logits of +-1024, (B, 1, 4 * grid, 4 * grid)."""
        return _resized(torch.where(mask, _SURE, -_SURE), list(self.prompt_encoder.mask_input_size))


def _resized(mask: Tensor, size: list[int]) -> Tensor:
    if list(mask.shape[-2:]) == size:
        return mask
    return F.interpolate(mask, size, mode="bilinear", align_corners=False, antialias=True)
