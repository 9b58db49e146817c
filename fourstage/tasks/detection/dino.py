"""DINO, https://arxiv.org/abs/2203.03605: queries are chosen among an encoder's cells and refined by a decoder.

B images, L levels, N cells of all levels, Q queries, D queries with noise, C channels (after the class head: classes).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import log
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.ops.shapes import sides_like
from fourstage.plurals import plural
from fourstage.tasks.detection.boxes import as_float32, clip_boxes, corner_form
from fourstage.tasks.detection.channel_mapper import ChannelMapper
from fourstage.tasks.detection.deformable_attention import DeformableAttention, Memory
from fourstage.tasks.detection.denoising import Denoising, add_noise, cap_objects, draw_noise, may_see
from fourstage.tasks.detection.detector import Detections, Detector, GroundTruth, count_tensor, ground_truths
from fourstage.tasks.detection.dino_layers import MLP, Decoded, Decoder, EncoderLayer
from fourstage.tasks.detection.matching import Draws
from fourstage.tasks.detection.padding import MULTIPLE, padded_size
from fourstage.tasks.detection.query_losses import (
    LOSSES,
    STABLE_LOSSES,
    STABLE_WEIGHTS,
    WEIGHTS,
    position_modulated_cost,
    set_cost,
)
from fourstage.tasks.detection.set_criterion import Queries, SetCriterion, layer_names
from fourstage.tasks.detection.set_prediction import best_of_queries
from fourstage.tasks.detection.sine import inverse_sigmoid, sine_of_cells
from fourstage.tasks.parts.freeze_unused import freeze_unused
from fourstage.tasks.parts.levels import first_at_stride, levels_of
from fourstage.tasks.parts.settings import check_counts, check_sizes

FIRST_SIDE = 0.05  # share of the image: side of the boxes that are proposed on the first level; doubles with each level
BORDER = 0.01  # share of the image: boxes whose centre or side is closer to 0 or 1 are not proposed


class Chosen(NamedTuple):
    """The cells that become queries."""

    logits_BQC: Tensor  # of the encoder's own class head
    boxes_BQ4: Tensor  # centre, width and height from 0 to 1, with a gradient


class DINO(Detector):
    """Detector without anchors and suppression: each query detects at most one object.

    Args:
        backbone: with `levels`; its maps from stride 8 on are used, with five scales or more those from stride 4 on.
        queries: number Q of queries, at most as many as there are cells; each detects at most one object. In a
            recipe also "auto": ten for each object of the fullest training image, from 100 to 900, or twice as many as
            its objects where those are more than 450.
        scales: number L of maps that the encoder reads; those beyond the backbone's come from convolutions of stride 2.
        channels: width C of neck, encoder and decoder, a multiple of 4 and of `heads`.
        encoder_layers: number of layers of the encoder.
        decoder_layers: number of layers of the decoder.
        heads: number of heads of attention.
        points: number of places that each head of deformable attention reads on each map.
        hidden: width between the two linear layers of a block.
        denoising: largest number of queries with little noise of an image in a training step; 0: none. If an image
            has more objects, that many of them are drawn at random.
        label_noise: twice the share of queries with noise whose label is replaced by any.
        box_noise: largest shift of a corner of the queries with little noise, in halves of a side.
        neck_bias: whether the neck's convolutions have a bias, as in detrex and the original.
        position_temperature: ratio of the longest wavelength to the shortest, roughly, of the sines of cells.
        position_offset: number of cells that is added to a place before the sines are computed; places count from 1.
        per_image: largest number of detections in an image.
        pad_to: number of pixels that sides are padded to a multiple of; 1, as in the originals: no padding.
        stable: whether a matched query learns its overlap as its score, and matching weighs classes by overlaps, as in
            Stable-DINO (https://arxiv.org/abs/2304.04742). It changes training alone.

    Raises:
        ValueError: the backbone has no map at stride 8 or coarser, or a setting that there is not.
    """

    method = "dino"
    counts_over_ranks = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        queries: int = 900,
        scales: int = 4,
        channels: int = 256,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        heads: int = 8,
        points: int = 4,
        hidden: int = 2048,
        denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        neck_bias: bool = False,
        position_temperature: float = 20.0,
        position_offset: float = 0.0,
        per_image: int = 300,
        pad_to: int = MULTIPLE,
        stable: bool = False,
    ) -> None:
        if isinstance(queries, str):
            raise ValueError(f"queries must be an integer of at least 1, or in a recipe auto; got {queries!r}")
        check_counts(queries=queries, scales=scales, channels=channels, encoder_layers=encoder_layers)
        check_counts(decoder_layers=decoder_layers, heads=heads, points=points, hidden=hidden, per_image=per_image)
        check_counts(pad_to=pad_to)
        check_counts(denoising=denoising, least=0)
        check_sizes(box_noise=box_noise, position_temperature=position_temperature)
        if channels % 4:
            raise ValueError(f"channels must be a multiple of 4, for sines of x and y; got {channels}")
        if not 0 <= label_noise <= 2:
            raise ValueError(f"label_noise is twice a share of labels, from 0 to 2; got {label_noise!r}")
        levels = levels_of(backbone)
        start = max(first_at_stride(levels, 8 if scales < 5 else 4), len(levels) - scales)
        super().__init__(
            backbone, ChannelMapper(levels, channels, scales, start_level=start, bias=neck_bias), num_classes
        )
        self.find_unused_parameters = freeze_unused(backbone, range(start, len(levels)))
        shape = (channels, scales, heads, points, hidden)
        self.level_embed = nn.Parameter(torch.empty(scales, channels))
        self.encoder = nn.ModuleList(EncoderLayer(*shape) for _ in range(encoder_layers))
        self.project, self.project_norm = nn.Linear(channels, channels), nn.LayerNorm(channels)
        self.query_embed = nn.Embedding(queries, channels)
        self.label_embed = nn.Embedding(num_classes, channels).requires_grad_(denoising > 0)
        self.decoder = Decoder(decoder_layers, *shape)
        predictions = decoder_layers + 1  # the last one is that of the encoder
        self.classify = nn.ModuleList(nn.Linear(channels, num_classes) for _ in range(predictions))
        self.regress = nn.ModuleList(MLP(channels, channels, channels, 4) for _ in range(predictions))
        self.queries, self.per_image, self.pad_to = queries, per_image, pad_to
        self.denoising, self.label_noise, self.box_noise = denoising, label_noise, box_noise
        self.temperature, self.offset = position_temperature, position_offset
        self.denoising_criterion = SetCriterion(set_cost, LOSSES, WEIGHTS)
        self.criterion = self.denoising_criterion
        if stable:
            cost = partial(position_modulated_cost, predictions)
            self.criterion = SetCriterion(cost, STABLE_LOSSES, STABLE_WEIGHTS)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices: Xavier's uniform; embeddings: normal; boxes start where they were proposed, classes at 0.01."""
        for module in (*self.encoder.modules(), *self.decoder.modules(), self.project, *self.regress.modules()):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        for module in (*self.encoder.modules(), *self.decoder.modules()):
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)
        for classify, regress in zip(self.classify, self.regress, strict=True):
            nn.init.constant_(classify.get_parameter("bias"), -log(0.99 / 0.01))
            last = regress.get_submodule("layers.2")
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        """Return `loss_cls`, `loss_bbox` and `loss_iou` of each decoder layer, of the encoder and of denoising.

        The last decoder layer's have no prefix, those before it `d0.`, `d1.` ..., the encoder's `enc_`, and those of
        denoising `dn_` before the name. `seed` keys the noise.

        Raises:
            ValueError: an image has more objects than the detector has queries.
        """
        truths = self._checked(ground_truths(batch, masks=False), batch)
        draws = Draws(seed)
        batch = self.without_excess(batch)
        maps = self.maps(batch)
        memory = self.encode(maps, self.padding_masks(batch, maps))
        chosen = self.choose(memory)
        noisy = self._denoising(truths, batch.ids, draws)
        decoded = self.decode(memory, chosen, noisy)
        layers = [self.predict(i, one) for i, one in enumerate(decoded)]
        count = 0 if noisy is None else noisy.count
        matching = [Queries(x.logits_BQC[:, count:], x.boxes_BQ4[:, count:]) for x in layers]
        encoded = Queries(as_float32(chosen.logits_BQC), chosen.boxes_BQ4)
        found = self.criterion.match([*matching, encoded], truths)
        objects = self.mean_over_ranks(count_tensor(len(found[0]), encoded.boxes_BQ4)).clamp(min=1)
        names = layer_names(len(layers))
        losses = self.criterion.weighed([*names, "enc_"], [*matching, encoded], found, objects)
        return losses | self._denoising_losses(layers, noisy, names)

    def _checked(self, truths: Sequence[GroundTruth], batch: Batch) -> list[GroundTruth]:
        """Return the truths with boxes as shares of their images."""
        out = []
        for id, (height, width), truth in zip(batch.ids, batch.sizes, truths, strict=True):
            if len(truth.labels_G) > self.queries:
                raise ValueError(
                    f"{id} has {len(truth.labels_G)} objects, and this detector "
                    f"{plural(self.queries, 'query', 'queries')}, each for one "
                    f"object; set method_args.queries={len(truth.labels_G)} or more"
                )
            size_4 = truth.boxes_G4.new_tensor([width, height, width, height])
            out.append(GroundTruth(truth.boxes_G4 / size_4, truth.labels_G, None))
        return out

    def without_excess(self, batch: Batch) -> Batch:
        """Return the batch without rows and columns that are padding in every image beyond a multiple of `pad_to`."""
        height, width = padded_size((max(h for h, _ in batch.sizes), max(w for _, w in batch.sizes)), self.pad_to)
        if height >= batch.images_BCHW.shape[2] and width >= batch.images_BCHW.shape[3]:
            return batch
        return replace(batch, images_BCHW=batch.images_BCHW[:, :, :height, :width])

    def encode(self, maps: Sequence[Tensor], masks: Sequence[Tensor] | None) -> Memory:
        """Return the encoder's memory.

        Args:
            maps: of the neck.
            masks: (B, H, W) bool for each, True where a cell is padding; None: no cell is.
        """
        sizes = tuple((x.shape[-2], x.shape[-1]) for x in maps)
        cells_BNC = torch.cat([x_BCHW.flatten(2).mT for x_BCHW in maps], dim=1)
        padding_BN = valid_BL2 = None
        if masks is not None:
            padding_BN = torch.cat([mask.flatten(1) for mask in masks], dim=1)
            valid_BL2 = torch.stack([_valid_share(mask) for mask in masks], dim=1)
        memory = Memory(cells_BNC, sizes, padding_BN, valid_BL2)
        place_BNC = self._positions(memory, masks).to(cells_BNC.dtype)
        references_BNL2 = _references(memory)
        for layer in self.encoder:
            memory = layer(memory, place_BNC, references_BNL2)
        return memory

    def _positions(self, memory: Memory, masks: Sequence[Tensor] | None) -> Tensor:
        positions = []
        for i, size in enumerate(memory.sizes):
            position_BHWC = sine_of_cells(
                size,
                self.level_embed.shape[1],
                temperature=self.temperature,
                offset=self.offset,
                padding_BHW=None if masks is None else masks[i],
                device=memory.cells_BNC.device,
            )
            positions.append(position_BHWC.flatten(1, 2) + self.level_embed[i])
        return torch.cat(positions, dim=1)

    def choose(self, memory: Memory) -> Chosen:
        """Return the cells whose best class scores best."""
        anchors_BN4, usable_BN = _anchors(memory)
        cells_BNC = torch.where(usable_BN[..., None], memory.cells_BNC, 0.0)
        cells_BNC = self.project_norm(self.project(cells_BNC))
        logits_BNC = self.classify[-1](cells_BNC)
        best_BQ = best_cells(as_float32(logits_BNC.detach()).amax(dim=2), self.queries)
        # only now the layers of the box: most cells are not chosen
        change_BQ4 = as_float32(self.regress[-1](_rows(cells_BNC, best_BQ)))
        boxes_BQ4 = (change_BQ4 + _rows(anchors_BN4.expand(best_BQ.shape[0], -1, -1), best_BQ)).sigmoid()
        return Chosen(_rows(logits_BNC, best_BQ), boxes_BQ4)

    def decode(self, memory: Memory, chosen: Chosen, noisy: Denoising | None = None) -> list[Decoded]:
        """Return what each decoder layer hands on; queries with noise come first."""
        boxes_BQ4 = chosen.boxes_BQ4.detach()
        count = boxes_BQ4.shape[1]
        queries_BQC = self.query_embed.weight[:count].expand(boxes_BQ4.shape[0], -1, -1)
        mask = None
        if noisy is not None:
            some_BD1 = (noisy.labels_BD >= 0)[..., None]
            labels_BDC = torch.where(some_BD1, self.label_embed(noisy.labels_BD.clamp(min=0)), 0.0)
            queries_BQC = torch.cat([labels_BDC, queries_BQC], dim=1)
            boxes_BQ4 = torch.cat([noisy.boxes_BD4, boxes_BQ4], dim=1)
            mask = may_see(noisy, count)
        return self.decoder(queries_BQC, boxes_BQ4, memory, self.regress, mask)

    def predict(self, i: int, decoded: Decoded) -> Queries:
        """Return the class logits and the boxes, centre, width and height from 0 to 1, of decoder layer i."""
        change_BQ4 = as_float32(self.regress[i](decoded.queries_BQC))
        boxes_BQ4 = (change_BQ4 + inverse_sigmoid(decoded.boxes_BQ4)).sigmoid()
        return Queries(as_float32(self.classify[i](decoded.queries_BQC)), boxes_BQ4)

    def _denoising(self, truths: Sequence[GroundTruth], ids: Sequence[str], draws: Draws) -> Denoising | None:
        """Return queries with noise; None where there are no objects."""
        most = max(len(truth.labels_G) for truth in truths)
        if not (self.denoising and most):
            return None
        truths = cap_objects(truths, ids, self.denoising, draws)
        groups = max(1, self.denoising // most)
        noise = draw_noise(truths, ids, 2 * groups, self.num_classes, draws)
        return add_noise(truths, noise, label_rate=self.label_noise / 2, box_scale=self.box_noise)

    def _denoising_losses(
        self, layers: Sequence[Queries], noisy: Denoising | None, names: Sequence[str]
    ) -> dict[str, Tensor]:
        if not self.denoising:
            return {}
        prefixes = [f"{name}dn_" for name in names]
        if noisy is None:  # processes that train together wait for the gradient of every parameter
            nothing = self.label_embed.weight.sum() * 0.0
            self.mean_over_ranks(nothing.detach())
            return {prefix + name: nothing for prefix in prefixes for name in self.criterion.losses}
        count = self.mean_over_ranks(count_tensor(len(noisy.pairs), noisy.boxes_BD4)).clamp(min=1)
        with_noise = [Queries(x.logits_BQC[:, : noisy.count], x.boxes_BQ4[:, : noisy.count]) for x in layers]
        return self.denoising_criterion.weighed(prefixes, with_noise, [noisy.pairs] * len(layers), count)

    def forward_for_counting(self, images_BCHW: Tensor) -> None:
        """As `Detector.forward_for_counting`."""
        memory = self.encode(self.neck(self.backbone(images_BCHW)), None)
        decoded = self.decode(memory, self.choose(memory))
        self.predict(len(decoded) - 1, decoded[-1])

    @torch.no_grad()
    def detect(self, batch: Batch, *, rescale: bool = True) -> list[Detections]:
        """As `Detector.detect`: the best pairs of a query and a class."""
        batch = self.without_excess(batch)
        maps = self.maps(batch)
        memory = self.encode(maps, self.padding_masks(batch, maps))
        decoded = self.decode(memory, self.choose(memory))
        last = self.predict(len(decoded) - 1, decoded[-1])
        size_B2 = torch.tensor(batch.sizes, device=last.boxes_BQ4.device)[:, None]
        boxes_BQ4 = clip_boxes(corner_form(last.boxes_BQ4) * size_B2.flip(-1).repeat(1, 1, 2), size_B2)
        return best_of_queries(last.logits_BQC.sigmoid(), boxes_BQ4, batch, per_image=self.per_image, rescale=rescale)


def best_cells(scores_BN: Tensor, count: int) -> Tensor:
    """Return (B, Q) indices of the best scores, best first, and of equal ones the first first; Q is at most N."""
    return scores_BN.argsort(dim=1, descending=True, stable=True)[:, :count]


def _rows(x_BNC: Tensor, index_BQ: Tensor) -> Tensor:
    """Return (B, Q, C): of each image the rows of these indices."""
    return x_BNC.gather(1, index_BQ[..., None].expand(-1, -1, x_BNC.shape[2]))


def _valid_share(padding_BHW: Tensor) -> Tensor:
    """Return (B, 2): the share of width and of height that is no padding."""
    return torch.stack([(~padding_BHW[:, 0]).float().mean(dim=1), (~padding_BHW[:, :, 0]).float().mean(dim=1)], dim=-1)


def _cell_centers(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return (H * W, 2): x and y of each cell's centre, in cells from the left upper corner."""
    y_H, x_W = (torch.arange(side, device=device) + 0.5 for side in size)
    return torch.stack(torch.meshgrid(x_W, y_H, indexing="xy"), dim=-1).flatten(0, 1)


def _places_in_image(memory: Memory) -> list[Tensor]:
    """Return for each level (B, H * W, 2): each cell's centre as a share of the image, without its padding."""
    out = []
    for i, (height, width) in enumerate(memory.sizes):
        centers_n2 = _cell_centers((height, width), memory.cells_BNC.device)
        size_2 = sides_like(centers_n2, (width, height))
        valid_B12 = size_2[None, None] if memory.valid_BL2 is None else (memory.valid_BL2[:, i] * size_2)[:, None]
        out.append(centers_n2 / valid_B12)
    return out


def _references(memory: Memory) -> Tensor:
    """Return (B, N, L, 2): where each cell is on each level, as a share of the level with its padding."""
    place_BN2 = torch.cat(_places_in_image(memory), dim=1)
    if memory.valid_BL2 is None:
        return place_BN2[:, :, None].expand(-1, -1, len(memory.sizes), -1)
    return place_BN2[:, :, None] * memory.valid_BL2[:, None]


def _anchors(memory: Memory) -> tuple[Tensor, Tensor]:
    """Return (B, N, 4) logits of the box that each cell proposes, infinite where it proposes none, and (B, N) bool."""
    boxes = []
    for i, place_Bn2 in enumerate(_places_in_image(memory)):
        boxes.append(torch.cat([place_Bn2, torch.full_like(place_Bn2, FIRST_SIDE * 2**i)], dim=-1))
    boxes_BN4 = torch.cat(boxes, dim=1)
    usable_BN = ((boxes_BN4 > BORDER) & (boxes_BN4 < 1 - BORDER)).all(dim=-1)
    if memory.padding_BN is not None:
        usable_BN = usable_BN & ~memory.padding_BN
    logits_BN4 = (boxes_BN4 / (1 - boxes_BN4)).log()
    return torch.where(usable_BN[..., None], logits_BN4, torch.inf), usable_BN
