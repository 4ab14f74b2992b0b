"""Saliency maps against captum, and their way back to the image file."""

from __future__ import annotations

from dataclasses import replace

import captum.attr
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation
from torch import nn

from oaplug import create_encoder, create_network, load_model
from oaplug.core.case import Case
from oaplug.core.dataset import DatasetDescription
from oaplug.core.errors import OaplugError, PredictionError
from oaplug.core.plan import Configuration
from oaplug.core.saliency import Question, SaliencySettings, question_of
from oaplug.infer.attribution import (
    grad_cam,
    gradient,
    input_x_gradient,
    integrated_gradients,
    smoothgrad_x_input,
    to_map,
)
from oaplug.infer.saliency import Explanation, draw_noise, untrained_network
from oaplug.prepare.geometry import from_canonical, to_canonical
from oaplug.prepare.preprocess import prepare_volume
from oaplug.prepare.reading import read_image
from oaplug.prepare.writing import write_map
from oaplug.study.grids import RawGrids
from oaplug.testing.toy import HIERARCHY

TOY = "Dataset901_Toy"
TILTED = Rotation.from_euler("xyz", [9, -5, 4], degrees=True).as_matrix()
PLACE = ("qform_code", "sform_code", "pixdim", "quatern_b", "qoffset_x", "srow_x", "srow_z", "xyzt_units")
"""Fields of a NIfTI header that say where its voxels are."""
SIZE = (12, 16, 14)
SMALL = {"width": 4, "depth": 10, "dilated": False, "stem_kernel": 3}
KL, OA = Question(name="kl", target="kl"), Question(name="oa", target="oa")
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = create_network("resnet3d", "dual", targets=HIERARCHY, input_size=SIZE, backbone_options=SMALL)
    for module in made.modules():  # as after training
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return made.eval()


@pytest.fixture(scope="module")
def volume():
    return torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(1))


def logits_of(network, target):
    return lambda volumes: network(volumes)[target]


def explanation(network, *questions, case_id="knee", **settings):
    return Explanation(
        network=network, questions=questions, settings=SaliencySettings(**settings), case_id=case_id
    )


@pytest.mark.parametrize("copies", [1, 3, 8])
def test_smoothgrad_x_input_is_captums_with_the_same_noise(network, volume, copies):
    torch.manual_seed(5)
    tunnel = captum.attr.NoiseTunnel(captum.attr.InputXGradient(logits_of(network, "kl")))
    expected = tunnel.attribute(volume, nt_type="smoothgrad", nt_samples=8, stdevs=0.05, target=3)
    torch.manual_seed(5)  # captum draws all copies at once
    noise = torch.normal(0, torch.full((8, *volume.shape[1:]), 0.05))
    asked = explanation(network, replace(KL, grade=3), OA)
    found = smoothgrad_x_input(asked.scores, volume, noise.split(copies))
    assert_allclose(found[0], expected.detach(), atol=1e-5 * float(expected.abs().max()))
    assert float(expected.detach().abs().max()) > 1e-4
    torch.manual_seed(5)
    other = captum.attr.NoiseTunnel(captum.attr.InputXGradient(logits_of(network, "oa"))).attribute(
        volume, nt_type="smoothgrad", nt_samples=8, stdevs=0.05, target=1
    )
    assert_allclose(found[1], other.detach(), atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("grade", [0, 4])
def test_gradients_are_captums(network, volume, grade):
    asked = explanation(network, replace(KL, grade=grade))
    score = logits_of(network, "kl")
    given = volume.clone().requires_grad_()
    saliency = captum.attr.Saliency(score).attribute(given, target=grade, abs=False)
    product = captum.attr.InputXGradient(score).attribute(given, target=grade)
    assert_allclose(gradient(asked.scores, volume)[0], saliency, rtol=1e-5, atol=1e-8)
    assert_allclose(input_x_gradient(asked.scores, volume)[0], product.detach(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("per_batch", [1, 5, 16])
def test_integrated_gradients_are_captums_and_complete(network, volume, per_batch):
    asked = explanation(network, replace(KL, grade=2))
    found = integrated_gradients(asked.scores, volume, steps=16, per_batch=per_batch)[0]
    method = captum.attr.IntegratedGradients(logits_of(network, "kl"))
    expected = method.attribute(volume, target=2, n_steps=16, method="gausslegendre").float()
    assert_allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    many = integrated_gradients(asked.scores, volume, steps=128, per_batch=16)[0]
    with torch.no_grad():
        rise = asked.scores(volume)[0] - asked.scores(torch.zeros_like(volume))[0]
    assert float(many.sum()) == pytest.approx(float(rise), abs=0.02 * abs(float(rise)) + 1e-3)


@pytest.mark.parametrize("backbone", ["resnet3d", "nnmamba", "m3t"])
def test_grad_cam_is_captums(backbone):
    torch.manual_seed(0)
    options = {
        "resnet3d": SMALL | {"dilated": True},
        "nnmamba": {"channels": 4, "blocks": 1},
        "m3t": {"channels": 2, "width": 8},
    }
    encoder = create_encoder(backbone, input_size=(16, 16, 16), **options[backbone]).eval()
    whole = nn.Sequential(encoder, nn.Linear(encoder.num_features, 3)).eval()
    volume = torch.randn(1, 1, 16, 16, 16).requires_grad_()
    found = grad_cam(lambda volumes: whole(volumes).unbind(dim=1), volume, layer=encoder.cam_layer)
    method = captum.attr.LayerGradCam(whole, encoder.cam_layer)
    for grade, one in enumerate(found):
        activations = method.attribute(volume, target=grade, relu_attributions=True).detach()
        expected = captum.attr.LayerAttribution.interpolate(activations, (16, 16, 16), "trilinear")
        assert_allclose(one, expected, atol=1e-6 * float(expected.max()) + 1e-12)
    assert max(float(one.max()) for one in found) > 0


class _Lines(nn.Module):
    """A network whose logits are linear, so that each grade's gradient is known."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights))

    def forward(self, volumes):
        return {"kl": volumes.flatten(1) @ self.weights.T}

    def probabilities(self, logits):
        return {"kl": logits["kl"].softmax(dim=1)}

    @property
    def strategy(self):
        return self

    def score(self, logits, target, *, grade=None):
        return logits[target].max(dim=1).values if grade is None else logits[target][:, grade]


@given(seeds)
def test_the_predicted_grade_is_taken_anew_for_each_copy_unless_it_is_fixed(seed):
    rng = np.random.default_rng(seed)
    weights, values = rng.normal(size=(3, 8)).astype(np.float32), rng.normal(size=8).astype(np.float32)
    case = torch.as_tensor(values.reshape(1, 1, 2, 2, 2))
    asked = {"noise_std": 2.0, "copies": 6, "seed": seed}
    noise = draw_noise(range(6), shape=(1, 2, 2, 2), noise_std=2.0, seed=seed, case_id="knee").reshape(6, 8)
    noisy = values + noise
    anew = (noisy @ weights.T).argmax(axis=1)
    found = explanation(_Lines(weights), KL, **asked).attributions(case)[0]
    assert_allclose(found.detach().reshape(8), (noisy * weights[anew]).mean(axis=0), rtol=1e-4, atol=1e-5)
    fixed = explanation(_Lines(weights), KL, fixed_grade=True, **asked).attributions(case)[0]
    expected = (noisy * weights[(weights @ values).argmax()]).mean(axis=0)
    assert_allclose(fixed.detach().reshape(8), expected, rtol=1e-4, atol=1e-5)


def test_the_noise_of_a_copy_depends_on_seed_case_and_number_only():
    ask = {"shape": (1, 30, 40, 20), "noise_std": 0.05}
    whole = draw_noise(range(6), seed=3, case_id="a", **ask)
    assert_array_equal(draw_noise(range(2, 5), seed=3, case_id="a", **ask), whole[2:5])
    for other in ({"seed": 4, "case_id": "a"}, {"seed": 3, "case_id": "b"}):
        elsewhere = draw_noise(range(6), **ask, **other)
        assert abs(np.corrcoef(elsewhere.ravel(), whole.ravel())[0, 1]) < 0.02
    assert whole.std() == pytest.approx(0.05, rel=0.02)
    assert abs(whole.mean()) < 1e-3
    assert abs(np.corrcoef(whole.reshape(6, -1))[~np.eye(6, dtype=bool)]).max() < 0.03


@pytest.mark.parametrize("method", ["smoothgrad_x_input", "integrated_gradients"])
def test_how_many_copies_are_in_the_network_at_once_does_not_matter(network, volume, method):
    found = [
        explanation(network, KL, OA, method=method, copies=5, steps=5, copies_per_batch=n).attributions(
            volume
        )
        for n in (1, 2, 5)
    ]
    for others in found[1:]:
        for first, other in zip(found[0], others, strict=True):
            assert_allclose(other, first, atol=1e-5 * float(first.abs().max()))


class _Small(_Lines):
    """A network on a device without memory for more than `most` volumes."""

    most = 2

    def forward(self, volumes):
        if len(volumes) > self.most:
            raise torch.OutOfMemoryError
        return super().forward(volumes)


def test_fewer_copies_are_tried_where_memory_runs_out_until_not_even_one_fits():
    weights, case = np.ones((3, 8), np.float32), torch.ones(1, 1, 2, 2, 2)
    expected = explanation(_Lines(weights), KL).attributions(case)[0]
    found = explanation(_Small(weights), KL, copies_per_batch=8).attributions(case)[0]
    assert_allclose(found.detach(), expected.detach(), rtol=1e-5)
    tiny = _Small(weights)
    tiny.most = 0
    with pytest.raises(OaplugError, match=r"case knee does not fit .* one copy at a time"):
        explanation(tiny, KL).attributions(case)


def test_a_map_is_the_absolute_attribution_from_0_to_1_added_over_channels():
    attribution = torch.tensor([[[[[1.0, -3.0]]], [[[0.5, 1.0]]]]])
    assert_allclose(to_map(attribution), [[[0, 1]]])
    assert_allclose(to_map(torch.tensor([[[[[-2.0, 1.0, 0.5, 0.0]]]]])), [[[1, 0.5, 0.25, 0]]])
    assert not to_map(torch.full((1, 1, 2, 2, 2), 7.0)).any()


def test_questions_name_a_target_and_a_grade():
    assert question_of("oa", HIERARCHY) == OA
    assert question_of("kl:4", HIERARCHY) == Question(name="kl:4", target="kl", grade=4)
    with pytest.raises(PredictionError, match=r"no target 'ka'; did you mean 'oa'\?|no target 'ka'"):
        question_of("ka", HIERARCHY)
    with pytest.raises(PredictionError, match="kl has no grade '7'"):
        question_of("kl:7", HIERARCHY)


# --- the model folder ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor(trained_project):
    return load_model(trained_project.model(TOY, "resnet3d-single_kl"), device="cpu")


@pytest.fixture(scope="module")
def prepared(predictor):
    size = predictor.run.configuration.size_voxels
    return np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)


def test_a_model_folder_gives_a_map_from_0_to_1_for_each_question(predictor, prepared):
    settings = SaliencySettings(seed=2)
    maps = predictor.saliency(prepared, [KL, OA], case_id="toy_006", settings=settings)
    again = predictor.saliency(prepared, [OA], case_id="toy_006", settings=settings)
    other = predictor.saliency(prepared, [OA], case_id="toy_007", settings=settings)
    for one in maps:
        assert one.shape == prepared.shape[1:]
        assert (one.min(), one.max()) == (0, 1)
    assert_allclose(again[0], maps[1], atol=1e-6)
    assert abs(other[0] - maps[1]).max() > 1e-4


def test_explaining_changes_neither_the_networks_nor_the_random_stream(predictor, prepared):
    (network,) = predictor.networks.values()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stream = torch.get_rng_state()
    for untrained in (False, True):
        predictor.saliency(prepared, [KL], case_id="a", settings=SaliencySettings(), untrained=untrained)
    assert torch.equal(stream, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training


def test_several_folds_give_the_mean_of_their_maps(predictor, prepared):
    (network,) = predictor.networks.values()
    pair = {"0": network, "1": untrained_network(predictor, 9)}
    ask = {"questions": [OA], "case_id": "a", "settings": SaliencySettings()}
    alone = [replace(predictor, networks={f: n}).saliency(prepared, **ask)[0] for f, n in pair.items()]
    mean = (alone[0] + alone[1]) / 2
    both = replace(predictor, networks=pair).saliency(prepared, **ask)[0]
    assert_allclose(both, (mean - mean.min()) / (mean.max() - mean.min()), atol=1e-5)


def test_untrained_networks_have_other_weights_that_depend_on_the_seed_only(predictor, prepared):
    first, again, other = (untrained_network(predictor, seed).state_dict() for seed in (1, 1, 2))
    (trained,) = predictor.networks.values()
    weights = "encoder.conv1.weight"
    assert torch.equal(first[weights], again[weights])
    assert not torch.equal(first[weights], other[weights])
    assert not torch.equal(first[weights], trained.state_dict()[weights])
    assert first[weights].std() == pytest.approx(float(trained.state_dict()[weights].std()), rel=0.3)
    question = Question(name="kk", target="kk")
    with pytest.raises(PredictionError, match="does not answer 'kk'"):
        predictor.saliency(prepared, [question], case_id="a", settings=SaliencySettings())


# --- the way back to the image file -------------------------------------------------------------


@st.composite
def images(draw):
    """An image as a nibabel file would hold it: unequal sizes, axes in any order and sense, oblique."""
    rng = np.random.default_rng(draw(seeds))
    axis, angle = rng.normal(size=3), np.radians(round(draw(st.floats(0, 180)), 6))
    directions = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
    directions = directions[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = directions * rng.uniform(0.4, 2, 3)
    shape = tuple(rng.permutation([9, 13, 17]).tolist())
    affine[:3, 3] = rng.uniform(-5, 5, 3) - affine[:3, :3] @ (np.array(shape) / 2)
    return nibabel.Nifti1Image(rng.normal(100, 20, shape).astype(np.float32), affine)


def places_mm(shape, affine):
    """Millimetres (D,H,W,3) of every voxel, by nibabel."""
    return nibabel.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def configuration(draw):
    return Configuration(
        data_identifier="x",
        spacing_mm=draw(st.tuples(*[st.floats(0.6, 1.6)] * 3)),
        size_voxels=draw(st.sampled_from([(8, 10, 9), (20, 26, 24)])),
        fit=draw(st.sampled_from(["pad_crop", "stretch"])),
        crop="none",
    )


def to_file_and_back(folder, image, map_of, *, side, configured):
    """Prepare the image as a case, make a map of the prepared volume, and read what is written of it."""
    path = folder / "knee_0000.nii.gz"
    nibabel.save(image, path)
    case = Case(case_id="knee", subject_id="s", images=(path,), side=side)
    volume = prepare_volume(read_image([path], case_id="knee"), configured, side=side)
    described = DatasetDescription(name="x", channel_names=("a",), labels={}, file_ending=".nii.gz")
    grids = RawGrids(description=described)
    in_image = grids.bring_back(map_of(volume), affine=volume.affine, case=case)
    return volume, nibabel.load(grids.write_map(folder / "map.nii.gz", in_image, case=case))


@settings(max_examples=20)
@given(images(), st.sampled_from(["L", "R", None]), st.data())
def test_a_map_is_written_at_the_place_it_was_made_at(tmp_path_factory, image, side, data):
    """Maps that hold the millimetres of their voxels show each voxel of the file its own place."""
    configured, folder = configuration(data.draw), tmp_path_factory.mktemp("way back")
    for axis in range(3):
        volume, written = to_file_and_back(
            folder,
            image,
            lambda v, a=axis: places_mm(v.data.shape[1:], v.affine)[..., a].astype(np.float32),
            side=side,
            configured=configured,
        )
        places = places_mm(image.shape, image.affine)
        in_map = nibabel.affines.apply_affine(np.linalg.inv(volume.affine), places)
        last = np.array(volume.data.shape[1:]) - 1
        between = ((in_map >= 0) & (in_map <= last)).all(axis=-1)
        outside = ((in_map < -0.5 - 1e-4) | (in_map > last + 0.5 + 1e-4)).any(axis=-1)
        assert_allclose(written.get_fdata()[between], places[between][..., axis], atol=1e-4)
        assert between.any()
        assert not written.get_fdata()[outside].any()


@settings(max_examples=15)
@given(images(), st.sampled_from(["L", "R"]), st.data())
def test_a_map_of_ones_is_one_in_the_field_of_view_and_zero_around_it(tmp_path_factory, image, side, data):
    volume, written = to_file_and_back(
        tmp_path_factory.mktemp("field of view"),
        image,
        lambda v: np.ones(v.data.shape[1:], np.float32),
        side=side,
        configured=configuration(data.draw),
    )
    to_map = np.linalg.inv(volume.affine)
    in_map = nibabel.affines.apply_affine(to_map, places_mm(image.shape, image.affine))
    margin = np.minimum(in_map + 0.5, np.array(volume.data.shape[1:]) - 0.5 - in_map).min(axis=-1)
    values = written.get_fdata()
    assert_allclose(values[margin > 1e-4], 1, atol=1e-6)
    assert not values[margin < -1e-4].any()


@given(images())
def test_canonical_axes_are_undone(image):
    stored = image.get_fdata()[None]
    canonical, _ = to_canonical(stored, image.affine)
    assert_array_equal(from_canonical(canonical, image.affine), stored)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["knee_0000.nii.gz", "knee_0000.nii"])
def test_a_map_takes_over_the_header_of_its_image(tmp_path, order, name):
    affine = nibabel.affines.from_matvec(0.7 * TILTED, [1, 2, 3])
    header = nibabel.Nifti1Header(endianness=order)
    image = nibabel.Nifti1Image(np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7), affine, header)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"of the scanner"
    nibabel.save(image, tmp_path / name)
    values = np.random.default_rng(0).random((5, 6, 7), dtype=np.float32)
    for steps, tolerance in ((None, 0), (65535, 0.51 / 65535)):
        path = write_map(tmp_path / "map.nii.gz", values, image=tmp_path / name, case_id="knee", steps=steps)
        written = nibabel.load(path)
        assert_allclose(written.get_fdata(), values, rtol=0, atol=tolerance)
        for field in PLACE:
            assert_array_equal(written.header[field], image.header[field])
        assert written.header.endianness == order
        assert (written.header["cal_min"], written.header["cal_max"]) == (0, 1)
        of_itk, of_image = sitk.ReadImage(path), sitk.ReadImage(tmp_path / name)
        assert of_itk.GetSize() == of_image.GetSize()
        for what in ("GetOrigin", "GetSpacing", "GetDirection"):
            assert_allclose(getattr(of_itk, what)(), getattr(of_image, what)())


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_map_of_an_image_in_another_format_lies_where_the_image_does(tmp_path, ending):
    image = sitk.GetImageFromArray(np.arange(210, dtype=np.int16).reshape(5, 6, 7))
    image.SetSpacing((0.5, 0.7, 1.1))
    image.SetOrigin((3.0, -2.0, 1.0))
    image.SetDirection(TILTED.ravel().tolist())
    path = tmp_path / f"knee{ending}"
    sitk.WriteImage(image, path)
    ones = np.ones(read_image([path], case_id="knee").data.shape[1:], np.float32)
    path = write_map(tmp_path / "map.nii.gz", ones, image=path, case_id="knee")
    written = sitk.ReadImage(path)
    for what in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert_allclose(getattr(written, what)(), getattr(image, what)(), atol=1e-5)


def test_a_map_of_another_size_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.eye(4)), tmp_path / "knee.nii")
    with pytest.raises(ValueError, match="does not fit"):
        write_map(tmp_path / "map.nii.gz", np.zeros((5, 7, 6)), image=tmp_path / "knee.nii", case_id="knee")
