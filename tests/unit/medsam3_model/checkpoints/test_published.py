"""Published checkpoints: SAM 3 at full size, SAM 3.1 and Medical-SAM3 load whole or are refused."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Sam3Config

from medsam3_model import MedSAM3
from medsam3_model.checkpoints import conversion, loading, pretrained, published
from medsam3_model.checkpoints.loading import Layout
from medsam3_model.checkpoints.weight_files import TensorFile
from medsam3_model.errors import CheckpointError
from medsam3_model.tracker import Tracker, load_tracker
from tests.support import sam3_reference

Shapes = Mapping[str, tuple[int, ...]]


class ShapesOnly(TensorFile):
    """A checkpoint at full size of which only names and shapes are there."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.path, self.shapes, self.metadata = Path("sam3.pt"), shapes, {}
        self.was_read: set[str] = set()

    def _open(self) -> None:
        pass

    def _read(self, key: str) -> torch.Tensor:
        self.was_read.add(key)
        return torch.empty(self.shapes[key], device="meta")


def sam3_shapes() -> Shapes:
    detector = sam3_reference.full_keys()["checkpoint"]
    tracker = [(key, shape) for key, shape, _ in sam3_reference.full_tracker_keys()]
    return {key: tuple(shape) for key, shape in (*detector, *tracker)}


def sam31_shapes() -> Shapes:
    sam3 = sam3_shapes()
    names = sam3_reference.multiplex_keys(sam3)
    return {name: (48, 256) if key is None else sam3[key] for name, key in names.items()}


def load_on_meta(file: ShapesOnly) -> tuple[set[str], Tracker]:
    """The file's tensors that are in the detector, and its tracker, by the code that loads both."""
    layout = loading.layout_of(file)
    model = loading.empty_model(loading._with_levels(Sam3Config(), file, layout))
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    sources = loading.match(file, layout, shapes)
    assert sources.keys() == shapes.keys()
    sizes = pretrained._tracker_sizes(Path("sam3.pt"), None, model.config)
    vision = model.config.vision_config
    meta = torch.device("meta")
    tracker = load_tracker(file, sizes, vision, torch.nn.Identity(), meta, torch.float32, "")
    return {key for key, _ in sources.values()}, tracker


def test_all_tensors_of_sam3_at_full_size_have_their_place() -> None:
    file = ShapesOnly(sam3_shapes())
    detector, tracker = load_on_meta(file)
    assert tracker.has_memory
    assert len(file.shapes) == 1102 + 331
    assert len(file.was_read) == 331
    left_out = file.shapes.keys() - detector - file.was_read
    # facebook's point prompts to the detector, which transformers does not have.
    assert len(left_out) == 6
    assert all("geometry_encoder.points_" in key for key in left_out)


def test_sam31_at_full_size_answers_concepts_and_clicks() -> None:
    file = ShapesOnly(sam31_shapes())
    detector, tracker = load_on_meta(file)
    # As many as in the published file: 1,134 weights and the rotary frequencies of 32 layers.
    assert sum(key.startswith("detector.") for key in file.shapes) == 1166
    assert not tracker.has_memory
    left_out = file.shapes.keys() - detector - file.was_read
    known = ("points_", "propagation_convs.", "freqs_cis", "tracker.model.")
    assert all(any(part in key for part in known) for key in left_out)
    clicks = {key for key in left_out if "interactiv" in key}
    assert {key.split(".")[2] for key in clicks} == {
        "interactive_obj_ptr_proj",
        "interactive_mask_downsample",
    }
    read = sum(prod(file.shapes[key]) for key in file.was_read)
    assert read == sum(tensor.numel() for tensor in tracked(tracker)) - 256
    assert detector.isdisjoint(file.was_read)


def tracked(tracker: Tracker) -> list[torch.Tensor]:
    """Its tensors; the positions' frequencies (2, 128) stand there twice."""
    return [*tracker.model.state_dict().values(), *tracker.neck.state_dict().values()]


# -- SAM 3.1, small ---------------------------------------------------------------------------


def load(path: Path, tensors: Mapping[str, torch.Tensor]) -> MedSAM3:
    torch.save(dict(tensors), path)
    return MedSAM3.from_pretrained(path, config=sam3_reference.video_config(), device="cpu")


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return sam3_reference.multiplex_tensors()


@pytest.fixture(scope="module")
def sam31(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> MedSAM3:
    return load(tmp_path_factory.mktemp("sam31") / "sam3.1_multiplex.pt", tensors)


def test_sam31_answers_concepts_as_sam3_with_the_same_weights(
    sam31: MedSAM3, facebook_checkpoint: Path
) -> None:
    sam3 = MedSAM3.from_pretrained(
        facebook_checkpoint, config=sam3_reference.config(), device="cpu"
    )
    rgb = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    expected, answer = (
        model.detect_all(model.encode_image(rgb), model.encode_text(["optic cup"]))[0]
        for model in (sam3, sam31)
    )
    np.testing.assert_array_equal(answer.semantic, expected.semantic)
    assert sam31.detector_hash == sam3.detector_hash


def test_sam31_answers_clicks_as_facebook_does(sam31: MedSAM3) -> None:
    golden = sam3_reference.tracker_golden()
    frame = torch.from_numpy(golden["frames"][:1])
    answer = sam31.tracker.raw(
        (frame.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5,
        points=torch.from_numpy(golden["image/points"]).float(),
        point_labels=torch.from_numpy(golden["image/labels"]).long(),
    )
    np.testing.assert_allclose(answer["masks"], golden["image/clicks/masks"], rtol=0, atol=2e-3)
    object_logits = golden["image/clicks/object"]
    np.testing.assert_allclose(answer["object_logits"], object_logits, rtol=0, atol=1e-5)
    # SAM 3.1 predicts the IoU without the logistic function at the end.
    iou = answer["iou"].sigmoid()
    np.testing.assert_allclose(iou, golden["image/clicks/iou"], rtol=0, atol=1e-5)


def without(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in tensors.items() if part not in key}


def renamed(tensors: Mapping[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {key.replace(old, new): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tracker.model.interactive_", "tracker.model.interactive.click_"),
        ("tracker.model.interactive_sam_", "tracker.sam_"),
        ("interactive_sam_mask_decoder.iou_token", "interactive_sam_mask_decoder.iou_tokens"),
        ("interactivity_no_mem_embed", "no_mem_embed"),
        (".interactive_convs.", ".sam2_convs."),
    ],
)
def test_clicks_of_sam31_under_other_names_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], old: str, new: str
) -> None:
    with pytest.raises(CheckpointError, match=r"It is SAM 3\.1.*models convert.*facebook/sam3"):
        load(tmp_path / "sam3.1_multiplex.pt", renamed(tensors, old, new))


def test_the_detector_of_sam31_can_be_kept_alone(
    tmp_path: Path, tensors: dict[str, torch.Tensor], sam31: MedSAM3
) -> None:
    others = renamed(tensors, "interactive_sam_", "click_")
    torch.save(others, tmp_path / "sam3.1_multiplex.pt")
    folder = tmp_path / "kept"
    conversion.convert(tmp_path / "sam3.1_multiplex.pt", folder, config=sam3_reference.config())
    kept = MedSAM3.from_pretrained(folder, device="cpu")
    assert kept.tracker is None
    assert kept.detector_hash == sam31.detector_hash


def test_sam31_without_clicks_is_a_detector(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    detector = renamed(without(tensors, "tracker."), "detector.", "")
    assert load(tmp_path / "detector.pt", detector).tracker is None
    assert conversion.describe(tmp_path / "detector.pt").layout == Layout.SAM31.value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector.backbone.vision_backbone.convs.1.conv_1x1.bias": None}, "1 missing"),
        ({"detector.backbone.vision_backbone.fourth_convs.weight": 3}, r"1 unexpected .*fourth"),
        ({"detector.dot_prod_scoring.hs_proj.bias": 3}, r"1 of another shape"),
    ],
)
def test_a_detector_of_sam31_that_does_not_fit_is_refused(
    tmp_path: Path,
    tensors: dict[str, torch.Tensor],
    change: dict[str, int | None],
    message: str,
) -> None:
    others = {key: value for key, value in tensors.items() if key not in change}
    others |= {key: torch.zeros(size) for key, size in change.items() if size is not None}
    with pytest.raises(CheckpointError, match=rf"facebook's SAM 3\.1 .*{message}"):
        load(tmp_path / "sam3.1_multiplex.pt", others)


# -- Medical-SAM3 -----------------------------------------------------------------------------


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    """Its weights: SAM 3's names without `detector.`, as facebook's trainer saves them."""
    tensors = sam3_reference.facebook_tensors()
    return {prefix + key.removeprefix("detector."): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        ("model", ""),
        ("state_dict", "module."),
        ("model_state_dict", "_orig_mod."),
        (None, "model."),
    ],
)
def test_medical_sam3_loads_out_of_a_training_checkpoint(
    tmp_path: Path, facebook_checkpoint: Path, wrapper: str | None, prefix: str
) -> None:
    tensors = prefixed(prefix)
    path = tmp_path / "Medical_SAM3" / "checkpoint.pt"
    path.parent.mkdir()
    state = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-5}]}
    training = {"optimizer": state, "loss": {}, "epoch": 3, "steps": {"train": 9}}
    torch.save(tensors if wrapper is None else {**training, wrapper: tensors}, path)
    loaded = loading.load_model(path, config=sam3_reference.config())
    expected = sam3_reference.facebook_tensors()["detector.dot_prod_scoring.hs_proj.bias"]
    torch.testing.assert_close(loaded.model.dot_product_scoring.query_proj.bias, expected)
    assert loading.find_weights(path.parent) == path
    preset = pretrained.preset_of(path, {}, None)
    assert (preset.name, preset.settings.score_threshold) == ("medical-sam3", 0.1)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("models--Chongcong--Medical-SAM3/snapshots/1a2b/checkpoint.pt", True),
        ("weights/medical_sam3_v2.pt", True),
        ("weights/checkpoint_2D.pt", True),
        ("medsam3/checkpoint.pt", False),
        ("weights/sam3.pt", False),
    ],
)
def test_medical_sam3_is_told_by_its_path(path: str, found: bool) -> None:
    assert published.is_medical_sam3(Path(path)) is found
    threshold = 0.1 if found else 0.5
    assert pretrained.preset_of(Path(path), {}, None).settings.score_threshold == threshold


def test_a_dict_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        loading.load_model(tmp_path / "checkpoint.pt")
