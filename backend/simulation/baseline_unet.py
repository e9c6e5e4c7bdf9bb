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
    sided: bool,
) -> list[list[float]]:
    """Train one net for all concepts for a wall-clock time; Dice on other images, at their size.

    Args:
        train: RGB uint8 (H, W, 3) and masks bool (L, H, W) of the same L concepts.
        judge: likewise.
        seconds: of training; at least one step is made.
        seed: of weights, order and flips.
        sided: a concept is on the left or right only: images are turned upside down, not mirrored.

    Returns:
        For each image of `judge` the Dice of each concept.
    """
    import torch
    from monai.losses import DiceLoss
    from monai.networks.nets import UNet

    from medsam3_model.evaluation.metrics import dice

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=len(train[0][1]),
        channels=(16, 32, 64, 128),
        strides=(2, 2, 2),
        num_res_units=2,
    )
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    # Concepts may lie upon each other: each pixel is asked for each of them.
    dice_loss, entropy = DiceLoss(sigmoid=True), torch.nn.BCEWithLogitsLoss()
    images = torch.stack([_image(rgb) for rgb, _ in train])
    masks = torch.stack([_masks(layers) for _, layers in train])
    started = time.monotonic()
    net.train()
    while True:
        rows = rng.integers(len(images), size=_BATCH)
        batch, truth = images[rows], masks[rows]
        for axis in (2,) if sided else (2, 3):
            if rng.random() < 0.5:
                batch, truth = batch.flip(axis), truth.flip(axis)
        optimiser.zero_grad()
        answer = net(batch)
        (dice_loss(answer, truth) + entropy(answer, truth)).backward()
        optimiser.step()
        if time.monotonic() - started >= seconds:
            break
    net.eval()
    scores = []
    with torch.inference_mode():
        for rgb, layers in judge:
            logits = torch.nn.functional.interpolate(
                net(_image(rgb)[None]), layers.shape[1:], mode="bilinear", align_corners=False
            )
            found = (logits[0] > 0).numpy()
            scores.append([dice(one, mask) for one, mask in zip(found, layers, strict=True)])
    return scores


def _image(rgb: NDArray[np.uint8]):  # type: ignore[no-untyped-def]
    import torch

    pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1
    size = (_SIDE, _SIDE)
    return torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)[0]


def _masks(layers: NDArray[np.bool_]):  # type: ignore[no-untyped-def]
    import torch

    whole = torch.from_numpy(layers)[None].float()
    return torch.nn.functional.interpolate(whole, (_SIDE, _SIDE), mode="nearest")[0]
