"""The figures: drawn, described, and refused when there is nothing to draw."""

import base64
import colorsys
import io
import re
import warnings
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from PIL import Image

from sdnb import plots
from sdnb.memory.trace import MemoryTrace
from sdnb.training import Step
from sdnb.watch import summary


def test_a_grid_shows_itself_with_its_alternative():
    white, red = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "red")
    chart = plots.grid({"before": [white, red], "after": [red]}, titles=["a", "b"], title="Red wins")
    png, metadata = chart._repr_png_()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.width > 200
    assert (255, 0, 0) in {colour for _, colour in image.getcolors(1 << 24)}
    assert metadata == {"alt": repr(chart)} == {"alt": "Red wins. Rows: before, after. Columns: a, b."}


def test_a_figure_drawn_by_hand_takes_on_the_style_and_keeps_what_is_smaller():
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], label="a line")
    axes.set(title="Up it goes", xlabel="step", ylabel="loss")
    axes.yaxis.label.set_fontsize(6)
    axes.yaxis.set_tick_params(labelsize=5)
    axes.legend()
    plots.Chart(figure, "A line that goes up.")
    figure.canvas.draw()
    assert not axes.spines["top"].get_visible()
    assert axes.spines["left"].get_visible()
    texts = (
        axes.title,
        axes.xaxis.label,
        axes.yaxis.label,
        axes.get_xticklabels()[0],
        axes.get_yticklabels()[0],
        axes.get_legend().get_texts()[0],
    )
    assert [text.get_fontsize() for text in texts] == [10, 9, 6, 8, 5, 8]


def test_a_history_states_its_finding(tmp_path):
    peaks = {"forward": 3 * 2**30, "backward": 5 * 2**30, "optimizer": 4 * 2**30}
    steps = [Step(i, 1.0 if i < 50 else 0.25, min(i, 10) * 1e-5, 0.1, peaks=peaks) for i in range(100)]
    chart = summary.history(steps, capacity_bytes=8 * 2**30, note="On a made-up card.")
    assert chart.figure.get_suptitle() == "Mean training loss 1.000 over the first quarter, 0.250 over the last"
    assert chart.alt == (
        "Mean training loss 1.000 over the first quarter, 0.250 over the last, 100 steps. The learning rate reaches 1e-4. "
        "Memory peaks at 5.00 GiB, in backward of step 0. The card has 8.00 GiB. On a made-up card."
    )
    assert [axis.get_title(loc="left") for axis in chart.figure.axes] == ["Loss", "Learning rate", "Memory, GiB", "Speed, steps a second"]
    assert chart.save(tmp_path / "history.svg") == tmp_path / "history.svg"
    assert [path.name for path in tmp_path.iterdir()] == ["history.svg"]
    assert summary.history(steps, title="Mine").alt.startswith("Mine. Mean training loss")


def test_one_step_is_enough_and_none_is_refused():
    summary.history([Step(0, 0.5, 1e-4, 0.1)])._repr_png_()
    with pytest.raises(ValueError, match="no steps"):
        summary.history([])
    with pytest.raises(ValueError, match="no pictures"):
        plots.grid({"none": []})


def test_charts_need_only_the_fields_they_draw():
    summary.history([SimpleNamespace(index=0, loss=1.0, learning_rate=0.0)])


def test_the_anatomy_of_a_step_says_where_the_peak_was():
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    with MemoryTrace(layer) as trace:
        layer(torch.ones(500, 64)).square().mean().backward()
    chart = plots.anatomy(trace)
    assert f"Peak {trace.peak_bytes / 2**20:,.1f} MiB: weights 0.0" in chart.alt
    assert "At the peak, in backward" in chart.alt
    assert "are activations" in chart.figure.axes[0].get_title()
    assert len(chart._repr_png_()[0]) > 5000
    assert "Mine. At the peak" in plots.anatomy(trace, title="Mine").alt
    with MemoryTrace(layer) as nothing:
        pass
    with pytest.raises(ValueError, match="nothing to show"):
        plots.anatomy(nothing)


def test_the_anatomy_names_every_stretch_of_two_steps():
    """What runs between backward and the optimizer is no forward, and neither is freeing the gradients at the end."""
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
    optimizer = torch.optim.AdamW(layer.parameters())
    with MemoryTrace(layer) as trace:
        for _ in range(2):
            layer(torch.ones(500, 64)).square().mean().backward()
            [p.grad.norm() for p in layer.parameters() for _ in range(5)]
            optimizer.step()
            optimizer.zero_grad()
    axis = plots.anatomy(trace).figure.axes[0]
    words = [text for text in axis.texts if "peak" not in text.get_text()]
    assert [text.get_text().strip() for text in words] == ["forward", "backward", "optimizer"] * 2
    heights = [text.get_position()[1] for text in words]
    assert heights == heights[:2] * 3 and heights[0] != heights[1]


def test_a_frontier_is_drawn_beside_single_choices():
    points = [SimpleNamespace(peak_bytes=peak * 2**20, flops_ratio=ratio) for peak, ratio in ((60, 1.0), (50, 1.02), (40, 1.2))]
    chart = plots.frontier(points, {"all": (42 * 2**20, 1.25)}, title="Half for little")
    assert chart.alt == (
        "Half for little. The solver's choices go from 60.0 MiB at 1.00 times the FLOPs to 40.0 at 1.20. all: 42.0 at 1.25."
    )
    assert len(chart._repr_png_()[0]) > 5000
    with pytest.raises(ValueError, match="no points"):
        plots.frontier([], {}, title="")


def test_bars_are_as_long_as_what_they_hold():
    cases = {"AdamW": {"weights": 3 * 2**30, "optimizer state": 6 * 2**30}, "Adafactor": {"weights": 3 * 2**30, "optimizer state": 2**20}}
    chart = plots.bars(cases, title="Two thirds are state", capacity_bytes=8 * 2**30)
    assert chart.alt == (
        "Two thirds are state. AdamW 9.00 GiB: weights 3.00, optimizer state 6.00; Adafactor 3.00 GiB: weights 3.00. The card has 8.00 GiB."
    )
    ends = sorted(round(bar.get_x() + bar.get_width(), 2) for bar in chart.figure.axes[0].patches)
    assert ends == [3, 3, 3, 9]
    assert "RTX 3090 has 8.00 GiB." in plots.bars(cases, title="", capacity_bytes=8 * 2**30, card="RTX 3090").alt
    whiskers = plots.bars(cases, title="", reserved={"AdamW": 10 * 2**30})
    assert "AdamW 9.00 GiB, reserved 10.00: weights" in whiskers.alt
    (ends,) = whiskers.figure.axes[0].collections[0].get_segments()
    assert [end[0] for end in ends] == [9, 10]
    assert len(chart._repr_png_()[0]) > 5000
    with pytest.raises(ValueError, match="no cases"):
        plots.bars({}, title="")


def test_curves_share_a_scale_and_mark_their_peaks():
    none = {name: [0, 0, 0] for name in plots.CATEGORY_STYLES}
    steps = {"plain": none | {"weights": [3 * 2**30] * 3, "gradients": [0, 0, 3 * 2**30]}, "fused": none | {"weights": [3 * 2**30] * 3}}
    chart = plots.curves(steps, title="Halved")
    assert chart.alt == "Halved. Peaks: plain: 6.00 GiB, of which weights 3.00, gradients 3.00; fused: 3.00 GiB, of which weights 3.00."
    plain, fused = chart.figure.axes
    assert plain.get_ylim() == fused.get_ylim()
    assert [axis.lines[0].get_xydata().tolist() for axis in (plain, fused)] == [[[2, 6]], [[0, 3]]]
    with pytest.raises(ValueError, match="no steps"):
        plots.curves({}, title="")


def test_a_waterfall_steps_down_past_the_cards():
    levers = {"as it is": 40 * 2**30, "checkpointing": 40 * 2**30, "Adafactor": 16 * 2**30, "larger batch": 17 * 2**30}
    chart = plots.waterfall(levers, title="One lever does it", cards={"RTX 3090": 23 * 2**30})
    assert chart.alt == (
        "One lever does it. as it is 40.00 GiB; checkpointing 40.00 GiB (±0); Adafactor 16.00 GiB (−24.00); "
        "larger batch 17.00 GiB (+1.00). Cards: RTX 3090 23.00 GiB."
    )
    axis = chart.figure.axes[0]
    assert [bar.get_height() for bar in axis.patches] == [40, 40, 16, 17, 0, 0, 24, 0]
    assert [line.get_ydata()[0] for line in axis.lines] == [23]
    assert {"40.00", "16.00\n−24.00", "17.00\n+1.00"} <= {text.get_text() for text in axis.texts}
    assert len(chart._repr_png_()[0]) > 5000
    assert "Cards" not in plots.waterfall(levers, title="").alt
    whiskers = plots.waterfall(levers, title="", reserved={"Adafactor": 18 * 2**30})
    assert "Adafactor 16.00 GiB (−24.00), reserved 18.00; larger batch" in whiskers.alt
    assert [[end[1] for end in ends] for one in whiskers.figure.axes[0].collections for ends in one.get_segments()] == [[16, 18]]
    parts = {"before": {"weights": 3 * 2**30, "gradients": 2 * 2**30, "inputs": 1}, "after": {"weights": 3 * 2**30}}
    totals = {"before": 5 * 2**30, "after": 3 * 2**30}
    stacked = plots.waterfall(totals, title="", parts=parts, phases={"before": "optimizer", "after": "forward"})
    assert "before 5.00 GiB, in optimizer, weights 3.00, gradients 2.00; after 3.00 GiB (−2.00), in forward" in stacked.alt
    bars = [(bar.get_y(), bar.get_height()) for bar in stacked.figure.axes[0].patches]
    assert bars == [(0, 3), (0, 3), (3, 2), (3, 0), (5, 0), (3, 2)], "weights, gradients on top of them, what was saved"
    with pytest.raises(ValueError, match="no levers"):
        plots.waterfall({}, title="")


def test_schedules_stand_side_by_side():
    chart = plots.schedules({"constant": [1e-4] * 5, "linear": [1e-4, 5e-5, 0.0]}, title="One falls", dashed=["constant"])
    assert chart.alt == "One falls. Learning rates: constant from 1e-4 to 1e-4, at most 1e-4; linear from 1e-4 to 0, at most 1e-4."
    lines = [axis.lines[0] for axis in chart.figure.axes]
    assert [line.get_linestyle() for line in lines] == ["--", "-"]
    assert list(lines[1].get_ydata()) == [1, 0.5, 0]
    with pytest.raises(ValueError, match="no schedules"):
        plots.schedules({}, title="")


def test_chinese_is_written_with_the_font_of_the_package():
    def drawn(text):
        figure = Figure(figsize=(2, 1))
        figure.text(0.1, 0.5, text)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return plots.Chart(figure, "")._repr_png_()[0]

    with rc_context({"font.family": ["sans-serif"]}):  # another test may have asked for Chinese
        with pytest.raises(UserWarning, match="missing from font"):
            drawn("损失")
        plots.write_chinese()
        plots.write_chinese()
        assert len(rcParams["font.family"]) == 2
        assert drawn("损失，95% 区间") != drawn("训练，95% 区间")


def test_whoever_watches_is_given_the_text_alternative_in_html(monkeypatch):
    """Programs that run a notebook store the PNG alone, whose metadata has it."""
    chart = plots.Chart(Figure(), 'Loss < 1 & "falling"')
    assert chart._repr_html_() is None
    monkeypatch.setattr(plots, "attended", lambda: True)
    _, image = ElementTree.fromstring(f"<p>{chart._repr_html_().removesuffix('>')}/></p>")
    assert image.get("alt") == chart.alt
    assert base64.b64decode(image.get("src").removeprefix("data:image/png;base64,")) == chart._repr_png_()[0]


def test_a_dark_page_gets_a_dark_figure_with_the_same_pictures():
    red = Image.new("RGB", (8, 8), "red")
    chart = plots.grid({"a": [red, Image.new("RGB", (8, 8), "white")]}, title="Red beside white")
    style, image = ElementTree.fromstring(f"<p>{chart.html().removesuffix('>')}/></p>")
    assert f'[data-jp-theme-light="false"] .{image.get("class")}' in style.text  # nowhere else
    (address,) = re.findall(r"url\(data:image/png;base64,(.+?)\)", style.text)
    dark, light = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (base64.b64decode(address), chart._repr_png_()[0]))
    assert dark.shape == light.shape
    assert light[0, 0].tolist() == [255] * 3
    assert dark[0, 0].tolist() == [plots.PAPER] * 3
    assert dark[light.sum(-1) == 0].max(initial=0) <= plots.INK
    height, width, _ = dark.shape
    pictures = (dark == (255, 0, 0)).all(-1).mean(), (dark == 255).all(-1).mean()
    assert min(pictures) > 0.8 * 1.05**2 * 90**2 / (height * width)  # each about an inch wide and high


def test_colours_keep_their_hue_on_a_dark_page():
    figure = Figure(figsize=(1, 1), facecolor=plots.BLUE)
    chart = plots.Chart(figure, "blue")
    dark = Image.open(io.BytesIO(chart._dark(chart._repr_png_()[0]))).convert("RGB").getpixel((3, 3))
    before, after = (colorsys.rgb_to_hls(*(value / 255 for value in colour)) for colour in ((0x00, 0x72, 0xB2), dark))
    assert after[0] == pytest.approx(before[0], abs=0.01)
    assert after[1] > 0.55 > 0.4 > before[1]
