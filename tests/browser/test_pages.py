import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow_server import serve
from PIL import Image

from vidflow.config.tracking_uri import default_uri, sqlite_file
from vidflow.records import EpochResult, Reject, StageManifest, TrialResult
from vidflow.report.figures import confusion_figure
from vidflow.report.page import Example, ReportData, TaskSection, render_page
from vidflow.tracking import FeatureData, RunsView, Tracker, find_page

pytestmark = pytest.mark.slow

CLASSES = ["left to right", "right to left", "growing", "shrinking", "<b>odd</b> name"]
CORES = {"gru": 0.7, "gated_transformer": 0.86, "mean": 0.4}
ORANGE, BLUE, NOTICE_GROUND = (220, 120, 40), (12, 84, 160), (255, 243, 214)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless_shell")


@dataclass
class Browser:
    """A headless Chromium that has never been started before and asks nobody outside for anything."""

    binary: str
    profile: Path

    def run(self, *arguments: str, seconds: float = 120) -> str:
        quiet = ("background-networking", "component-update", "sync", "quic", "gpu", "dev-shm-usage")
        command = [self.binary, "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={self.profile}"]
        # A sandboxed frame, in which MLflow shows a report, else has a process and a clock of its own.
        command += ["--disable-features=IsolateSandboxedIframes", *(f"--disable-{name}" for name in quiet), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=True)
        return done.stdout

    def screenshot(self, address: str, path: Path, *, width: int, height: int, virtual_seconds: int = 0) -> np.ndarray:
        wait = [f"--virtual-time-budget={virtual_seconds * 1000}"] if virtual_seconds else []
        size = f"--window-size={width},{height}"
        self.run(f"--screenshot={path}", size, "--hide-scrollbars", *wait, address)
        return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    binary = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path; apt-get install chromium")
    return Browser(binary, tmp_path / "profile")


def results() -> list[TrialResult]:
    trials = []
    for place, (core, top) in enumerate(CORES.items()):
        history = tuple(
            EpochResult(
                epoch=n,
                metrics={
                    "train/loss": 1.6 / n,
                    "val/loss": 1.7 / n + 0.05 * n,
                    "val/top1": top * (1 - 0.6**n),
                    "val/top1_low": top * (1 - 0.6**n) - 0.07,
                    "val/top1_high": top * (1 - 0.6**n) + 0.05,
                },
                seconds=2.5,
                is_best=True,
            )
            for n in range(1, 9)
        )
        trials.append(
            TrialResult(
                key=f"{place:016x}",
                settings={"core": core, "features": "base", "seed": 0},
                status="completed",
                history=history,
                num_parameters=1_000_000 * (place + 1),
                directory=Path("/runs") / core,
            )
        )
    return trials


def report(trials: list[TrialResult]) -> ReportData:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 200)
    predicted = np.where(rng.random(200) < 0.86, labels, rng.integers(0, 5, 200))
    frames = np.zeros((16, 96, 96, 3), np.uint8)
    for n in range(16):
        frames[n, 30:60, 4 * n : 4 * n + 30] = ORANGE
    return ReportData(
        title="Shapes in motion",
        config_yaml="root: runs/demo\n",
        sections=[
            TaskSection(
                task="classification",
                objective="val/top1",
                mode="max",
                trials=trials,
                class_names=CLASSES,
                examples=[Example(frames=frames, key="a1", label=CLASSES[0], predicted=CLASSES[1], probability=0.6)],
                confusion=np.array([[np.sum((labels == i) & (predicted == j)) for j in range(5)] for i in range(5)]),
            )
        ],
        stages=[
            StageManifest(
                stage="shard",
                fingerprint="00c0ffee00c0ffee",
                num_files=4,
                num_clips=200,
                num_rejects=1,
                num_bytes=9_000_000,
                worker_seconds=12.0,
                wall_seconds=12.0,
            )
        ],
        rejects=[Reject(key="", path="cut.mp4", stage="scan", reason="Truncated", message="ends after 1 of 2 s")],
        provenance={"vidflow": "0.1.0"},
        notices=["The encoder's weights are random."],
    )


def fill_store(uri: str, page: str) -> str:
    """Log a sweep with three trials and its report, as the pipeline does; return its run."""
    datasets = [FeatureData(name="base", identity="00c0ffee00c0ffee", place="/runs/features/base")]
    view = RunsView(metric="val/top1", curve="val/top1", mode="max", params=("core", "features", "seed"))
    with Tracker(sqlite_file(uri).parent, "5eed", uri=uri, experiment="browser test") as tracker:
        params = {"algorithm": "grid"}
        tracker.open_sweep(name="parent-sweep", params=params, config_yaml="root: x\n", view=view)
        for result in results():
            name = f"trial-{result.settings['core']}"
            run = tracker.open_trial(result.key, name=name, params=result.settings, datasets=datasets)
            tracker.log_file(run, confusion_figure(np.eye(5, dtype=int), CLASSES), "figures/confusion.png")
            tracker.finish(run, "FINISHED", history=result.history)
        tracker.log_file(tracker.sweep, page.encode(), "report.html")
        tracker.finish(tracker.sweep, "FINISHED")
        return tracker.ids().run_id


@dataclass
class Ui:
    """MLflow's UI on a store with a sweep and three trials."""

    start: str
    sweep_run_id: str

    def page(self, place: str) -> str:
        return f"{self.start.partition('#')[0]}#/{place}?workflowType=machine_learning"


@pytest.fixture
def ui(tmp_path: Path) -> Iterator[Ui]:
    uri = default_uri(tmp_path / "root")
    sweep = fill_store(uri, render_page(report(results())))
    with serve(uri) as server:
        page = find_page(uri, "browser test", f"http://127.0.0.1:{server.port}")
        assert page is not None
        yield Ui(page, sweep)


def num_colours(picture: np.ndarray) -> int:
    return len(np.unique(picture.reshape(-1, 3), axis=0))


def num_near(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    """Count pixels of a colour; JPEG and smoothing may be off by some levels."""
    return int((np.abs(picture.astype(int) - colour).max(-1) < 16).sum())


def shown_with(browser: Browser, address: str, words: str) -> str:
    """Return a page's elements once they hold `words`; a first visit also makes the server warm up."""
    shown = ""
    for _ in range(3):
        shown = browser.run("--dump-dom", "--virtual-time-budget=20000", address)
        if words in shown:
            break
    return shown


def test_the_ui_shows_a_sweep_its_trials_and_its_report(browser: Browser, ui: Ui, tmp_path: Path) -> None:
    # Experiment 0 is MLflow's own.
    runs = ui.start
    shown = shown_with(browser, runs, "parent-sweep")
    assert "browser test" in shown
    assert "parent-sweep" in shown
    assert "matching runs" in shown
    assert re.search(r"<strong>4</strong>|>4<|4 matching", shown)
    assert num_colours(browser.screenshot(runs, tmp_path / "runs.png", width=1500, height=900, virtual_seconds=20)) > 99

    sweep = ui.page(f"experiments/1/runs/{ui.sweep_run_id}")
    shown = shown_with(browser, sweep, "trial-gru")
    for core in CORES:
        assert f"trial-{core}" in shown
    browser.screenshot(sweep, tmp_path / "sweep.png", width=1500, height=900, virtual_seconds=20)

    artifacts = ui.page(f"experiments/1/runs/{ui.sweep_run_id}/artifacts/report.html")
    for seconds in (20, 60, 120):  # of the browser's own clock, which may outrun a busy machine
        picture = browser.screenshot(
            artifacts, tmp_path / "artifacts.png", width=1500, height=900, virtual_seconds=seconds
        )
        if num_near(picture, NOTICE_GROUND) > 2000:
            break
    assert num_near(picture, NOTICE_GROUND) > 2000  # the report itself is drawn, its notice first


@pytest.mark.parametrize("width", [1200, 500])
def test_the_report_is_drawn_whole(browser: Browser, tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_page(report(results())), encoding="utf-8")
    height = 4200 if width > 640 else 6500  # tables are stacked on narrow pages
    picture = browser.screenshot(path.as_uri(), tmp_path / f"report-{width}.png", width=width, height=height)
    shown = browser.run("--dump-dom", path.as_uri())
    assert "&lt;b&gt;odd&lt;/b&gt; name" in shown

    # The pictures have been drawn: the orange squares of the strip, and the dark blue of what was right.
    assert num_near(picture, ORANGE) > 1000
    assert num_near(picture, BLUE) > 1000
    # Nothing sticks out on the right: the page's ground, and nothing else, is along that edge.
    assert num_colours(picture[:, -4:]) == 1


MEASURE = """\
<body style="margin:0"><iframe id="page" src="{page}" style="border:0;width:{width}px;height:4000px"></iframe>
<pre id="found"></pre>
<script>
const numbers = text => {{
  const scale = text.startsWith("color(srgb") ? 255 : 1, [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
  return [r * scale, g * scale, b * scale, a];
}};
const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
page.onload = () => {{
  const view = page.contentWindow, doc = page.contentDocument, root = doc.documentElement;
  const own = node => numbers(view.getComputedStyle(node).backgroundColor);
  const ground = node => node ? over(own(node), ground(node.parentElement)) : [255, 255, 255, 1];
  const texts = doc.createTreeWalker(doc.body, NodeFilter.SHOW_TEXT);
  let worst = [99, ""];
  for (let text; text = texts.nextNode();) {{
    const box = text.parentElement;
    if (!text.data.trim() || !box.getClientRects().length || ["STYLE", "SOURCE"].includes(box.tagName)) continue;
    const [a, b] = [light(numbers(view.getComputedStyle(box).color)), light(ground(box))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < worst[0]) worst = [contrast, text.data.trim()];
  }}
  const images = [...doc.querySelectorAll("figure img")];
  const chosen = images.map(image => image.currentSrc.length > 99 && image.clientWidth);
  const cut = images.filter(image => image.clientWidth > root.clientWidth).length;
  found.textContent = JSON.stringify({{scroll: root.scrollWidth, width: root.clientWidth, worst, chosen, cut}});
}};
</script>
"""


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("is_dark", [False, True])
def test_the_report_is_readable_on_a_telephone_and_in_the_dark(
    browser: Browser, tmp_path: Path, width: int, is_dark: bool
) -> None:
    path, frame = tmp_path / "report.html", tmp_path / "frame.html"
    path.write_text(render_page(report(results())), encoding="utf-8")
    frame.write_text(MEASURE.format(page=path.as_uri(), width=width))
    # A window of Chromium has 500 pixels at least; a frame within it may be as narrow as a telephone.
    scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    options = [scheme, "--hide-scrollbars", "--allow-file-access-from-files", "--virtual-time-budget=9000"]
    shown = browser.run(*options, "--dump-dom", frame.as_uri())
    found = json.loads(html.unescape(shown.split('id="found">')[1].split("</pre>")[0]))
    assert found["scroll"] == found["width"] == width  # nothing to scroll sideways
    assert found["worst"][0] >= 4.5, found["worst"]  # the contrast that WCAG wants for text
    assert all(found["chosen"])
    assert found["cut"] == 0

    browser.run(*options, f"--screenshot={tmp_path / 'p.png'}", f"--window-size={max(width, 520)},4000", frame.as_uri())
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))[:, :width]
    ground = (20, 24, 28) if is_dark else (247, 247, 245)
    assert num_near(picture, ground) > 0.1 * picture.shape[0] * width
    # Figures too are drawn on the ground of the page.
    assert (picture.min(-1) > 235).mean() < 0.02 if is_dark else (picture.max(-1) < 40).mean() < 0.02


def test_the_report_can_be_printed(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_page(report(results())), encoding="utf-8")
    browser.run(f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer", path.as_uri())
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF-")
    assert printed.count(b"/Subtype /Image") >= 4  # curves, settings, confusion, one strip
