"""The words that other tools have for the keys of a recipe and for options, each with what is written here.

The words are those of timm's training script, Ultralytics, OpenMMLab, DeiT and Hugging Face's Trainer. `{}` stands for
the given value. Of several ways to write a row, the first that the recipe's task or the command has is taken; one that
begins with the name of a task is for that task alone.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none", "null")
NUMBER = r"\d+(\.\d+)?"
LENGTH = re.compile(r"[0-9.]+(ep|it)")


@dataclass(frozen=True)
class Row:
    """What to write for words of other tools.

    Attributes:
        words: in lower case, with underscores.
        write: ways to write it: `key={}`, or `--option {}`.
        yes, no: what to write for a switch that is turned on or off.
        note: what the reader must know beside that.
        advice: what to do instead, where there is nothing to write.
    """

    words: str
    write: tuple[str, ...] = ()
    yes: str = ""
    no: str = ""
    note: str = ""
    advice: str = ""


ALL_DEVICES = "which is the number over all devices together"
OTHER_NAMES = (
    # length and rhythm
    Row(
        "epochs epoch num_epochs max_epochs n_epochs nb_epochs total_epochs num_train_epochs max_epoch train_epochs",
        ("optimisation.length={}ep",),
    ),
    Row(
        "iterations iters num_iters max_iters max_iter total_iters steps max_steps num_steps total_steps "
        "num_train_steps",
        ("optimisation.length={}it",),
    ),
    Row("warmup_epochs warm_up_epochs warmup_epoch", ("optimisation.warmup={}ep",)),
    Row(
        "warmup_iters warmup_iterations warmup_steps warmup_iter num_warmup_steps warmup_t",
        ("optimisation.warmup={}it",),
    ),
    Row("eval_interval val_interval eval_freq val_freq eval_every val_every", ("evaluate_every={}ep",)),
    Row("eval_steps eval_iters", ("evaluate_every={}it",)),
    Row("save_freq save_interval save_period save_every checkpoint_interval ckpt_interval", ("checkpoint_every={}ep",)),
    Row("save_steps", ("checkpoint_every={}it",)),
    Row("log_interval print_freq logging_steps log_freq print_every", ("log_every={}",)),
    # optimiser
    Row("learning_rate base_lr lr0 init_lr initial_lr max_lr peak_lr blr learn_rate", ("optimisation.lr={}",)),
    Row("lrf final_lr eta_min lr_min cooldown_lr", ("optimisation.min_lr={}",), note="a rate, not a factor on lr"),
    Row("warmup_lr_init warmup_init_lr warmup_start_lr", ("optimisation.warmup_lr={}",)),
    Row("opt optim optimiser optimizer_type opt_name", ("optimisation.optimizer={}",)),
    Row("wd opt_wd decay_weight", ("optimisation.weight_decay={}",)),
    Row("opt_betas adam_betas", ("optimisation.betas={}",)),
    Row("opt_eps adam_epsilon adam_eps epsilon", ("optimisation.eps={}",)),
    Row(
        "sched scheduler lr_scheduler lr_schedule lr_scheduler_type lr_policy lr_config", ("optimisation.schedule={}",)
    ),
    Row("cos_lr cosine", yes="optimisation.schedule=cosine", no="optimisation.schedule=linear"),
    Row("decay_rate lr_decay lr_gamma lr_factor", ("optimisation.gamma={}",)),
    Row("decay_milestones lr_steps lr_milestones", ("optimisation.milestones={}",), note="a list such as [8ep, 11ep]"),
    Row(
        "clip_grad clip_grad_norm max_grad_norm max_norm gradient_clip gradient_clip_val grad_norm clip_norm",
        ("optimisation.grad_clip={}",),
    ),
    Row("llrd layer_decay_rate layerwise_decay", ("optimisation.layer_decay={}",)),
    # batches and loading
    Row(
        "batch bs b batchsize batch_size_per_gpu samples_per_gpu imgs_per_gpu images_per_gpu ims_per_batch "
        "per_device_train_batch_size train_batch_size total_batch_size",
        ("--batch-size {}", "optimisation.batch_size={}"),
        note=ALL_DEVICES,
    ),
    Row("eval_batch_size val_batch_size validation_batch_size test_batch_size vb", ("evaluation_batch_size={}",)),
    Row(
        "accumulate accum accum_iter accum_steps grad_accum grad_accum_steps gradient_accumulation "
        "gradient_accumulation_steps update_freq",
        ("optimisation.accumulation={}",),
    ),
    Row("num_workers j workers_per_gpu n_workers data_workers dataloader_num_workers num_proc", ("workers={}",)),
    # network and weights
    Row("model arch architecture backbone network net model_name backbone_name encoder", ("model={}", "backbone={}")),
    Row("detector segmentor head decoder method_name", ("method={}",)),
    Row("num_class n_classes nclasses nb_classes classes nc num_labels", ("num_classes={}",)),
    Row(
        "pretrained pretrain pretraining use_pretrained",
        ("weights={}",),
        yes="weights=pretrained",
        no="weights=null",
    ),
    Row(
        "checkpoint ckpt checkpoint_path ckpt_path load_from load initial_checkpoint init_checkpoint finetune "
        "finetune_from pretrained_weights pretrained_path pretrained_model weight init_from start_from",
        ("--weights {}", "weights={}"),
    ),
    Row(
        "drop_path drop_path_rate stochastic_depth droppath",
        ("model_args.drop_path_rate={}", "backbone_args.drop_path_rate={}"),
    ),
    Row("drop dropout drop_rate", ("model_args.drop_rate={}", "backbone_args.drop_rate={}")),
    Row("model_kwargs model_arguments", ("model_args={}", "backbone_args={}")),
    Row("freeze freeze_layers frozen freeze_at freeze_stages frozen_layers", ("frozen_stages={}",)),
    Row("model_ema_decay ema_decay ema_momentum", ("ema={}",)),
    Row("model_ema use_ema", yes="ema=0.9999", no="ema=null"),
    # images
    Row(
        "imgsz img_size input_size resolution imsize size train_size image_res im_size train_crop_size",
        ("--img-size {}", "image_size={}", "segmentation: augmentation.crop=[{},{}]", "augmentation.scale=[{},{}]"),
        advice="the size is that of the recipe that the checkpoint was trained with",
    ),
    Row("img_scale image_scale", ("augmentation.scale={}",)),
    Row("crop_size", ("augmentation.crop=[{},{}]", "image_size={}")),
    Row("crop_ratio crop_percent", ("evaluation.crop_pct={}",)),
    Row("train_interpolation resample", ("interpolation={}",)),
    Row("label_smoothing ls lb_smooth", ("augmentation.smoothing={}",)),
    Row("aa autoaugment rand_augment randaugment randaug auto_aug", ("augmentation.auto_augment={}",)),
    Row("random_erasing erasing random_erase re_prob random_erase_prob", ("augmentation.reprob={}",)),
    Row("flip fliplr random_flip horizontal_flip flip_prob flip_ratio flip_lr", ("augmentation.hflip={}",)),
    Row("jitter_color colour_jitter cj color_aug", ("augmentation.color_jitter={}",)),
    Row("mixup_alpha mix_up", ("augmentation.mixup={}",)),
    Row("cutmix_alpha cut_mix", ("augmentation.cutmix={}",)),
    Row("repeated_aug ra aug_repeats", ("augmentation.repeats={}",), yes="augmentation.repeats=3"),
    Row("img_norm_mean pixel_mean image_mean", ("mean={}",)),
    Row("img_norm_std pixel_std image_std", ("std={}",)),
    # computation
    Row("random_seed manual_seed random_state rng_seed", ("seed={}",)),
    Row("cuda use_cuda", yes="device=cuda", no="device=cpu"),
    Row("cpu no_cuda use_cpu", yes="device=cpu"),
    Row(
        "amp fp16 half use_amp use_fp16 mixed_precision autocast native_amp amp_dtype",
        ("--dtype {}", "--precision {}", "precision={}"),
        yes="precision=float16",
        no="precision=float32",
    ),
    Row("bf16 bfloat16 use_bf16", yes="precision=bfloat16", no="precision=float32"),
    Row("torchcompile torch_compile compiled", ("compile={}",), yes="compile=true", no="compile=false"),
    Row("sync_bn syncbn sync_batch_norm", ("sync_batchnorm={}",), yes="sync_batchnorm=true", no="sync_batchnorm=false"),
    Row(
        "gradient_checkpointing checkpointing use_checkpoint with_cp activation_checkpointing",
        ("grad_checkpointing={}",),
        yes="grad_checkpointing=true",
        no="grad_checkpointing=false",
    ),
    Row("fsdp use_fsdp", yes="parallel=fsdp", no="parallel=ddp"),
    Row("wandb log_wandb use_wandb report_to", ("tracker={}",), yes="tracker=wandb", no="tracker=none"),
    Row(
        "gpus num_gpus n_gpus ngpus nproc nproc_per_node world_size num_devices",
        advice="start one process for each GPU with `torchrun --nproc-per-node=N -m fourstage train ...`",
    ),
    # files and folders
    Row(
        "data_dir data_path data_root dataroot datadir dataset dataset_path dataset_dir train_data train_dir root",
        ("--data {}", "data={}"),
    ),
    Row(
        "output output_dir out_dir outdir work_dir workdir save_dir save_path logdir log_dir run_dir experiment "
        "exp_dir save project o",
        ("--out {}",),
    ),
    Row("input source images image img file folder path", advice="write the value alone, without a name before it"),
    Row("config cfg c recipe_file config_file", advice="write the recipe as the first word after the command"),
    # scores and results
    Row(
        "conf conf_thres conf_thresh confidence confidence_threshold score_thr score_thres score_thresh "
        "pred_score_thr min_score",
        ("--threshold {}",),
        advice="scores count detections of any score; `fourstage predict RUN IMAGE --threshold` draws fewer",
    ),
    Row("topk top_k", advice="the five most probable classes of each image are printed"),
    Row("save_txt save_img save_vid save_pred show", advice="pictures and results are always written, into --out"),
    Row(
        "tta test_time_augmentation multi_scale ms_flip flip_test",
        advice="miou_ms_flip of a segmentor is the score over several scales and mirrored images, and `evaluate` "
        "always has it; classifiers and detectors are scored on each image once",
    ),
    Row("split eval_split", advice="the validation split of --data is scored"),
    # other commands and behaviour
    Row(
        "resume auto_resume resume_from continue resume_path continue_from resume_from_checkpoint",
        advice="run the same command again: it continues a stopped run by itself",
    ),
    Row(
        "patience early_stopping early_stop early_stopping_patience",
        advice="there is no early stopping; checkpoints/best.pt has the best evaluation of the run",
    ),
    Row("overwrite exist_ok restart from_scratch", ("--fresh",), yes="--fresh"),
    Row("eval evaluate eval_only test test_only validate val only_eval", advice="use `fourstage evaluate RUN`"),
    Row("dryrun dry check_only", ("--dry-run",), yes="--dry-run"),
    Row("results_file save_json out_json", ("--results {}",)),
    Row("per_class class_table", ("--csv {}",)),
    Row("use_ema_weights ema", ("--which ema",), yes="--which ema"),
)


def row_of(word: str) -> Row | None:
    """Return the row of a word, if another tool has it."""
    return _ROWS.get(word.lower().replace("-", "_"))


def all_words() -> Iterator[str]:
    """Yield every word of the table."""
    yield from _ROWS


def ways(row: Row, value: str) -> list[str]:
    """Return what may be written for a word of the row with a value, which may be empty: as for --pretrained alone."""
    plain = value.strip("'\"").lower()
    if row.yes and (not plain or plain in YES):
        return _both_forms(row.yes)
    if row.no and plain in NO:
        return _both_forms(row.no)
    return [_filled(way, value) for way in row.write] or [way for way in (row.yes, row.no) if way]


def _both_forms(way: str) -> list[str]:
    """Return a way to write a switch, and for a key also the option of that name, which some commands have instead."""
    return [way] if way.startswith("--") else [way, "--" + way.replace("=", " ")]


def _filled(way: str, value: str) -> str:
    """Return a way to write a row with the value, or with N or VALUE where the value does not fit."""
    counted = re.search(r"\{\}(ep|it)$", way)
    if counted and LENGTH.fullmatch(value):
        return way.replace("{}" + counted[1], value)
    if (counted or "[{},{}]" in way) and not re.fullmatch(NUMBER, value):
        return way.replace("[{},{}]", value) if value.startswith("[") else way.replace("{}", "N")
    return way.replace("{}", value or "VALUE")


def first_usable(row: Row, value: str, usable: Callable[[str, str], bool]) -> str | None:
    """Return the first way to write a row that is usable; None if there is none.

    Args:
        usable: a function of a key or option, and of the only task that the way is for; empty: it is for every task.
    """
    for way in ways(row, value):
        task = next(iter(re.findall(r"^([a-z]+): ", way)), "")
        plain = way.removeprefix(f"{task}: ")
        if usable(re.split(r"[= ]", plain)[0], task):
            return plain
    return None


_ROWS = {word: row for row in OTHER_NAMES for word in row.words.split()}
