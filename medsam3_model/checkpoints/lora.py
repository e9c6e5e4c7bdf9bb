"""LoRA adapters in facebook's key space, as MedSAM3-v1 publishes its weights.

The file is a flat dict `<facebook module>.lora.lora_A` (in, r) and `.lora_B` (r, out). A module's
weight changes by ΔW = (alpha / r) · (A · B)ᵀ (Hu et al. 2021, arXiv 2106.09685, section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from medsam3_model.checkpoints import key_mapping
from medsam3_model.checkpoints.key_mapping import Target
from medsam3_model.checkpoints.weight_files import TensorFile, some_names
from medsam3_model.errors import AdapterError

_DEFAULT_ALPHA = 32.0  # of MedSAM3-v1, with rank 16
_SUFFIX_A, _SUFFIX_B = ".lora.lora_A", ".lora.lora_B"


def is_adapter(keys: Mapping[str, object]) -> bool:
    """Whether these tensor names are those of an adapter."""
    return any(key.endswith((_SUFFIX_A, _SUFFIX_B)) for key in keys)


class Adapter:
    """A LoRA file, matched to transformers' tensors and ready to be added to them.

    Attributes:
        modules: facebook's names of the modules that it changes.
        alpha: numerator of the scale.
    """

    def __init__(self, file: TensorFile) -> None:
        """Match a file's tensors.

        Raises:
            AdapterError: it is no adapter, a half of a module is missing, a rank differs
                between the halves, or a module is not SAM 3's.
        """
        self._file = file
        self.alpha = float(file.metadata.get("alpha", _DEFAULT_ALPHA))
        name = file.path.name
        if not is_adapter(file.shapes):
            first = ", ".join(sorted(file.shapes)[:3])
            raise AdapterError(f"{name} is not a LoRA adapter: it holds {first}")
        foreign = sorted(k for k in file.shapes if not k.endswith((_SUFFIX_A, _SUFFIX_B)))
        if foreign:
            raise AdapterError(f"{name} holds tensors that are not LoRA's: {some_names(foreign)}")

        self.modules = tuple(sorted({key.rsplit(".lora.", 1)[0] for key in file.shapes}))
        # Modules with what each adds to a transformers tensor, by that tensor's name.
        self._parts: dict[str, list[tuple[str, Target]]] = {}
        unknown: list[str] = []
        for module in self.modules:
            self._check_halves(module)
            targets = key_mapping.module_targets(module)
            # Point prompts, which the adapter changes too, have no counterpart.
            if not targets and not key_mapping.has_no_counterpart(f"{module}.weight"):
                unknown.append(module)
            for target in targets:
                self._parts.setdefault(target.key, []).append((module, target))
        if unknown:
            raise AdapterError(
                f"{name} changes modules that SAM 3 does not have: {some_names(unknown)}"
            )

    def check_fits(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make sure that every change has a tensor of its shape in the base.

        Args:
            shapes: the base's tensors in transformers' layout.

        Raises:
            AdapterError: a tensor is missing or has another shape: it is of another base.
        """
        for key, parts in self._parts.items():
            for module, target in parts:
                a, b = self._halves_shapes(module)
                shape = target.operation.shape((b[1], a[0]))
                if shapes.get(key) != shape:
                    raise AdapterError(
                        f"{self._file.path.name} was made for another base model: it changes "
                        f"{module} by {shape}, the base has {shapes.get(key)}"
                    )

    def add_to(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        """`weight`, a transformers tensor in float32, with the adapter's change added."""
        for module, target in self._parts.get(key, ()):
            a = self._file.read(module + _SUFFIX_A).to(torch.float32)
            b = self._file.read(module + _SUFFIX_B).to(torch.float32)
            delta = (a @ b).T * (self.alpha / a.shape[1])
            # A fused matrix is changed as a whole; of that change the tensor takes its third.
            weight = weight + target.operation.apply(delta)
        return weight

    def _halves_shapes(self, module: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._file.shapes[module + _SUFFIX_A], self._file.shapes[module + _SUFFIX_B]

    def _check_halves(self, module: str) -> None:
        for suffix in (_SUFFIX_A, _SUFFIX_B):
            if module + suffix not in self._file.shapes:
                raise AdapterError(f"{self._file.path.name} lacks {module}{suffix}")
        a, b = self._halves_shapes(module)
        if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
            raise AdapterError(f"{self._file.path.name}: {module} has halves {a} and {b}")
