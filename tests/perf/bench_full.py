"""The full-size SAM 3 with deterministic random weights: what a prompt costs, and how much memory.

Writes a `sam3.pt` of 3.4 GB into a temporary folder, loads it through `from_pretrained` in a fresh
process per precision, and prints as its last line one JSON object. Takes minutes on a CPU.
`--click RESULTS` measures a click alone, without that file.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsam3_model import ImageEmbedding
from tests.support.masks import dice
from tests.support.sam3_reference import full_keys

PHRASES = ("breast tumor", "polyp", "optic cup", "left ventricle")


def write_checkpoint(path: Path) -> None:
    """Weights with which activations stay in a sensible range: norms at 1, the rest small."""
    tensors = {}
    for key, shape in full_keys()["checkpoint"]:
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        norm = len(shape) == 1 and key.endswith("weight")
        tensors[key] = torch.randn(shape, generator=generator).mul_(0.02).add_(1.0 if norm else 0.0)
    torch.save({"model": tensors}, path)


def unmatched_keys() -> int:
    """Keys of the full checkpoint and adapter that have no place, and places without a key."""
    from transformers import Sam3Config

    from medsam3_model.checkpoints import key_mapping, loading

    model = loading.empty_model(Sam3Config())
    places = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    keys = full_keys()
    made = {
        target.key: target.operation.shape(tuple(shape))
        for key, shape in keys["checkpoint"]
        for target in key_mapping.targets(key)
    }
    lost = [
        key
        for key, _ in keys["checkpoint"]
        if not key_mapping.targets(key) and not key_mapping.has_no_counterpart(key)
    ]
    for key, _ in keys["lora"]:
        module = key.rsplit(".lora.", 1)[0]
        targets = key_mapping.module_targets(module)
        known = key_mapping.has_no_counterpart(f"{module}.weight")
        if not known and not (targets and all(target.key in places for target in targets)):
            lost.append(key)
    return len(lost) + sum(made.get(key) != shape for key, shape in places.items())


def picture() -> np.ndarray:
    """A smooth picture with structure, the same in every process."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.random((1, 3, 24, 32), dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse, (768, 1024), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0) * 255).to(torch.uint8).numpy()


def measure(checkpoint: Path, dtype: str, results: Path) -> None:
    """One precision on the CPU, in this process; writes figures and outputs to `results`."""
    from medsam3_model import MedSAM3
    from medsam3_model.detector import detector_outputs
    from medsam3_model.preprocessing import model_boxes, per_phrase_boxes
    from medsam3_model.types import stored_form

    started = time.perf_counter()
    model = MedSAM3.from_pretrained(checkpoint, device="cpu", dtype=dtype)
    load_s = time.perf_counter() - started

    rgb = picture()
    started = time.perf_counter()
    image = model.encode_image(rgb)
    encode_s = time.perf_counter() - started
    model.detect(image, model.encode_text(PHRASES[:1]))
    first_s = time.perf_counter() - started

    cached = []
    for phrase in PHRASES[1:]:
        started = time.perf_counter()
        model.detect(image, model.encode_text([phrase]))
        cached.append(time.perf_counter() - started)
    started = time.perf_counter()
    model.restore_embedding(image.last_hidden_state, image.original_size)
    restore_s = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    text = model.encode_text(PHRASES[:1])

    def answers(embedding: ImageEmbedding) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return detector_outputs(
                model.model,
                embedding.fpn_hidden_states,
                text.features,
                text.attention_mask,
                *model_boxes(*per_phrase_boxes(None, None, 1), embedding.original_size),
                model.dtype,
            )

    outputs = answers(image)
    kept = stored_form(image.last_hidden_state)
    from_disk = answers(model.restore_embedding(kept, image.original_size))
    np.savez(
        results,
        figures=json.dumps(
            {
                "load_s": load_s,
                "encode_s": encode_s,
                "first_prompt_s": first_s,
                "cached_prompt_s": statistics.median(cached),
                "restore_from_disk_s": restore_s,
                "peak_gb": peak_gb,
                "embedding_mib": kept.nbytes / 2**20,
                "from_disk_mask_dice": mean_dice(*both(outputs, from_disk, "pred_masks")),
                "from_disk_semantic_dice": mean_dice(*both(outputs, from_disk, "semantic_seg")),
            }
        ),
        logits=outputs["pred_logits"].float().numpy(),
        masks=(outputs["pred_masks"] > 0).numpy(),
        semantic=(outputs["semantic_seg"] > 0).numpy(),
        boxes=outputs["pred_boxes"].float().numpy(),
    )


def both(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """The masks (N, h, w) of one phrase in two answers."""
    first, second = ((outputs[name][0] > 0).numpy() for outputs in (one, other))
    return first, second


def empty_full_model() -> Any:
    """The full size with its tracker, in float32; values come into the only copy in memory."""
    from transformers import Sam3Config

    from medsam3_model import MedSAM3
    from medsam3_model.checkpoints import clip_tokenizer, loading, pretrained
    from medsam3_model.checkpoints.hashes import WeightsHash
    from medsam3_model.detector import vision_hidden
    from medsam3_model.tracker import SAM3_TRAITS, empty_tracker

    config: Any = Sam3Config()
    model = loading.empty_model(config)
    sizes = pretrained.tracker_sizes({}, config)
    trunk = partial(vision_hidden, model)
    tracker = empty_tracker(sizes, config.vision_config, trunk, "random", SAM3_TRAITS)
    for module in (model, tracker.model.eval(), tracker.neck.eval()):
        state = {}
        for key, value in module.state_dict().items():
            values = torch.empty(value.shape)
            norm = value.ndim == 1 and key.endswith("weight")
            state[key] = values.fill_(1.0) if norm else values.uniform_(-0.03, 0.03)
        module.load_state_dict(state, assign=True)
        module.requires_grad_(False)
    tokenizer = clip_tokenizer.clip_tokenizer()
    hashes = WeightsHash("random", "random")
    return MedSAM3(model, tokenizer, device="cpu", hashes=hashes, tracker=tracker)


def measure_click(results: Path) -> None:
    """A click on an image that is encoded already, two threads; writes figures to `results`."""
    torch.manual_seed(0)
    model = empty_full_model()
    torch.set_num_threads(2)
    hidden = torch.randn(1, 72 * 72, 1024)
    first: list[float] = []
    further: list[float] = []
    processor: list[float] = []  # of both cores together
    for _ in range(3):
        image = model.restore_embedding(hidden, (768, 1024))
        clicks: list[tuple[float, float]] = []
        for click in ((500.0, 400.0), (300.0, 200.0)):
            clicks.append(click)
            started, busy = time.perf_counter(), time.process_time()
            model.tracker.ask(image, clicks)
            took = time.perf_counter() - started
            if len(clicks) == 1:
                first.append(took)
                processor.append(time.process_time() - busy)
            else:
                further.append(took)
    figures = {
        "full_click_ms": 1000 * statistics.median(first),
        "full_click_processor_ms": 1000 * statistics.median(processor),
        "full_further_click_ms": 1000 * statistics.median(further),
        "full_click_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    results.write_text(json.dumps(figures), encoding="utf-8")


def mean_dice(masks: np.ndarray, others: np.ndarray) -> float:
    """Mean Dice of masks (N, H, W)."""
    return float(np.mean([dice(*pair) for pair in zip(masks, others, strict=True)]))


def gpu_figures(checkpoint: Path) -> dict[str, float]:
    """Images per second in bfloat16, and against the same module called bare."""
    from medsam3_model import MedSAM3
    from medsam3_model.device import autocast

    model = MedSAM3.from_pretrained(checkpoint, device="cuda")
    rgb = picture()
    text = model.encode_text(PHRASES[:1])
    tokens = model.tokenizer(
        list(PHRASES[:1]), padding="max_length", max_length=32, return_tensors="pt"
    ).to("cuda")

    def ours(batch: int) -> None:
        for image in model.encode_images([rgb] * batch, batch_size=batch):
            model.detect(image, text)

    def bare(batch: int) -> None:
        pixels = torch.zeros(batch, 3, model.image_size, model.image_size, device="cuda")
        with torch.no_grad(), autocast(model.device, model.dtype):
            model.model(
                pixel_values=pixels,
                input_ids=tokens["input_ids"].expand(batch, -1),
                attention_mask=tokens["attention_mask"].expand(batch, -1),
            )

    def images_per_s(run: Any, batch: int) -> float:
        for _ in range(3):
            run(batch)
        torch.cuda.synchronize()
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < 10:
            run(batch)
            torch.cuda.synchronize()
            done += batch
        return done / (time.perf_counter() - started)

    figures = {f"gpu_images_per_s_b{batch}": images_per_s(ours, batch) for batch in (1, 8)}
    return {
        **figures,
        "gpu_ratio_to_bare": figures["gpu_images_per_s_b1"] / images_per_s(bare, 1),
        "gpu_ratio_to_bare_b8": figures["gpu_images_per_s_b8"] / images_per_s(bare, 8),
    }


def in_fresh_process(*arguments: str) -> None:
    command = [sys.executable, "-m", "tests.perf.bench_full", *arguments]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("CHECKPOINT", "DTYPE", "RESULTS"))
    parser.add_argument("--write", metavar="CHECKPOINT")
    parser.add_argument("--click", metavar="RESULTS")
    options = parser.parse_args()
    if options.write:
        return write_checkpoint(Path(options.write))
    if options.click:
        return measure_click(Path(options.click))
    if options.one:
        checkpoint, dtype, results = options.one
        return measure(Path(checkpoint), dtype, Path(results))

    figures: dict[str, float] = {"full_keys_unmatched": unmatched_keys()}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        clicks = Path(folder) / "click.json"
        in_fresh_process("--click", str(clicks))
        figures.update(json.loads(clicks.read_text(encoding="utf-8")))
        checkpoint = Path(folder) / "sam3.pt"
        say("writing a full-size checkpoint ...")
        in_fresh_process("--write", str(checkpoint))
        for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
            results = Path(folder) / f"{name}.npz"
            in_fresh_process("--one", str(checkpoint), dtype, str(results))
            found[name] = dict(np.load(results))
            measured = json.loads(str(found[name]["figures"]))
            say(f"{name}: {json.dumps({key: round(v, 2) for key, v in measured.items()})}")
            figures.update({f"{key}_{name}": value for key, value in measured.items()})
            figures[f"cached_prompt_speedup_{name}"] = (
                measured["first_prompt_s"] / measured["cached_prompt_s"]
            )
        if torch.cuda.is_available():
            figures.update(gpu_figures(checkpoint))
    full, half = found["fp32"], found["bf16"]
    figures["bf16_mask_dice"] = mean_dice(full["masks"][0], half["masks"][0])
    figures["bf16_semantic_dice"] = mean_dice(full["semantic"][0], half["semantic"][0])
    figures["bf16_logits_max_difference"] = float(np.abs(full["logits"] - half["logits"]).max())
    figures["fp32_logits_range"] = float(np.ptp(full["logits"]))
    figures["bf16_boxes_max_difference"] = float(np.abs(full["boxes"] - half["boxes"]).max())
    say(json.dumps({key: round(value, 4) for key, value in figures.items()}))
    return None


if __name__ == "__main__":
    main()
