"""Laws that hold for every family, at a tiny width. A family joins by its entry in `forms.py`."""

from collections.abc import Sequence

import pytest
import torch
from forms import CLASSIFIERS, DENSE, FORMS, build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourstage.backbones.base import Classifier, Dense

every_form = pytest.mark.parametrize("form", FORMS)
every_family = pytest.mark.parametrize("name", CLASSIFIERS)
side, seeds = st.integers(32, 90), st.integers(0, 2**31)
# ends of names of parameters that a family spares from weight decay
UNDECAYED = {
    "swin": ("attn.table",),
    "unified_swin": ("mixer.table",),
    "official_swin": ("mixer.table",),
    "scalablevit": (".peg.kernel", ".peg.shift"),
}


def outputs(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


@every_form
@given(height=side, width=side)
@settings(max_examples=12, deadline=None)
def test_any_size_gives_the_maps_that_levels_promise(form: str, height: int, width: int) -> None:
    model = build(form)
    with torch.inference_mode():
        image_BCHW = torch.randn(2, 3, height, width)
        maps = model.forward_maps(image_BCHW) if isinstance(model, Classifier) else model(image_BCHW)
        out = outputs(model(image_BCHW))
    cells = model.family.cells
    expected = [(2, x.channels, cells(height, x.stride), cells(width, x.stride)) for x in model.levels]
    assert [tuple(x.shape) for x in maps] == expected
    assert all(x.isfinite().all() for x in (*maps, *out))


@every_form
@given(height=side, width=side, seed=seeds)
@settings(max_examples=8, deadline=None)
def test_images_of_a_batch_do_not_see_each_other(form: str, height: int, width: int, seed: int) -> None:
    model = build(form, seed)
    image_BCHW = torch.randn(3, 3, height, width)
    with torch.inference_mode():
        together = outputs(model(image_BCHW))
        alone = [outputs(model(x)) for x in image_BCHW.split(1)]
    for i, out in enumerate(together):
        torch.testing.assert_close(out, torch.cat([x[i] for x in alone]), rtol=1e-4, atol=1e-4 * float(out.std()))


@every_form
@given(height=side, width=side)
@settings(max_examples=3, deadline=None)
def test_gradients_reach_every_parameter(form: str, height: int, width: int) -> None:
    model = build(form).train()
    out = outputs(model(torch.randn(2, 3, max(height, 64), max(width, 64))))
    torch.stack([(x * torch.randn_like(x)).sum() for x in out]).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    # a window of one cell attends to itself whatever the queries say
    still = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert all(name.endswith(("attn.table", "qkv.bias")) for name in still), still


@every_form
def test_a_state_dict_brings_the_numbers_back(form: str) -> None:
    first, second = build(form, seed=1), build(form, seed=2)
    image_BCHW = torch.randn(1, 3, 45, 70)
    second.load_state_dict(first.state_dict())
    with torch.inference_mode():
        for a, b in zip(outputs(first(image_BCHW)), outputs(second(image_BCHW)), strict=True):
            assert torch.equal(a, b)


def test_checkpointing_counts_the_statistics_of_synchronised_norms_once() -> None:
    results = []
    for enable in (False, True):
        model = nn.SyncBatchNorm.convert_sync_batchnorm(build("visformer-classifier", seed=3)).train()
        assert isinstance(model, Classifier)
        model.set_grad_checkpointing(enable)
        torch.manual_seed(4)
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        results.append(dict(model.named_buffers()))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


@every_form
def test_checkpointing_changes_nothing(form: str) -> None:
    results = []
    for enable in (False, True):
        model = build(form, seed=3, drop_path_rate=0.5).train()
        model.set_grad_checkpointing(enable)
        torch.manual_seed(4)
        out = outputs(model(torch.randn(2, 3, 64, 64)))
        loss = torch.stack([x.square().sum() for x in out]).sum()
        loss.backward(retain_graph=True)
        loss.backward()  # computes the blocks once more
        results.append({**model.state_dict(), **{f"grad {n}": p.grad for n, p in model.named_parameters()}})
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert value is not None
        assert torch.equal(value, results[1][key]), key


@every_form
def test_drop_path_costs_nothing_in_evaluation_and_drops_whole_samples_in_training(form: str) -> None:
    plain, dropping = build(form, seed=5), build(form, seed=5, drop_path_rate=0.9)
    dropping.load_state_dict(plain.state_dict())
    image_BCHW = torch.randn(1, 3, 64, 64).expand(8, -1, -1, -1)
    with torch.inference_mode():
        for a, b in zip(outputs(plain(image_BCHW)), outputs(dropping(image_BCHW)), strict=True):
            assert torch.equal(a, b)
        for module in dropping.modules():
            module.training = not isinstance(module, nn.BatchNorm2d)
        last = outputs(dropping(image_BCHW))[-1]
    assert len({round(float(x[0].sum() / last.std()), 3) for x in last}) > 1  # equal images, different branches dropped


@every_form
def test_in_chans_and_autocast(form: str) -> None:
    model = build(form)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        out = outputs(model(torch.randn(1, 3, 50, 61)))
    assert all(x.isfinite().all() for x in out)


@every_family
def test_the_head_can_be_reset(name: str) -> None:
    model = CLASSIFIERS[name]().eval()
    image_BCHW = torch.randn(2, 3, 64, 64)
    features = model.forward_features(image_BCHW)
    assert features.shape[:2] == (2, model.num_features)
    assert model.get_classifier().out_features == model.num_classes == 10
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(pooled, model.pre_logits(features.mean(dim=(2, 3))))
    assert torch.equal(model.get_classifier()(pooled), model(image_BCHW))
    model.reset_classifier(7)
    assert model(image_BCHW).shape == (2, 7)
    model.reset_classifier(0)
    assert torch.equal(model(image_BCHW), model.forward_head(features, pre_logits=True))
    with pytest.raises(ValueError, match="num_classes must be an integer of at least"):
        model.reset_classifier(-1)


@every_family
def test_out_indices_choose_maps_and_leave_nothing_untrained(name: str) -> None:
    every = DENSE[name]().eval()
    some: Dense = DENSE[name](out_indices=(0, 1)).eval()
    some.load_state_dict({key: every.state_dict()[key] for key in some.state_dict()})
    assert some.levels == every.levels[:2]
    where = "norms" if some.norms else "stages"
    assert [row["module"] for row in some.feature_info] == [f"{where}.0", f"{where}.1"]
    image_BCHW = torch.randn(1, 3, 64, 64)
    for a, b in zip(some(image_BCHW), every(image_BCHW), strict=False):
        assert torch.equal(a, b)
    assert len(some.stages) == 2
    with pytest.raises(ValueError, match="out_indices"):
        DENSE[name](out_indices=(0, 0))


@every_family
def test_no_weight_decay_and_layers_name_real_parameters(name: str) -> None:
    from timm.models import group_parameters

    model = CLASSIFIERS[name]()
    assert model.no_weight_decay() == {n for n, _ in model.named_parameters() if n.endswith(UNDECAYED.get(name, ()))}
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse))
        assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in model.named_parameters())
        assert len(groups) >= (len(model.stages) if coarse else sum(len(stage.blocks) for stage in model.stages))


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 3, 16, 64), "images of 16 x 64 pixels are below the smallest size"),
        ((1, 1, 64, 64), "the images have 1 channels and the network takes 3"),
        ((3, 64, 64), "for one image use image.unsqueeze"),
    ],
)
@every_form
def test_an_image_that_does_not_fit_is_answered_with_a_sentence(form: str, shape: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(form)(torch.zeros(shape))
