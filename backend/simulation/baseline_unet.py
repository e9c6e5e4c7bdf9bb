"""The baseline of `medsam3 simulate`: MONAI's U-Net, trained from nothing in the same time."""

import time
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from backend.errors import BackendError

_SIDE = 128
_BATCH = 4


def check_installed() -> None:
    """Raises `BackendError` where MONAI is missing."""
    if find_spec("monai") is None:
        raise BackendError(
            "`--baseline unet` needs MONAI, which is not installed: run "
            '`pip install "medsam3-label-studio[simulate]"`.'
        )


def unet_dice(
    train: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]],
    judge: Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]],
    *,
    seconds: float,
    seed: int,
) -> list[float]:
    """Train on images and masks for a wall-clock time; Dice on the others, at their own size.

    Args:
        train: RGB uint8 (H, W, 3) and mask bool (H, W).
        judge: likewise.
        seconds: of training; at least one step is made.
        seed: of weights, order and flips.
    """
    import torch
    from monai.losses import DiceCELoss
    from monai.networks.nets import UNet

    from medsam3_model.evaluation.metrics import dice

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=1,
        channels=(16, 32, 64, 128),
        strides=(2, 2, 2),
        num_res_units=2,
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    loss_of = DiceCELoss(sigmoid=True)
    images = torch.stack([_image(rgb) for rgb, _ in train])
    masks = torch.stack([_mask(mask) for _, mask in train])
    started = time.monotonic()
    net.train()
    while True:
        rows = rng.integers(len(images), size=_BATCH)
        batch, truth = images[rows], masks[rows]
        for axis in (2, 3):
            if rng.random() < 0.5:
                batch, truth = batch.flip(axis), truth.flip(axis)
        optimiser.zero_grad()
        loss_of(net(batch), truth).backward()
        optimiser.step()
        if time.monotonic() - started >= seconds:
            break
    net.eval()
    scores = []
    with torch.inference_mode():
        for rgb, mask in judge:
            logits = torch.nn.functional.interpolate(
                net(_image(rgb)[None]), mask.shape, mode="bilinear", align_corners=False
            )
            scores.append(dice((logits[0, 0] > 0).numpy(), mask))
    return scores


def _image(rgb: NDArray[np.uint8]):  # type: ignore[no-untyped-def]
    import torch

    pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1
    size = (_SIDE, _SIDE)
    return torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)[0]


def _mask(mask: NDArray[np.bool_]):  # type: ignore[no-untyped-def]
    import torch

    whole = torch.from_numpy(mask)[None, None].float()
    return torch.nn.functional.interpolate(whole, (_SIDE, _SIDE), mode="nearest")[0]
