"""The list of published weights: complete, consistent, and with the numbers that the sources publish."""

import inspect
from collections import Counter

import pytest

import fourstage
from fourstage import registry
from fourstage.weights import catalog
from fourstage.weights.catalog import NOT_STATED, WEIGHTS

SIZES = ("micro", "tiny", "small", "base")
NETWORKS = {
    *(f"smt_{size}" for size in ("tiny", "small", "base", "large")),
    *(f"scalable_vit_{size}" for size in ("small", "base", "large")),
    *(f"unified_{mixer}_{size}" for mixer in ("halo", "pvt", "swin", "convnext", "dcn_v3") for size in SIZES),
    *(f"swin_{size}" for size in ("tiny", "small", "base", "large")),
    *(f"swin_{size}_patch4_window12_384" for size in ("base", "large")),
    *(f"visformer_{size}" for size in ("tiny", "small")),
    *(f"swin_visformer_{size}" for size in ("tiny_v2", "small_v2", "medium_v2", "small")),
}
IMAGENET = {  # as published: network, pixels -> top-1
    ("smt_tiny", 224): 82.2,
    ("smt_small", 224): 83.7,
    ("smt_base", 224): 84.3,
    ("smt_large", 224): 87.1,
    ("smt_large", 384): 88.1,
    ("scalable_vit_small", 224): 83.1,
    ("scalable_vit_base", 224): 84.1,
    ("scalable_vit_large", 224): 84.4,
    **{(f"unified_halo_{size}", 224): top1 for size, top1 in zip(SIZES, (75.8, 83.0, 84.0, 84.6), strict=True)},
    **{(f"unified_pvt_{size}", 224): top1 for size, top1 in zip(SIZES, (72.8, 82.1, 83.2, 83.4), strict=True)},
    **{(f"unified_swin_{size}", 224): top1 for size, top1 in zip(SIZES, (74.4, 82.3, 83.3, 83.7), strict=True)},
    **{(f"unified_convnext_{size}", 224): top1 for size, top1 in zip(SIZES, (75.1, 82.2, 83.1, 83.7), strict=True)},
    **{(f"unified_dcn_v3_{size}", 224): top1 for size, top1 in zip(SIZES, (75.3, 83.3, 84.1, 84.5), strict=True)},
    ("swin_tiny", 224): 81.2,
    ("swin_small", 224): 83.2,
    ("swin_base", 224): 83.5,
    ("swin_base_patch4_window12_384", 384): 84.5,
    ("visformer_tiny", 224): 78.6,
    ("visformer_small", 224): 82.2,
    ("swin_visformer_tiny_v2", 224): 79.6,
    ("swin_visformer_small_v2", 224): 83.0,
    ("swin_visformer_medium_v2", 224): 83.6,
    ("swin_visformer_small", 224): 82.34,
}


def test_names_files_and_addresses_are_unique() -> None:
    for values in (
        [weight.name for weight in WEIGHTS],
        [weight.file for weight in WEIGHTS if weight.file],
        [weight.address for weight in WEIGHTS if weight.address],
    ):
        assert [value for value, count in Counter(values).items() if count > 1] == []
    assert {weight.model for weight in WEIGHTS} == NETWORKS


@pytest.mark.parametrize("weight", WEIGHTS, ids=lambda weight: weight.name)
def test_a_row_is_consistent(weight: catalog.Weight) -> None:
    assert weight.page.startswith("https://")
    assert weight.origin.startswith("https://github.com/")
    if weight.address is not None:
        assert weight.address.startswith("https://")
        assert weight.file == weight.address.rpartition("/")[2]
    assert weight.licence == ("MIT" if weight.origin == catalog.SWIN else NOT_STATED)
    assert all(20 < value < 100 for value in weight.metrics.values())
    assert weight.img_size == (384 if "384" in weight.name else 224)
    assert weight.num_classes == {"in22k": 21841, "coco": 80, "ade20k": 150}.get(weight.data, 1000)
    metrics = {
        "in1k": ({"top1"}, {"top1", "top5"}),
        "in22k_in1k": ({"top1", "top5"},),
        "in22k": (set(),),
        "coco": ({"box_map"} if weight.method == "dino" else {"box_map", "mask_map"},),
        "ade20k": ({"miou_ss"},),
    }[weight.data]
    assert set(weight.metrics) in metrics
    assert weight.tag.startswith(weight.method or weight.data.replace("in22k_in1k", "in22k_ft_in1k"))
    assert (weight.method is not None) == (weight.data in {"coco", "ade20k"})


def test_accuracies_are_the_published_ones() -> None:
    found = {
        (x.model, x.img_size): x.top1 for x in reversed(WEIGHTS) if x.top1 is not None
    }  # a network's first row wins
    assert found.items() >= IMAGENET.items()
    detectors = [weight for weight in WEIGHTS if weight.origin == catalog.STM and weight.method]
    assert len(detectors) == 20
    published = sorted(weight.metrics["box_map"] for weight in WEIGHTS if weight.origin == catalog.DETREX)
    assert published == [51.3, 52.5, 53.0, 54.5, 55.8, 56.9, 56.9, 57.5, 58.1, 58.5]
    assert catalog.find("unified_dcn_v3_small", "mask_rcnn_coco_1x").metrics == {"box_map": 47.8, "mask_map": 43.0}


def test_every_network_is_built_by_what_its_row_says() -> None:
    known = set(fourstage.list_models())
    for weight in WEIGHTS:
        if weight.model in known:
            entry = registry.find(weight.model)
            assert entry.name == weight.model  # no alias
            build = entry.dense if weight.method else entry.classifier
            assert weight.network.keys() <= inspect.signature(build).parameters.keys(), weight.name


def test_the_first_row_of_a_network_is_what_its_bare_name_means() -> None:
    assert catalog.find("swin_base").tag == "in1k"
    assert catalog.find("smt_large").tag == "in22k_ft_in1k"
    assert catalog.find("smt_large", "in22k").network == {"img_size": 224, "num_classes": 21841}
    assert catalog.find("swin_visformer_small_v2").network["qk_scale_factor"] == -0.5
    assert all(catalog.find(name).method is None and catalog.find(name).top1 for name in NETWORKS)
    assert catalog.split("smt_large.in22k") == ("smt_large", "in22k")
    assert catalog.split("smt_large") == ("smt_large", None)


def test_a_file_is_recognised_by_its_hash_or_its_name() -> None:
    assert catalog.recognise("swin_tiny", "swin_tiny_patch4_window7_224.pth", "00") is catalog.find("swin_tiny")
    assert catalog.recognise("swin_small", "swin_tiny_patch4_window7_224.pth", "00") is None
    detector = catalog.find("swin_tiny", "mask_rcnn_coco_1x")
    assert detector.file is not None
    assert catalog.recognise("swin_tiny", "renamed.pth", f"{detector.sha256}0123") is detector
    assert catalog.recognise("swin_tiny", detector.file, "0123") is None  # its hash is known, and this is another


def test_sentences_say_what_to_type() -> None:
    file = "checkpoint_path='scalable_vit_small.pth'"
    page = "https://drive.google.com/file/d/1gCWsATBJmW3xwJaoCcxGO1Wbg51cPtzk/view"
    assert catalog.no_address(catalog.find("scalable_vit_small")) == (
        f"no program can download scalable_vit_small.in1k: download it in a browser from {page}, then type "
        f"create_model('scalable_vit_small.in1k', {file})"
    )
    sentence = catalog.no_address(catalog.find("swin_visformer_tiny_v2"), "create_backbone")
    assert sentence.endswith(
        "create_backbone('swin_visformer_tiny_v2.in1k', checkpoint_path='swin_visformer_tiny_v2.pth')"
    )
    with pytest.raises(ValueError, match="no weights of visformer_net4 are published; build it with pretrained=Fal"):
        catalog.find("visformer_net4")
    with pytest.raises(ValueError, match=r"no published weights called .in22.; did you mean smt_large\.in22k"):
        catalog.find("smt_large", "in22")
