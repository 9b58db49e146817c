"""Optimiser, groups of parameters, precision and averages of a configuration's training."""

from collections.abc import Mapping
from typing import Any

from fourstage.weights.description import NetworkDescription
from fourstage.weights.openmmlab.findings import Findings
from fourstage.weights.openmmlab.section import ConfigSection, Values, is_number, mapping

OPTIMISERS = {"AdamW": "adamw", "SGD": "sgd", "Lamb": "lamb", "LAMB": "lamb"}
WEIGHT_DECAY = {"adamw": 0.01, "sgd": 0.0, "lamb": 0.0}  # where none is given
NORMS_IN_HEADS = {"dino": ["norm"], "sparse_rcnn": ["norm"]}  # our names of the norms there that the key "norm" meets
NORMS_OF_DYHEAD = ["coarser.norm", "same.norm", "finer.norm"]  # those of ATSS itself are called gn
LAYER_DECAY = ("LearningRateDecayOptimizerConstructor", "LayerDecayOptimizerConstructor")
# our names, by the beginning of a backbone's name; longer beginnings first
TABLES = {"swin_": "attn.table", "unified_swin_": "mixer.table"}  # relative_position_bias_table
POSITIONS = {"swin_visformer_": None, "swin_": "embed.position"}  # absolute_pos_embed, where the network has it
NAMELESS = {  # norms whose names lack "norm" in the sources
    "smt_": ["stem.1", "attn.norm"],
    "swin_visformer_": ["stem.1"],
    "unified_": ["stem", "embed.1"],
    "visformer_": ["stem.1"],
}
HALF = {"float16": "float16", "bfloat16": "bfloat16"}
EMA_HOOKS = ("EMAHook", "ExpMomentumEMAHook", "LinearMomentumEMAHook")
RUNNERS_IN_HALF = ("EpochBasedRunnerAmp", "IterBasedRunnerAmp")  # of Swin's forks, by Apex


def optimiser(config: ConfigSection, findings: Findings, network: NetworkDescription) -> Values:
    """Return the recipe's optimiser and its groups of parameters.

    Raises:
        ValueError: there is no optimiser, or a value is wrong.
    """
    wrapper = config.section("optim_wrapper")
    section = wrapper.section("optimizer") if mapping(wrapper.get("optimizer")) else config.section("optimizer")
    if not section.values:
        raise ValueError(f"{config.source} names no optimizer; give the complete configuration of a training")
    name = OPTIMISERS.get(section.type_name)
    if name is None:
        findings.differs(section, "type", "AdamW here")
    out: Values = {"optimizer": name or "adamw", "lr": section.number("lr", 1e-3)}
    out["weight_decay"] = section.number("weight_decay", WEIGHT_DECAY[out["optimizer"]])
    if out["optimizer"] == "sgd":
        out["momentum"] = section.fraction("momentum", 0.0)
        findings.expect(section, "nesterov", False)
    else:
        betas: Any = section.get("betas", (0.9, 0.999))
        if not isinstance(betas, list | tuple) or len(betas) != 2 or not all(map(is_number, betas)):
            raise section.error(f"has betas={betas!r:.60}, and two numbers are needed")
        out |= {"betas": list(betas), "eps": section.number("eps", 1e-8)}
    groups = section if mapping(section.get("paramwise_cfg")) or section.get("constructor") else wrapper
    out |= _groups(groups, findings, network)
    return out | _clipping(config, wrapper, findings)


def _clipping(config: ConfigSection, wrapper: ConfigSection, findings: Findings) -> Values:
    clip = wrapper.section("clip_grad")
    clip = clip if clip.values else config.section("optimizer_config").section("grad_clip")
    out: Values = {}
    if clip.get("max_norm") is not None:
        out["grad_clip"] = clip.number("max_norm", 0.0) or None
        findings.expect(clip, "norm_type", 2)
    elif clip.get("clip_value") is not None:
        findings.differs(clip, "clip_value", "no clipping here")
    count = accumulation(config)
    return out | ({"accumulation": count} if count > 1 else {})


def accumulation(config: ConfigSection) -> int:
    """Return the batches of an update, by the names of MMEngine, of MMCV, and of the hook of Swin's forks."""
    old = config.section("optimizer_config")
    of_forks = old.integer("update_interval", 1)
    return max(
        1, config.section("optim_wrapper").integer("accumulative_counts", old.integer("cumulative_iters", of_forks))
    )


def _groups(section: ConfigSection, findings: Findings, network: NetworkDescription) -> Values:
    """Return which parameters decay, and factors on their rates."""
    rules = section.section("paramwise_cfg")
    if section.get("constructor") in LAYER_DECAY:
        return _layer_decay(rules, findings, network.backbone)
    if section.get("constructor", "DefaultOptimizerConstructor") != "DefaultOptimizerConstructor":
        findings.differs(section, "constructor", "no groups here")
    out: Values = {"decay_norms_and_biases": True}
    norms, biases = rules.number("norm_decay_mult", 1.0), rules.number("bias_decay_mult", 1.0)
    if norms == biases == 0:
        out["decay_norms_and_biases"] = False
    elif norms == 0:
        out |= {"decay_backbone_norms": False, "no_decay": ["norm"]}
    else:
        findings.expect(rules, "norm_decay_mult", 1.0)
        findings.expect(rules, "bias_decay_mult", 1.0)
    for name in ("bias_lr_mult", "dwconv_decay_mult", "dcn_offset_lr_mult", "flat_decay_mult"):
        findings.expect(rules, name, 1.0)
    findings.expect(rules, "bypass_duplicate", False)
    keys = rules.section("custom_keys")
    for key in keys.values:
        _merge(out, _custom_key(keys, str(key), findings, network))
    if norms == 0:
        out.pop("decayed_norms", None)  # they are norms, whatever their names
    return out


def _merge(out: Values, more: Values) -> None:
    for name, value in more.items():
        if isinstance(value, list):
            out[name] = [*out.get(name, []), *(one for one in value if one not in out.get(name, []))]
        elif isinstance(value, dict):
            out[name] = {**out.get(name, {}), **value}
        else:
            out[name] = value


def _custom_key(keys: ConfigSection, key: str, findings: Findings, network: NetworkDescription) -> Values:
    """Return what `custom_keys[key]` means: the rule of every parameter whose name contains the key."""
    rule = keys.section(key)
    decay, rate = rule.number("decay_mult", 1.0), rule.number("lr_mult", 1.0)
    out: Values = {}
    if rate != 1.0:
        prefixes = _prefixes(key, network)
        if not prefixes:
            findings.differs(rule, "lr_mult", "factor 1 here")
        else:
            out["lr_multipliers"] = dict.fromkeys(prefixes, rate)
    if decay == 1.0:
        return out
    if decay != 0.0 or key not in ("norm", "absolute_pos_embed", "relative_position_bias_table", "backbone"):
        findings.differs(rule, "decay_mult", "factor 1 here")
        return out
    if key == "norm":
        dyhead = network.method == "atss" and network.method_args.get("dyhead")
        spared = NORMS_OF_DYHEAD if dyhead else NORMS_IN_HEADS.get(network.method or "", [])
        nameless = _of_backbone(NAMELESS, network.backbone)
        if network.method == "dino":
            findings.differs(rule, "decay_mult", "also for the norms of the neck, which MMDetection calls gn")
        out |= {"decay_backbone_norms": False} | ({"decayed_norms": nameless} if nameless else {})
        return out | ({"no_decay": spared} if spared else {})
    if key == "backbone":
        return out | {"no_decay": ["network.backbone"]}
    tables = TABLES if key == "relative_position_bias_table" else POSITIONS if network.backbone_args.get("ape") else {}
    found = _of_backbone(tables, network.backbone)
    return out | ({"no_decay": [found]} if found else {})


def _prefixes(key: str, network: NetworkDescription) -> list[str]:
    """Return the beginnings of our names of the parameters whose names contain a key; [] where they are not known."""
    if key == "backbone":
        return ["network.backbone"]
    if network.task != "segmentation" or key not in ("decode_head", "head"):
        return []
    has_auxiliary = network.method == "upernet" and network.method_args.get("auxiliary_weight") != 0
    return ["network.decoder", *(["network.auxiliary"] if key == "head" and has_auxiliary else [])]


def _of_backbone(by_prefix: Mapping[str, Any], backbone: str) -> Any:
    """Return the value of the first beginning that a backbone's name has; None: it has none of them."""
    return next((value for prefix, value in by_prefix.items() if backbone.startswith(prefix)), None)


def _layer_decay(rules: ConfigSection, findings: Findings, backbone: str) -> Values:
    """Return the decay of rates over layers. Vectors, biases and tables of positions then have no weight decay."""
    out: Values = {"decay_norms_and_biases": False}
    name = "decay_rate" if rules.get("decay_rate") is not None else "layer_decay_rate"
    out["layer_decay"] = rules.fraction(name, 1.0)
    if rules.get("decay_type", "layer_wise") != "layer_wise":
        findings.differs(rules, "decay_type", "layer_wise here")
    rules.get("num_layers")
    return out | ({"layer_groups": "convnext"} if backbone.startswith("unified_convnext") else {})


def precision(config: ConfigSection, findings: Findings) -> Values:
    """Return the precision of the computation and the first loss scale."""
    wrapper, half = config.section("optim_wrapper"), config.section("fp16")
    by_apex = config.section("runner").type_name in RUNNERS_IN_HALF or config.section("optimizer_config").get(
        "use_fp16"
    )
    if wrapper.type_name == "AmpOptimWrapper":
        name = str(wrapper.get("dtype", "float16"))
        if name not in HALF:
            findings.differs(wrapper, "dtype", "float16 here")
        return {"precision": HALF.get(name, "float16"), **_loss_scale(wrapper, "dynamic", findings)}
    if isinstance(config.get("fp16"), bool):
        return {"precision": "float16", "loss_scale": 512.0} if config.get("fp16") else {}
    if "fp16" in config.values and config.get("fp16") is not None:
        return {"precision": "float16", **_loss_scale(half, 512.0, findings)}
    return {"precision": "float16"} if by_apex else {}


def _loss_scale(section: ConfigSection, usual: Any, findings: Findings) -> Values:
    found: Any = section.get("loss_scale", usual)
    if found == "dynamic":
        return {}
    if is_number(found):
        if section.get("loss_scale") is not None:
            findings.differs(section, "loss_scale", "the first of a dynamic scale here")
        return {"loss_scale": found}
    own = section.section("loss_scale")
    return {"loss_scale": own.number("init_scale", 65536.0)}


def average(config: ConfigSection, findings: Findings) -> Values:
    """Return the decay of an average of the weights, from a hook."""
    hooks: Any = config.get("custom_hooks", [])
    listed = hooks if isinstance(hooks, list | tuple) else [hooks]
    for i, one in enumerate(listed):
        hook = ConfigSection(one, f"custom_hooks.{i}", config.source)
        if hook.type_name not in EMA_HOOKS:
            continue
        kind = str(hook.get("ema_type", "ExponentialMovingAverage"))
        if hook.type_name != "EMAHook" or kind != "ExponentialMovingAverage":
            findings.differs(hook, "ema_type" if hook.get("ema_type") else "type", "a constant momentum here")
        momentum = hook.fraction("momentum", 0.0002)
        return {"ema": 1 - momentum} if 0 < momentum < 1 else {}
    return {}
