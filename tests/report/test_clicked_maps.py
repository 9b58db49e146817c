"""Attention of a clicked point: the cells that a page holds, the picture that it shows, and the script that chooses."""

import base64
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fourstage
from fourstage.analysis import maps as analysis_maps
from fourstage.analysis.attention import Attention, attention_of
from fourstage.analysis.maps import MixerMaps, attention_grid, mixer_maps
from fourstage.backbones.mixers.reduction import ReductionAttention
from fourstage.report.analyses.maps import ImageMaps, maps_page
from fourstage.report.colour_scales import coloured
from fourstage.report.heat_maps import palette_url

CLICK = """<script>
const drawing = document.querySelector("svg[data-place]");
const [left, top_, width, height] = drawing.dataset.place.split(" ").map(Number);
const at = new DOMPoint(left + 0.9 * width, top_ + 0.1 * height).matrixTransform(drawing.getScreenCTM());
drawing.dispatchEvent(new MouseEvent("click", {clientX: at.x, clientY: at.y, bubbles: true}));
</script></body>"""


@pytest.fixture(scope="module")
def mixers() -> list[MixerMaps]:
    torch.manual_seed(0)
    network = fourstage.create_backbone("unified_pvt_micro").eval()
    return mixer_maps(network, torch.randn(1, 3, 96, 96), (50, 20), last_of_stage=True, grid=5)


def page_of(mixers: list[MixerMaps]) -> str:
    image_HW3 = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    return maps_page([ImageMaps("net", "untrained", "a.jpg", image_HW3, (50, 20), tuple(mixers), None)], "1 image")


def attention_of_8_x_8_cells() -> Attention:
    network = fourstage.create_backbone("unified_pvt_micro")
    mixer = [one for one in network.modules() if isinstance(one, ReductionAttention)][-1]
    return attention_of(mixer, torch.randn(1, 8, 8, mixer.q.in_features))


def test_a_grid_holds_the_attention_of_its_cells(mixers: list[MixerMaps]) -> None:
    for maps in mixers:
        grid = maps.grid
        assert grid is not None
        assert maps.heads_hHW is not None
        i, j = grid.rows_R.tolist().index(maps.cell[0]), grid.columns_S.tolist().index(maps.cell[1])
        np.testing.assert_allclose(grid.weights_gRSHW[0, i, j], maps.heads_hHW.mean(axis=0), atol=1e-7)
        np.testing.assert_allclose(grid.weights_gRSHW[1:, i, j], maps.heads_hHW[:4], atol=1e-7)
        assert len(grid.rows_R) == min(5, maps.size[0])
        assert len(set(grid.rows_R.tolist())) == len(grid.rows_R)
        assert 0 <= grid.rows_R.min() <= grid.rows_R.max() < maps.size[0]
    attention = attention_of_8_x_8_cells()
    found = attention_grid(attention, (3, 2), 14)
    assert found is not None
    assert found.rows_R.tolist() == list(range(8))
    np.testing.assert_allclose(found.weights_gRSHW[1, 6, 1], attention.of(6, 1)[0].detach(), atol=1e-7)


def test_a_large_map_has_fewer_points(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = attention_of_8_x_8_cells()
    groups = 1 + min(4, attention.weights_GhNM.shape[1])
    monkeypatch.setattr(analysis_maps, "GRID_CELLS", groups * 64 * 9)
    found = attention_grid(attention, (7, 0), 14)
    assert found is not None
    assert found.weights_gRSHW.shape == (groups, 3, 3, 8, 8)
    assert (7 in found.rows_R, 0 in found.columns_S) == (True, True)
    monkeypatch.setattr(analysis_maps, "GRID_CELLS", groups * 64 * 3)
    assert attention_grid(attention, (7, 0), 14) is None
    assert attention_grid(attention, (7, 0), 0) is None


def test_the_page_shows_the_given_point_and_holds_the_others(mixers: list[MixerMaps]) -> None:
    page = page_of(mixers)
    tiles = re.findall(r'<svg class="tiles".*?</svg>', page, re.DOTALL)
    assert len(tiles) == sum(len(maps.grid.weights_gRSHW) for maps in mixers if maps.grid is not None)
    grid = mixers[-1].grid
    assert grid is not None
    tile = tiles[-len(grid.weights_gRSHW)]
    x, y, wide, tall = (int(one) for one in re.findall(r'viewBox="([^"]*)"', tile)[0].split())
    data = re.findall(r"base64,([^\"]+)", tile)[0]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    i, j = grid.rows_R.tolist().index(mixers[-1].cell[0]), grid.columns_S.tolist().index(mixers[-1].cell[1])
    high = max(float(np.quantile(own, 0.999)) for own in grid.weights_gRSHW)
    shown = sheet[y : y + tall, x : x + wide].astype(int)
    expected = coloured(grid.weights_gRSHW[0, i, j], 0, high).astype(int)
    assert (x, y) == (j * wide, i * tall)
    assert np.abs(shown - expected).max() <= 2  # of 256 colours


def test_colours_of_a_palette_are_those_of_the_scale() -> None:
    url = palette_url(np.array([[0.0, 0.5, 1.0, 9.0]]), 1.0)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))
    np.testing.assert_allclose(picture, coloured(np.array([[0.0, 128 / 255, 1.0, 1.0]]), 0, 1), atol=1)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium here")
def test_a_click_chooses_the_nearest_cell(mixers: list[MixerMaps], tmp_path: Path) -> None:
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page_of(mixers))
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", CLICK))
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/chromium"]
    command = [*words, "--dump-dom", f"file://{file}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert "The cross is the point 86,9; the maps are those of the nearest cells." in done.stdout
    caption = re.findall(r"<figcaption><b>a.jpg</b>(.*?)</figcaption>", done.stdout)
    assert [re.sub("<[^>]*>", "", one) for one in caption] == ["the cross is the point 86,9"]
    boxes = re.findall(r'class="tiles"[^>]*viewBox="([^"]*)"[^>]*', done.stdout)
    first = mixers[0].grid
    assert first is not None
    column = int(np.abs(first.columns_S - (0.9 * mixers[0].size[1] - 0.5)).argmin())
    row = int(np.abs(first.rows_R - (0.1 * mixers[0].size[0] - 0.5)).argmin())
    height, width = mixers[0].size
    assert boxes[0] == f"{column * width} {row * height} {width} {height}"
