"""The sources' leaf configurations by the name of the recipe that has their values, in words of our own."""

from weights.openmmlab.config_files import DINO, ENGINE_SWIN, FOUR_CONV_HEADS, bases

MS_PIPELINE = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
scales = [(s, 1333) for s in range(480, 801, 32)]
# augmentation strategy originates from DETR / Sparse RCNN
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(
        type='AutoAugment',
        policies=[[
            dict(type='Resize', img_scale=scales, multiscale_mode='value', keep_ratio=True)
        ], [
            dict(
                type='Resize',
                img_scale=[(400, 1333), (500, 1333), (600, 1333)],
                multiscale_mode='value',
                keep_ratio=True),
            dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
            dict(type='Resize', img_scale=scales, multiscale_mode='value', override=True, keep_ratio=True)
        ]]),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks']),
]
data = dict(train=dict(pipeline=train_pipeline))
"""
NORM = "'norm': dict(decay_mult=0.)"
THREE = f"'absolute_pos_embed': dict(decay_mult=0.), 'relative_position_bias_table': dict(decay_mult=0.), {NORM}"
AMP = """
fp16 = None
optimizer_config = dict(
    type='DistOptimizerHook', update_interval=1, grad_clip=None, coalesce=True, bucket_size_mb=-1, use_fp16=True)
"""
DET = ("coco_instance", "schedule_1x", "default_runtime")
BOXES = ("coco_detection", "schedule_1x", "default_runtime")
SMT_BASE = "depths=[4, 6, 28, 2], head_conv=7, drop_path_rate=0.3"


def adamw(lr: str, decay: str = "0.05", keys: str = "", delete: bool = True, betas: str = "(0.9, 0.999)") -> str:
    groups = f", paramwise_cfg=dict(custom_keys={{{keys}}})" if keys else ""
    mark = "_delete_=True, " if delete else ""
    return f"optimizer = dict({mark}type='AdamW', lr={lr}, betas={betas}, weight_decay={decay}{groups})\n"


def schedule_3x(runner: str = "EpochBasedRunner") -> str:
    return f"lr_config = dict(step=[27, 33])\nrunner = dict(type='{runner}', max_epochs=36)\n"


def smt(detector: str, data: tuple[str, ...], model: str, rest: str, *, ms: bool = True) -> str:
    long = MS_PIPELINE + schedule_3x() if ms else ""
    return bases(f"{detector}_smt_s_fpn", *data) + model + long + rest


def stm(kind: str, dims: str, depths: str, drop: float) -> str:
    """STM-Evaluation's Mask R-CNN over one of its networks."""
    return (
        bases("mask_rcnn_swin_fpn", *DET)
        + f"""dims = {dims}
model = dict(
    backbone=dict(_delete_=True, type='{kind}', dims=dims, depths={depths}, drop_path_rate={drop}),
    neck=dict(in_channels=dims))
lr_config = dict(warmup_iters=1000)
"""
        + adamw("0.0001", keys=THREE)
    )


def swin_fork(detector: str, size: str, drop: float, *, epochs: int, ms: bool = True) -> str:
    """Microsoft's and Visformer's detection forks, with Apex."""
    sizes = {
        "tiny": "depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]",
        "small": "depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24]",
        "base": "embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]",
    }
    backbone = f"backbone=dict({sizes[size]}, window_size=7, ape=False, drop_path_rate={drop}, use_checkpoint=False)"
    return bases(f"{detector}_swin_fpn", *DET) + _fork(detector, backbone, epochs, ms)


def visformer_fork(detector: str, version: int, drop: float, *, epochs: int, ms: bool) -> str:
    sizes = {
        1: "embed_dim=384, depth=[0, 7, 4, 4], num_heads=[6, 6, 6, 6]",
        2: "embed_dim=256, depth=[1, 10, 14, 3], num_heads=[2, 4, 8, 16]",
    }
    backbone = (
        f"backbone=dict(_delete_=True, type='SwinVisformer', {sizes[version]}, qk_scale=-0.5, drop_path_rate={drop})"
    )
    return bases(f"{detector}_swin_fpn", *DET) + _fork(detector, backbone, epochs, ms)


def _fork(detector: str, backbone: str, epochs: int, ms: bool) -> str:
    heads = f", roi_head=dict(bbox_head=[{FOUR_CONV_HEADS}])" if detector.startswith("cascade") else ""
    steps = "[8, 11]" if epochs == 12 else "[27, 33]"
    return (
        f"model = dict({backbone}{heads})\n"
        + (MS_PIPELINE if ms else "")
        + adamw("0.0001", keys=THREE)
        + f"lr_config = dict(step={steps})\nrunner = dict(type='EpochBasedRunnerAmp', max_epochs={epochs})\n"
        + AMP
    )


def mim_swin(*, long: bool, half: bool) -> str:
    return (
        bases("mask_rcnn_swin_fpn", *DET)
        + "model = dict(backbone=dict(drop_path_rate=0.2))\n"
        + ("lr_config = dict(warmup_iters=1000)\n" if not long else "")
        + (MS_PIPELINE + schedule_3x().replace("(step", "(warmup_iters=1000, step") if long else "")
        + adamw("0.0001", keys=THREE)
        + ("fp16 = dict(loss_scale=dict(init_scale=512))\n" if half else "")
    )


def upernet(base: str, backbone: str, keys: str = "") -> str:
    """The 160,000 steps of Swin and SMT on ADE20K."""
    return (
        bases(base, "ade20k", "seg_runtime", "schedule_160k")
        + f"model = dict({backbone}decode_head=dict(num_classes=150), auxiliary_head=dict(num_classes=150))\n"
        + adamw("0.00006", "0.01", keys)
        + """lr_config = dict(
    _delete_=True, policy='poly', warmup='linear', warmup_iters=1500, warmup_ratio=1e-6, power=1.0, min_lr=0.0,
    by_epoch=False)
data = dict(samples_per_gpu=2)
"""
    )


def scalable_vit(model: str, size: str, drop: float, rest: str) -> str:
    """A segmentor over a network that a file of its authors registers by its own name."""
    return (
        bases(model, "ade20k", "seg_runtime", "schedule_160k")
        + f"custom_imports = dict(imports=['scalable_vit'], allow_failed_imports=False)\n"
        f"model = dict(backbone=dict(_delete_=True, type='scalable_vit_{size}', drop_path_rate={drop}))\n" + rest
    )


def semantic_fpn(size: str, drop: float) -> str:
    """PVT's values at twice its steps and half its batch."""
    return scalable_vit(
        "fpn_smt_s",
        size,
        drop,
        "gpu_multiples = 1\n"
        + adamw("0.0001 * gpu_multiples", "0.0001")
        + """lr_config = dict(policy='poly', power=0.9, min_lr=0.0, by_epoch=False)
runner = dict(type='IterBasedRunner', max_iters=80000 // gpu_multiples)
checkpoint_config = dict(by_epoch=False, interval=8000 // gpu_multiples)
evaluation = dict(interval=8000 // gpu_multiples, metric='mIoU')
data = dict(samples_per_gpu=2)
""",
    )


SPARSE_RATE = (
    adamw("0.000025", "0.0001") + "optimizer_config = dict(_delete_=True, grad_clip=dict(max_norm=1, norm_type=2))\n"
)
FOUR = f"model = dict(roi_head=dict(bbox_head=[{FOUR_CONV_HEADS}]))\n"
SCALABLE = "backbone=dict(_delete_=True, type='scalable_vit_{size}', drop_path_rate={drop}), "
CONFIGS = {  # name of the recipe -> configuration
    "mask_rcnn_smt_small_coco_1x": smt(
        "mask_rcnn", DET, "", adamw("0.0002", keys=NORM, delete=False), ms=False
    ),
    "mask_rcnn_smt_small_coco_3x": smt("mask_rcnn", DET, "", adamw("0.0002", keys=NORM, delete=False)),
    "mask_rcnn_smt_base_coco_3x": smt(
        "mask_rcnn", DET, f"model = dict(backbone=dict({SMT_BASE}, groups_mode=1))\n",
        adamw("0.0002", keys=THREE, delete=False),
    ),
    "cascade_mask_rcnn_smt_small_coco_3x": smt("cascade_mask_rcnn", DET, FOUR, adamw("0.0001", delete=False)),
    "retinanet_smt_small_coco_3x": smt("retinanet", BOXES, "", adamw("0.0001", delete=False)),
    "atss_smt_small_coco_3x": smt("atss", BOXES, "", adamw("0.0001")),
    "sparse_rcnn_smt_small_coco_1x": smt("sparse_rcnn", BOXES, "", SPARSE_RATE, ms=False),
    "sparse_rcnn_smt_base_coco_1x": smt(
        "sparse_rcnn", BOXES, f"model = dict(backbone=dict({SMT_BASE.replace('0.3', '0.2')}))\n", SPARSE_RATE, ms=False
    ),
    "sparse_rcnn_smt_small_coco_3x": smt(
        "sparse_rcnn", BOXES,
        "num_proposals = 300\nmodel = dict(rpn_head=dict(num_proposals=num_proposals),"
        " test_cfg=dict(_delete_=True, rpn=None, rcnn=dict(max_per_img=num_proposals)))\n",
        SPARSE_RATE,
    ),
    **{
        f"mask_rcnn_unified_{name}_{size}_coco_1x": stm(kind, dims, depths, drop)
        for kind, name, size, dims, depths, drop in (
            ("UnifiedConvNeXt", "convnext", "micro", "[32, 64, 128, 256]", "[3, 3, 8, 3]", 0.1),
            ("UnifiedConvNeXt", "convnext", "tiny", "[96, 192, 384, 768]", "[2, 2, 9, 2]", 0.2),
            ("UnifiedConvNeXt", "convnext", "small", "[96, 192, 384, 768]", "[2, 2, 24, 2]", 0.2),
            ("UnifiedConvNeXt", "convnext", "base", "[128, 256, 512, 1024]", "[2, 2, 24, 2]", 0.3),
            ("UnifiedDCNv3", "dcn_v3", "micro", "[32, 64, 128, 256]", "[2, 2, 9, 2]", 0.1),
            ("UnifiedDCNv3", "dcn_v3", "tiny", "[64, 128, 256, 512]", "[4, 4, 18, 4]", 0.2),
            ("UnifiedDCNv3", "dcn_v3", "small", "[80, 160, 320, 640]", "[4, 4, 21, 4]", 0.2),
            ("UnifiedDCNv3", "dcn_v3", "base", "[112, 224, 448, 896]", "[4, 4, 21, 4]", 0.3),
            ("UnifiedHalonet", "halo", "micro", "[32, 64, 128, 256]", "[2, 2, 9, 2]", 0.1),
            ("UnifiedHalonet", "halo", "tiny", "[96, 192, 384, 768]", "[2, 2, 6, 2]", 0.2),
            ("UnifiedHalonet", "halo", "small", "[96, 192, 384, 768]", "[2, 2, 18, 2]", 0.2),
            ("UnifiedHalonet", "halo", "base", "[128, 256, 512, 1024]", "[2, 2, 18, 2]", 0.3),
            ("UnifiedPVT", "pvt", "micro", "[32, 64, 160, 256]", "[2, 2, 3, 2]", 0.1),
            ("UnifiedPVT", "pvt", "tiny", "[64, 128, 320, 512]", "[3, 4, 9, 3]", 0.2),
            ("UnifiedPVT", "pvt", "small", "[64, 128, 320, 512]", "[3, 4, 21, 3]", 0.2),
            ("UnifiedPVT", "pvt", "base", "[64, 128, 320, 512]", "[3, 8, 45, 3]", 0.3),
            ("UnifiedSwinTransformer", "swin", "micro", "[32, 64, 128, 256]", "[2, 2, 9, 2]", 0.1),
            ("UnifiedSwinTransformer", "swin", "tiny", "[96, 192, 384, 768]", "[2, 2, 6, 2]", 0.2),
            ("UnifiedSwinTransformer", "swin", "small", "[96, 192, 384, 768]", "[2, 2, 18, 2]", 0.2),
            ("UnifiedSwinTransformer", "swin", "base", "[128, 256, 512, 1024]", "[2, 2, 18, 2]", 0.3),
        )
    },
    "mask_rcnn_swin_tiny_coco_1x": mim_swin(long=False, half=False),
    "mask_rcnn_swin_tiny_coco_1x_fp16": mim_swin(long=False, half=True),
    "mask_rcnn_swin_tiny_coco_3x": mim_swin(long=True, half=False),
    "mask_rcnn_swin_tiny_coco_3x_fp16": mim_swin(long=True, half=True),
    "mask_rcnn_swin_tiny_coco_1x_ms": swin_fork("mask_rcnn", "tiny", 0.1, epochs=12),
    "mask_rcnn_swin_tiny_coco_3x_ms": swin_fork("mask_rcnn", "tiny", 0.2, epochs=36),
    "mask_rcnn_swin_small_coco_3x_ms": swin_fork("mask_rcnn", "small", 0.2, epochs=36),
    "cascade_mask_rcnn_swin_tiny_coco_1x_ms": swin_fork("cascade_mask_rcnn", "tiny", 0.0, epochs=12),
    "cascade_mask_rcnn_swin_tiny_coco_3x_ms": swin_fork("cascade_mask_rcnn", "tiny", 0.2, epochs=36),
    "cascade_mask_rcnn_swin_small_coco_3x_ms": swin_fork("cascade_mask_rcnn", "small", 0.2, epochs=36),
    "cascade_mask_rcnn_swin_base_coco_3x_ms": swin_fork("cascade_mask_rcnn", "base", 0.3, epochs=36),
    "mask_rcnn_swin_visformer_small_coco_1x": visformer_fork("mask_rcnn", 1, 0.1, epochs=12, ms=False),
    "mask_rcnn_swin_visformer_small_coco_3x_ms": visformer_fork("mask_rcnn", 1, 0.1, epochs=36, ms=True),
    "mask_rcnn_swin_visformer_small_v2_coco_1x": visformer_fork("mask_rcnn", 2, 0.2, epochs=12, ms=False),
    "mask_rcnn_swin_visformer_small_v2_coco_3x_ms": visformer_fork("mask_rcnn", 2, 0.2, epochs=36, ms=True),
    "cascade_mask_rcnn_swin_visformer_small_coco_1x": visformer_fork("cascade_mask_rcnn", 1, 0.0, epochs=12, ms=False),
    "cascade_mask_rcnn_swin_visformer_small_coco_1x_ms": visformer_fork(
        "cascade_mask_rcnn", 1, 0.0, epochs=12, ms=True
    ),
    "cascade_mask_rcnn_swin_visformer_small_coco_3x_ms": visformer_fork(
        "cascade_mask_rcnn", 1, 0.2, epochs=36, ms=True
    ),
    "cascade_mask_rcnn_swin_visformer_small_v2_coco_1x_ms": visformer_fork(
        "cascade_mask_rcnn", 2, 0.0, epochs=12, ms=True
    ),
    "cascade_mask_rcnn_swin_visformer_small_v2_coco_3x_ms": visformer_fork(
        "cascade_mask_rcnn", 2, 0.2, epochs=36, ms=True
    ),
    "upernet_swin_tiny_ade20k_160k": upernet("upernet_swin", "backbone=dict(drop_path_rate=0.3), ", THREE),
    "upernet_smt_small_ade20k_160k": upernet("upernet_smt_s", ""),
    **{
        f"{method}_scalable_vit_{size}_ade20k_{length}": text
        for size, drop in (("small", 0.2), ("base", 0.3), ("large", 0.3))
        for method, length, text in (
            ("semantic_fpn", "80k", semantic_fpn(size, drop)),
            ("upernet", "160k", upernet("upernet_swin", SCALABLE.format(size=size, drop=drop), THREE)),
        )
    },
    "upernet_smt_base_ade20k_160k": upernet("upernet_smt_s", f"backbone=dict({SMT_BASE}), "),
}  # fmt: skip

ENGINE_MASK_RCNN = (  # Swin's Mask R-CNN of MMDetection 3
    bases("engine_mask_rcnn_swin_fpn", "engine_coco_instance", "engine_schedule_1x", "engine_runtime")
    + f"""pretrained = 'https://example.org/swin_tiny_patch4_window7_224.pth'
model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=pretrained), convert_weights=True))
max_epochs = 12
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[8, 11], gamma=0.1)
]
optim_wrapper = dict(
    type='OptimWrapper',
    paramwise_cfg=dict(custom_keys={{{THREE}}}),
    optimizer=dict(_delete_=True, type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05))
"""
)
ENGINE_DINO = (  # detrex's values in the syntax of MMDetection 3
    bases("engine_coco_instance", "engine_runtime")
    + DINO.replace(
        "BACKBONE",
        ENGINE_SWIN.replace("(0, 1, 2, 3)", "(1, 2, 3)").replace("drop_path_rate=0.2", "drop_path_rate=0.1"),
    )
    + """train_pipeline = [
    dict(type='LoadImageFromFile', backend_args={{_base_.backend_args}}),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomChoiceResize', scales=[(s, 1333) for s in range(480, 801, 32)], keep_ratio=True)],
            [
                dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                dict(type='RandomChoiceResize', scales=[(s, 1333) for s in range(480, 801, 32)], keep_ratio=True)
            ]
        ]),
    dict(type='PackDetInputs')
]
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, weight_decay=0.0001),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1), 'norm': dict(decay_mult=0.0)}))
max_iters = 90000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=7500)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=max_iters, by_epoch=False, milestones=[82500], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=16)
"""
)
ENGINE_UPERNET = (  # Swin's UPerNet of MMSegmentation 1
    bases("upernet_swin", "seg_engine_ade20k", "seg_engine_runtime", "seg_engine_schedule_160k")
    + f"""crop_size = (512, 512)
data_preprocessor = dict(
    type='SegDataPreProcessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
    pad_val=0, seg_pad_val=255, size=crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(
        _delete_=True, type='SwinTransformer', embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24],
        window_size=7, drop_path_rate=0.3, use_abs_pos_embed=False, patch_norm=True),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.00006, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={{{THREE}}}))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=1500, end=160000, by_epoch=False)
]
train_dataloader = dict(batch_size=2)
"""
)
