"""Second looks of the bundled model: which square suits which concept, by groups kept for judging.

```
python -m medsam3_model.pretraining.second_looks --bundle medsam3_model/weights/tiny --write \
    --data kvasir_seg --concept object=polyp
```

As at the end of a fine-tuning run (`training.calibration`), but for all the phrases of a concept,
and in a bundle's `preset.json`. Without `--write` it prints what it finds.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsam3_model.data.datasets import load_dataset
from medsam3_model.data.samples import Dataset
from medsam3_model.predictor import MedSAM3
from medsam3_model.pretraining.phrases import CONCEPT_PHRASES
from medsam3_model.training.calibration import NO_LOOK, look_agreements
from medsam3_model.training.thresholds import LEAST_IMAGES, calibrated


def judged(model: MedSAM3, dataset: Dataset, concept: str, phrase: str) -> list[dict[float, float]]:
    """How well each validation image with a concept is answered, by the square of a second look."""
    text, rows = model.encode_text([phrase]), []
    for sample in dataset.split("val"):
        truth = sample.read(concept)
        if truth is None or not truth.labels.any():
            continue
        rgb = sample.image()
        image = model.encode_image(rgb)
        (answer,) = model.detect_all(image, text)
        rows.append(look_agreements(model, image, rgb, text, answer, truth.labels))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(prog="medsam3_model.pretraining.second_looks")
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--data", type=Path, required=True, help="folder of images with masks")
    parser.add_argument(
        "--concept", action="append", required=True, help="the data set's name of it=concept"
    )
    parser.add_argument("--write", action="store_true", help="into the bundle's preset.json")
    options = parser.parse_args(arguments)

    model, dataset = MedSAM3.from_pretrained(options.bundle), load_dataset(options.data)
    file = options.bundle / "preset.json"
    preset = json.loads(file.read_text(encoding="utf-8"))
    looks: dict[str, float] = preset.setdefault("second_looks", {})
    for asked in options.concept:
        concept, _, phrase = asked.partition("=")
        dataset.check_concepts([concept])
        if phrase not in CONCEPT_PHRASES:
            parser.error(
                f"'{asked}' names no concept of the bundled model: {list(CONCEPT_PHRASES)}"
            )
        rows = judged(model, dataset, concept, phrase)
        means = {room: float(np.mean([row[room] for row in rows])) for row in rows for room in row}
        shown = ", ".join(f"{room:g}: {mean:.4f}" for room, mean in means.items())
        sys.stdout.write(f"{phrase}, {len(rows)} images: {shown}\n")
        if len(rows) < LEAST_IMAGES:
            continue
        found = calibrated([(phrase, row) for row in rows], NO_LOOK)
        for name in (phrase, *CONCEPT_PHRASES[phrase]):
            looks.pop(name, None)
            if phrase in found:
                looks[name] = found[phrase]
    if options.write:
        file.write_text(json.dumps(preset, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
