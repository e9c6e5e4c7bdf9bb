"""Models by version: frozen encoders are loaded once, detectors are swapped in."""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from sqlalchemy import select

from backend.errors import ModelVersionError
from backend.models import versions
from backend.models.detectors import DetectorStore
from backend.services import Services
from backend.tables import ModelVersion

if TYPE_CHECKING:
    from medsam3_model import MedSAM3


@dataclass(frozen=True)
class VersionWeights:
    """Where a version's weights are: a checkpoint, and a trained detector on top of it or None."""

    checkpoint: str
    adapter: str | None
    detector: str | None


class Models:
    """The models of one process, whose threads may share them.

    Versions with the same base share its encoders, so a further one costs its detector alone; the
    least recently used detectors are dropped beyond `MEDSAM3_DETECTORS_IN_MEMORY`.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._store = DetectorStore(services.settings)
        self._bases: dict[tuple[str, str | None], MedSAM3] = {}
        self._versions: OrderedDict[str, MedSAM3] = OrderedDict()
        self._lock = Lock()

    def get(self, version: str) -> "MedSAM3":
        """The model of a version.

        Raises:
            ModelVersionError: the version is not registered, or its detector is missing.
            CheckpointError: its weights cannot be loaded.
        """
        # Locked while it loads: another thread that needs the same one waits for it.
        with self._lock:
            if version not in self._versions:
                return self._loaded(version)
            self._versions.move_to_end(version)
            return self._versions[version]

    def _loaded(self, version: str) -> "MedSAM3":
        source = self.source(version)
        base = self._base(source)
        if source.detector is None:
            return base
        from medsam3_model.checkpoints.detectors import load_detector

        model = base.with_detector(load_detector(self._store.path(source.detector)))
        self._versions[version] = model
        while len(self._versions) > self._services.settings.detectors_in_memory:
            self._versions.popitem(last=False)
        return model

    def source(self, version: str) -> VersionWeights:
        """Where a version's weights are."""
        settings = self._services.settings
        if version == versions.default_version(self._services):
            return VersionWeights(settings.model, settings.adapter, None)
        with self._services.database.reading() as session:
            row = session.scalar(select(ModelVersion).where(ModelVersion.version == version))
        if row is None:
            raise ModelVersionError(
                f"model version {version} is not registered: `medsam3 models list`"
            )
        return VersionWeights(row.checkpoint, row.adapter, row.detector)

    def _base(self, source: VersionWeights) -> "MedSAM3":
        key = (source.checkpoint, source.adapter)
        if key not in self._bases:
            from medsam3_model import MedSAM3

            settings = self._services.settings
            base = MedSAM3.from_pretrained(
                source.checkpoint,
                adapter=source.adapter,
                device=settings.device,
                dtype=settings.dtype,
            )
            if settings.compile_encoder:
                from medsam3_model.device import compile_encoder

                compile_encoder(base.model)
            self._bases[key] = base
        return self._bases[key]
