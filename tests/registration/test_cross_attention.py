"""NestedMorph with attention from the fixed into the moving image at its coarse stages."""

import pytest
import torch
from torch.testing import assert_close

from voxelwave.kernels.attention.choice import NAMES
from voxelwave.registration import nestedmorph
from voxelwave.registration.cross_attention import CHANNELS, CrossAttention, Tokens
from voxelwave.registration.nestedmorph import NestedMorph
from voxelwave.registration.nestedmorph_files import load_nestedmorph, save_nestedmorph

BILEVEL = "bilevel(region=[1, 1, 1], top=2)"
TEXTS = {name: {"routing": "routing(clusters=3)"}.get(name, name) for name in NAMES if name != "head_split"}
# mechanisms that cannot attend from one image to another, and why
REFUSED = {
    **dict.fromkeys(
        ("power", "neural_memory", "key_scored", "fixed_map", "duality", "sliding_window"), "must support cross"
    ),
    "graph_window": "needs a graph of the tokens, which this model does not have",
}


@pytest.fixture
def narrow(monkeypatch):
    """A network of the same structure that is ten times cheaper to train."""
    monkeypatch.setattr(nestedmorph, "WIDTHS", (16, 32, 64, 128))


def images(generator, size=(32, 32, 64), batch=1):
    return torch.rand(2, batch, 1, *size, generator=generator).unbind()


def shifted_tokens(generator, shift):
    """Distinct tokens on a grid of 2 x 3 x 8, and the same ones moved along the last axis, which closes to a circle."""
    fixed = torch.randn(1, 2, 3, 8, CHANNELS[2], generator=generator)
    moving = fixed.roll(shift, 3)
    return Tokens(fixed.flatten(1, 3), (2, 3, 8)), Tokens(moving.flatten(1, 3), (2, 3, 8))


def position_only(mixer):
    """Attention at the stage of 16 voxels per token whose result is the distance in units of 32 voxels."""
    attention = CrossAttention(2, 192, 2, mixer)
    with torch.no_grad():
        for linear in (attention.values, attention.position, attention.reprojection):
            linear.weight.zero_()
        attention.values.bias.zero_()
        attention.reprojection.bias.zero_()
        attention.position.weight[:3] = torch.eye(3)
        attention.reprojection.weight[:3, :3] = torch.eye(3)
        for norm in (attention.query_norm, attention.key_norm):
            norm.weight.fill_(3.0)  # sharp enough to pick one token
    return attention


@pytest.mark.parametrize("mixer", ["softmax", BILEVEL, "bilevel(region=[1, 1, 2], top=1)"])
def test_the_result_is_the_distance_to_the_matching_place_however_far(mixer, generator):
    fixed, moving = shifted_tokens(generator, 4)
    with torch.no_grad():
        found = position_only(mixer)(fixed, moving)[0, :, :3].unflatten(0, fixed.size)
    assert_close(found[..., :4, 2], torch.full((2, 3, 4), 64 / 32.0), rtol=0, atol=0.02)  # 4 tokens of 16 voxels
    assert_close(found[..., 4:, 2], torch.full((2, 3, 4), -64 / 32.0), rtol=0, atol=0.02)
    assert_close(found[..., :2], torch.zeros(2, 3, 8, 2), rtol=0, atol=0.02)


@pytest.mark.parametrize("mixer", ["softmax", BILEVEL])
def test_attention_itself_shows_the_distance_to_the_matching_place(mixer, generator):
    fixed, moving = shifted_tokens(generator, 4)
    sharp = position_only(mixer)
    with torch.no_grad():
        shown = sharp.attended_displacement(fixed, moving)
        found = 32.0 * sharp(fixed, moving)[0, :, :3].unflatten(0, fixed.size)
    assert_close(shown[0, ..., :4, :], torch.tensor([0.0, 0.0, 64.0]).expand(2, 3, 4, 3), rtol=0, atol=0.6)
    assert_close(shown[0], found, rtol=0, atol=1e-3)


def test_a_loss_on_the_shown_distance_trains_what_is_compared_and_not_what_is_carried(generator, narrow):
    model = NestedMorph(mixer=BILEVEL)
    stages = model.attended_displacements(*images(generator))
    assert [tuple(shown.shape) for shown in stages] == [(1, 2, 2, 4, 3), (1, 1, 1, 2, 3)]
    torch.stack([shown.square().sum() for shown in stages]).sum().backward()
    for block in (model.unet.backbone.block3, model.unet.backbone.block4):
        attention = block[0].attn
        assert attention.queries.weight.grad.norm() > 0
        assert attention.keys.weight.grad.norm() > 0
        assert attention.values.weight.grad is None
        assert attention.position.weight.grad is None
    assert all(p.grad.norm() > 0 for p in model.unet.backbone.of_fixed.convolutions.parameters())
    assert NestedMorph().attended_displacements(*images(generator)) == []


def test_the_searched_regions_hold_the_shifted_content(generator):
    fixed, moving = shifted_tokens(generator, 4)
    searched = position_only("bilevel(region=[1, 1, 2], top=2)").searched(fixed, moving)
    assert searched is not None
    assert searched.region == (16, 16, 32)
    best = searched.chosen[0, 0, :, 0].view(2, 3, 4)
    assert_close(best, torch.arange(24).view(2, 3, 4).roll(-2, 2))
    assert position_only("softmax").searched(fixed, moving) is None


def test_with_all_regions_routing_is_softmax_attention(generator, narrow):
    torch.manual_seed(0)
    routed = NestedMorph(mixer="bilevel(regions=2, top=8)", flow_head="quarter").eval()
    routed.flow.weight.data.normal_()
    dense = NestedMorph(mixer="softmax", flow_head="quarter").eval()
    dense.load_state_dict(routed.state_dict())
    pair = images(generator)
    with torch.no_grad():
        assert_close(routed(*pair), dense(*pair), rtol=1e-4, atol=1e-4)  # float32
        assert routed.searched_regions(*pair)[0].chosen.shape == (1, 1, 8, 8)
        assert dense.searched_regions(*pair) == []


def test_routing_takes_the_place_of_linear_attention_at_the_coarse_stages_only(narrow):
    model, published = NestedMorph(mixer=BILEVEL), NestedMorph()
    own, theirs = set(model.state_dict()), set(published.state_dict())
    added = {name.removeprefix("unet.backbone.").partition(".")[0] for name in own - theirs}
    assert added == {"of_moving", "of_fixed", "block3", "block4"}
    assert {name.removeprefix("unet.backbone.").partition(".")[0] for name in theirs - own} == {"block3", "block4"}
    assert published.config == {"official": False, "keep_unused": False, "diffeomorphic": False}
    with pytest.raises(ValueError, match="mixer must be None if official is True, got 'softmax'"):
        NestedMorph(official=True, mixer="softmax")


def test_images_of_any_size_are_padded(generator, narrow):
    model = NestedMorph(mixer=BILEVEL).eval()
    with torch.no_grad():
        warped, displacement = model(*images(generator, (20, 33, 31), 2))
    assert (warped.shape, displacement.shape) == ((2, 1, 20, 33, 31), (2, 3, 20, 33, 31))
    fine, coarse = model.searched_regions(*images(generator, (20, 33, 31), 2))
    assert (fine.region, fine.chosen.shape) == ((16, 16, 16), (2, 1, 2 * 4 * 2, 2))
    assert (coarse.region, coarse.chosen.shape) == ((32, 32, 32), (2, 1, 2, 2))


@pytest.mark.parametrize("name", TEXTS)
def test_every_mechanism_trains_or_is_refused_with_its_reason(name, generator, narrow):
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            NestedMorph(mixer=TEXTS[name])
        return
    model = NestedMorph(mixer=TEXTS[name], flow_head="quarter")
    model.flow.weight.data.normal_()
    displacement = model(*images(generator, (32, 32, 32)))[1]
    displacement.square().mean().backward()
    values = model.unet.backbone.block3[0].attn.values.weight.grad
    assert displacement.isfinite().all()
    assert values.isfinite().all()
    assert values.any()


def test_files_record_the_mixer(narrow, tmp_path):
    model = NestedMorph(mixer=BILEVEL)
    save_nestedmorph(tmp_path / "n.safetensors", model)
    loaded = load_nestedmorph(tmp_path / "n.safetensors")
    assert loaded.mixer == BILEVEL
    assert_close(loaded.state_dict(), model.state_dict())
    model.mixer = "bilvel"
    save_nestedmorph(tmp_path / "n.safetensors", model)
    with pytest.raises(ValueError, match=r"n.safetensors is damaged: mixer must be one of .*; did you mean bilevel\?"):
        load_nestedmorph(tmp_path / "n.safetensors")
