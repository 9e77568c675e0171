"""What does a frame of the live plot cost, beside those of others?

    python -m benchmarks.live_plot

Each draws the same four curves of 1,000 points: loss, learning rate, memory, speed. All of them run in one Jupyter kernel, with
everything they send to a front end; nobody is at the other end. Blocks of all alternate, and a figure is the median over them, in
processor time of the kernel, which is the time that a step has to wait and does not grow when the machine has other work.
`here` is what the kernel does for `sdnb.live` in JupyterLab: it sends numbers, and the browser draws. What that takes in a browser is
measured too, where playwright and a Chromium are installed: script and layout, without the painting, the fastest of 40. `a new
figure` is the plain way, four axes of matplotlib at 2.8 million pixels, saved as PNG and shown in place of the last.

Then what watching costs a whole run: the share of the time of a fine-tune of tiny that went into frames, and how long it takes to
open the plot and to leave the picture that stays.

Takes about a minute on two cores.
"""

import base64
import json
import queue
import shutil
import statistics
import sys
import time

from sdnb.watch import widget

from . import report

SOURCES = widget.HERE

SETUP = """
import io, math, time, warnings
import numpy as np
from IPython.display import display
warnings.simplefilter("ignore")
N = {points}
rng = np.random.default_rng(0)
noise = rng.normal(0, 0.05, N + 200)
def value(i):
    jitter = float(noise[i % len(noise)])
    return 0.1 + math.exp(-4 * i / N) + jitter**2, 1e-4 * min(i / 100, 1), 5e9 + 1e7 * (i % 7), 20 + jitter
rows = [value(i) for i in range(N)]
"""
OURS = """
import sdnb
from sdnb.watch.frontends import Notebook
from sdnb.memory.gauges import Gauges
from sdnb.training import Step
def step(i, steps):
    loss, rate, size, speed = value(i)
    peaks = dict(forward=size, backward=size * 1.3, optimizer=size * 1.1)
    return Step(i, loss, rate, 4 / speed, peaks=peaks, pictures=4, steps=steps)
def made(points):
    run = sdnb.live(iter([]))
    history = run.runs["this run"]
    for i in range(points):
        history.add(step(i, points + 200))
    len(history["loss"])
    run._front_end, run._gauges, run._state = Notebook(), Gauges(), ""
    return run, history
def frames(run, history, count):
    took = []
    for _ in range(count):
        history.add(step(len(history), history.planned))
        start = time.process_time()
        run._front_end.frame(run)
        took.append(time.process_time() - start)
    return took
kept = {}
def here(points=N):
    if points not in kept:
        kept[points] = made(points)
        kept[points][0]._front_end.open(kept[points][0])
        frames(*kept[points], 3)
    return frames(*kept[points], 8)
"""
NEW_FIGURE = """
import matplotlib.pyplot as plt
handle = None
def new_figure():
    global handle
    took = []
    for _ in range(4):
        start = time.process_time()
        figure, axes = plt.subplots(2, 2, figsize=(9.6, 5.0), dpi=144, layout="tight")
        for axis, curve, title in zip(axes.flat, zip(*rows), ("loss", "learning rate", "memory", "speed")):
            axis.plot(curve)
            axis.set_title(title)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144)
        plt.close(figure)
        bundle = {"image/png": buffer.getvalue()}
        if handle is None:
            handle = display(bundle, raw=True, display_id=True)
        else:
            handle.update(bundle, raw=True)
        took.append(time.process_time() - start)
    return took
"""
LIVELOSSPLOT = """
from livelossplot import PlotLosses
from livelossplot.outputs import MatplotlibPlot
losses = PlotLosses(groups={name: [name] for name in ("loss", "rate", "memory", "speed")}, outputs=[MatplotlibPlot()])
for row in rows:
    losses.update(dict(zip(("loss", "rate", "memory", "speed"), row)))
def livelossplot():
    took = []
    for _ in range(3):
        losses.update(dict(zip(("loss", "rate", "memory", "speed"), rows[0])))
        start = time.process_time()
        losses.send()
        took.append(time.process_time() - start)
    return took
"""
FASTPROGRESS = """
from fastprogress.fastprogress import master_bar
bar = master_bar(range(10))
bar.update(0)
bar.names = ["loss", "learning rate", "memory", "speed"]
def fastprogress():
    took = []
    for _ in range(4):
        start = time.process_time()
        bar.update_graph([[list(range(N)), list(curve)] for curve in zip(*rows)])
        took.append(time.process_time() - start)
    return took
"""
CONTENT = """
import base64
from sdnb.watch.frames import packed
here()
panels, numbers = packed(kept[N][0].scene())
content = dict(frame=dict(words="", panels=panels), numbers=base64.b64encode(numbers).decode(), previews=[])
"""
DRAWN = """
async ([address, content]) => {
  const live = await import(address);
  document.body.append(Object.assign(document.createElement("div"), { innerHTML: "<img><div></div>" }));
  const board = live.leave(document.body.lastElementChild, content), times = [];
  for (let i = 0; i < 40; i++) {
    const start = performance.now();
    board.show(content.frame, content.numbers, []);
    document.body.offsetHeight;
    times.push((performance.now() - start) / 1000);
  }
  return times;
}
"""
WATCHED = """
import warnings, time
warnings.simplefilter("ignore")
import sdnb
from sdnb.watch.frontends import Notebook
class Timed(Notebook):
    def open(self, live):
        start = time.perf_counter(); super().open(live); self.opening = time.perf_counter() - start
    def close(self, live, chart):
        super().close(live, chart); self.closed = time.perf_counter()
sd, ink = sdnb.load("tiny"), sdnb.pictures("emoji-ink")
run = sdnb.live(sdnb.train(sd, ink, sdnb.Recipe(), steps=%d))
run._front_end = Timed()
start = time.perf_counter()
for step in run:
    last = time.perf_counter()
took = [run.drawing_seconds, last - start, run._front_end.opening, run._front_end.closed - last]
print("RESULT", __import__("json").dumps([run.frames, *took]))
"""


class Kernel:
    """A kernel with someone who asks and nobody who looks."""

    def __enter__(self) -> "Kernel":
        from jupyter_client.manager import start_new_kernel

        self._manager, self._client = start_new_kernel(kernel_name="python3")
        return self

    def __exit__(self, *error) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)

    def run(self, code: str) -> str:
        """What a cell prints. Raises `RuntimeError` where it fails."""
        request = self._client.execute(code, allow_stdin=True)
        said = ""
        while True:
            try:
                message = self._client.get_iopub_msg(timeout=600)
            except queue.Empty:
                raise RuntimeError("the kernel does not answer") from None
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["header"]["msg_type"] == "stream":
                said += content["text"]
            elif message["header"]["msg_type"] == "error":
                raise RuntimeError("\n".join(content["traceback"]))
            elif content.get("execution_state") == "idle":
                return said

    def result(self, expression: str):
        """A value, by way of JSON."""
        said = self.run(f'print("RESULT", __import__("json").dumps({expression}))')
        return json.loads(said.rpartition("RESULT ")[2])


def in_browser(content: dict) -> list[float] | None:
    """Seconds that Chromium takes to draw a frame, several times; None without playwright or a Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        return None
    address = "data:text/javascript;base64," + base64.b64encode((SOURCES / "live.js").read_bytes()).decode()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=dict(width=1280, height=1000))
        page.set_content(f"<!doctype html><style>{(SOURCES / 'live.css').read_text(encoding='utf-8')}</style>")
        times = page.evaluate(DRAWN, [address, content])
        browser.close()
    return times


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=200, help="of the run that is watched")
    arguments = parser.parse_args()

    notes = []
    peers = {"here": "here()", "here, 100 times as long a run": "here(100 * N)", "a new figure": "new_figure()"}
    blocks = [f"import sys; sys.path[:0] = {sys.path!r}", SETUP.format(points=arguments.points), OURS, NEW_FIGURE]
    for name, block in {"livelossplot": LIVELOSSPLOT, "fastprogress": FASTPROGRESS}.items():
        try:
            __import__(name)
        except ImportError:
            notes.append(f"Without {name}, which is not installed here: `make bench` installs it.")
            continue
        blocks.append(block)
        peers[name] = f"{name}()"
    times = {name: [] for name in peers}
    with Kernel() as kernel:
        for block in ("%matplotlib inline", *blocks):
            kernel.run(block)
        for expression in peers.values():  # everything is loaded and drawn once
            kernel.result(expression)
        kernel.run(CONTENT)
        drawn = in_browser(kernel.result("content"))
        for _ in range(arguments.rounds):
            for name, expression in peers.items():
                times[name] += kernel.result(expression)
    medians = {name: statistics.median(took) for name, took in times.items()}
    rows = [
        {"a frame": name, "time": f"{seconds * 1e3:.1f} ms", "beside here": f"{seconds / medians['here']:.2f}"}
        for name, seconds in medians.items()
    ]
    if drawn is None:
        notes.append("Without the browser's part, which needs playwright and a Chromium.")
    else:
        rows.append({"a frame": "here, then in the browser", "time": f"{min(drawn) * 1e3:.1f} ms", "beside here": ""})

    with Kernel() as kernel:
        kernel.run(blocks[0])
        start = time.perf_counter()
        frames, drawing, seconds, opening, leaving = json.loads(kernel.run(WATCHED % arguments.steps).rpartition("RESULT ")[2])
        assert time.perf_counter() - start >= seconds
    rows += [
        {"watching a run": f"frames in {arguments.steps} steps of tiny, {seconds:.0f} s", "value": frames},
        {"watching a run": "share of the time that went into them", "value": f"{drawing / seconds:.1%}"},
        {"watching a run": "before the first step, to open the plot", "value": f"{opening:.2f} s"},
        {"watching a run": "after the last step, to leave the picture that stays", "value": f"{leaving:.2f} s"},
    ]
    report.show(rows, arguments.json, notes=notes)


if __name__ == "__main__":
    main()
