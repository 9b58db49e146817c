"""Length and learning rates of a configuration's training: `runner` and `lr_config`, or loops and `param_scheduler`."""

from typing import Any

from fourstage.weights.openmmlab.findings import Findings, rounded
from fourstage.weights.openmmlab.section import ConfigSection, Values, is_count

CURVES = {"step": "step", "CosineAnnealing": "cosine", "poly": "poly", "fixed": "constant"}  # mmcv's policies
ENGINE_CURVES = {"MultiStepLR": "step", "CosineAnnealingLR": "cosine", "PolyLR": "poly", "ConstantLR": "constant"}
WARM_UPS = ("LinearLR", "ConstantLR")


def length_of_mmcv(config: ConfigSection, passes: int) -> Values:
    """Return the length of a training, and the intervals of evaluations and checkpoints.

    Args:
        passes: over the data in what the configuration calls an epoch.
    """
    runner = config.section("runner")
    epochs = runner.get("max_epochs", config.get("total_epochs"))
    iterations = runner.get("max_iters", config.get("total_iters"))
    unit = "ep" if iterations is None else "it"
    values = {"optimisation": {"length": _length(config, "runner", iterations or epochs, unit, passes)}}
    checks, saves = config.section("evaluation"), config.section("checkpoint_config")
    return values | _intervals(checks, saves, unit, passes)


def length_of_mmengine(config: ConfigSection, findings: Findings, passes: int) -> Values:
    """Return the same from `train_cfg` and `default_hooks`."""
    loop = config.section("train_cfg")
    by_epoch = loop.get("by_epoch", loop.type_name != "IterBasedTrainLoop" and loop.get("max_iters") is None)
    unit = "ep" if by_epoch else "it"
    written = loop.get("max_epochs" if by_epoch else "max_iters")
    values: Values = {"optimisation": {"length": _length(config, "train_cfg", written, unit, passes)}}
    values["evaluate_every"] = f"{loop.integer('val_interval', 1) * (passes if by_epoch else 1)}{unit}"
    if loop.integer("val_begin", 1) > 1:
        findings.differs(loop, "val_begin")
    hooks = config.section("default_hooks")
    return values | _intervals(ConfigSection({}, "", ""), hooks.section("checkpoint"), unit, passes)


def _length(config: ConfigSection, where: str, written: object, unit: str, passes: int) -> str:
    if not is_count(written) or not written:
        raise ValueError(
            f"{config.source}: {where} must name max_epochs or max_iters, a whole number above 0; got {written!r:.60}"
        )
    return f"{int(written) * (passes if unit == 'ep' else 1)}{unit}"  # pyright: ignore[reportArgumentType]


def _intervals(checks: ConfigSection, saves: ConfigSection, unit: str, passes: int) -> Values:
    out: Values = {}
    for key, section, usual in (("evaluate_every", checks, unit == "ep"), ("checkpoint_every", saves, True)):
        by_epoch = section.flag("by_epoch", usual)
        if "interval" in section.values and (interval := section.integer("interval", 1)):
            out[key] = f"{interval * (passes if by_epoch else 1)}{'ep' if by_epoch else 'it'}"
    return out


def rates_of_mmcv(config: ConfigSection, findings: Findings, lr: float, passes: int) -> Values:
    """Return the schedule of `lr_config`, whose warm-up is a factor on the curve."""
    section = config.section("lr_config")
    policy = section.get("policy", "fixed")
    curve = next((ours for theirs, ours in CURVES.items() if theirs.lower() == str(policy).lower()), None)
    if curve is None:
        findings.differs(section, "policy", "constant here")
    by_epoch = section.flag("by_epoch", True)
    unit = "ep" if by_epoch else "it"
    out: Values = {"schedule": curve or "constant", "schedule_spans": "whole"}
    if curve in ("cosine", "poly"):
        out["min_lr"] = _least(section, "min_lr", lr)
        out |= {"schedule_every": f"{passes}ep"} if by_epoch else {}
    if curve == "poly":
        out["power"] = section.number("power", 1.0)
    if curve == "step":
        out |= _steps(section, findings, config, unit, passes)
    if (kind := section.get("warmup")) is None:
        return out
    if kind != "linear":
        findings.differs(section, "warmup", "linear here")
    by_epoch = section.flag("warmup_by_epoch", False)
    iterations = section.integer("warmup_iters", 0)
    out["warmup"] = f"{iterations * passes}ep" if by_epoch else f"{iterations}it"
    return out | {"warmup_lr": rounded(lr * section.fraction("warmup_ratio", 0.1))}


def _least(section: ConfigSection, name: str, lr: float) -> float:
    """Return the rate at the end of a curve, written as a rate or as a share of the peak."""
    if section.get(f"{name}_ratio") is not None:
        return rounded(lr * section.fraction(f"{name}_ratio", 0.0))
    return section.number(name, 0.0)


def _steps(section: ConfigSection, findings: Findings, config: ConfigSection, unit: str, passes: int) -> Values:
    """Return the milestones of mmcv's policy `step`: points, or the distance between them."""
    times = passes if unit == "ep" else 1
    if is_count(section.get("step")):
        every = max(1, section.integer("step", 1))
        name = "epochs" if unit == "ep" else "iters"
        last = config.section("runner").integer(f"max_{name}", config.integer(f"total_{name}", 0))
        points = tuple(range(every, min(last, every * 1000), every))
    else:
        points = section.integers("step")
    if section.get("min_lr") is not None:
        findings.differs(section, "min_lr", "no least rate here")
    return _milestones([f"{point * times}{unit}" for point in points], section.number("gamma", 0.1))


def _milestones(points: list[str], gamma: float) -> Values:
    return {"milestones": points, "gamma": gamma} if points else {"schedule": "constant"}


def rates_of_mmengine(config: ConfigSection, findings: Findings, lr: float, passes: int) -> Values:
    """Return the schedule of `param_scheduler`, whose warm-up ends with the peak and whose curve begins behind it."""
    found: Any = config.get("param_scheduler", [])
    if not isinstance(found, list | tuple):
        found = [found]
    several = [ConfigSection(one, f"param_scheduler.{i}", config.source) for i, one in enumerate(found)]
    warm_up = next((one for one in several if one.type_name in WARM_UPS and one.get("begin", 0) == 0), None)
    if len(several) == 1:
        warm_up = warm_up if warm_up is not None and warm_up.get("end") is not None else None
    curves = [one for one in several if one is not warm_up]
    for one in curves:  # a curve reaches to the end of the training
        for name in ("begin", "end"):
            one.get(name)
    out: Values = {"schedule": "constant", "schedule_spans": "whole"}
    if curves:
        out |= _curve(curves[0], findings, lr, passes)
    for more in curves[1:]:
        findings.differs(more, "type", "one curve here")
    if warm_up is None:
        return out
    return out | _warm_up(warm_up, findings, lr, passes) | _spans(warm_up, curves, findings, out["schedule"])


def _curve(section: ConfigSection, findings: Findings, lr: float, passes: int) -> Values:
    curve = ENGINE_CURVES.get(section.type_name)
    by_epoch = section.flag("by_epoch", True)
    unit, times = ("ep", passes) if by_epoch else ("it", 1)
    if curve == "step":
        points = [f"{point * times}{unit}" for point in section.integers("milestones")]
        return {"schedule": "step"} | _milestones(points, section.number("gamma", 0.1))
    if curve not in ("cosine", "poly"):
        findings.differs(section, "type", "constant here")
        return {}
    out: Values = {"schedule": curve, "min_lr": _least(section, "eta_min", lr)}
    if curve == "poly":
        out["power"] = section.number("power", 1.0)
    begin, end = section.integer("begin", 0), section.get("end")
    if curve == "cosine" and is_count(end) and section.integer("T_max", end - begin) != end - begin:
        findings.differs(section, "T_max", f"{end - begin} here")
    return out | ({"schedule_every": f"{times}ep"} if by_epoch and not section.get("convert_to_iter_based") else {})


def _warm_up(section: ConfigSection, findings: Findings, lr: float, passes: int) -> Values:
    by_epoch = section.flag("by_epoch", True)
    end = section.integer("end", 0)
    if section.type_name == "ConstantLR":
        findings.differs(section, "type", "linear here")
    start = section.fraction("start_factor", section.fraction("factor", 1 / 3))
    findings.expect(section, "end_factor", 1.0)
    return {"warmup": f"{end * passes}ep" if by_epoch else f"{end}it", "warmup_lr": rounded(lr * start)}


def _spans(warm_up: ConfigSection, curves: list[ConfigSection], findings: Findings, schedule: str) -> Values:
    """Return how the curve follows the warm-up: behind it, or multiplied with it."""
    begin = curves[0].integer("begin", 0) if curves else 0
    if schedule in ("step", "constant") or begin == warm_up.get("end"):
        return {"schedule_spans": "rest", "warmup_inclusive": True}
    if begin:
        findings.differs(curves[0], "begin", f"{warm_up.get('end')} here")
        return {"schedule_spans": "rest", "warmup_inclusive": True}
    return {"schedule_spans": "whole"}
