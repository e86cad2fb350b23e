"""The page in a real browser: as a folder on any static server, and from the service, where it teaches, too."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from pomona.errors import MissingPackageError, StorageError
from pomona.export.browser import write_web
from pomona.export.browser_runner import CHROMIUM_ARGUMENTS, find_chromium, say_missing, serve_folder
from pomona.export.web_runtime import load_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pomona.bundle import Bundle
    from pomona.training import TrainResult

TOKEN = "a-token-for-tests"
START_S = 60
WAIT_MS = 60_000


class Shop(NamedTuple):
    """What a test looks at: a page that is open, where it is, and what it complained of."""

    page: Any
    address: str
    complaints: list[str]


# --- what is needed -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runtime() -> Path | None:
    """Where the runtime is; it is fetched once for all tests where nobody says."""
    named = os.environ.get("POMONA_WEB_RUNTIME")
    try:
        load_runtime(Path(named) if named else None)
    except (MissingPackageError, StorageError) as error:
        pytest.skip(f"the browser's runtime is not here: {error}; or name it in POMONA_WEB_RUNTIME")
    return Path(named) if named else None


@pytest.fixture(scope="module")
def fruit(promising: TrainResult) -> Path:
    """Photos of five kinds, in folders."""
    return promising.bundle.folder.parent / "fruit"


@pytest.fixture(scope="module")
def photos(fruit: Path) -> list[Path]:
    """The same, in order."""
    return sorted(fruit.rglob("*.jpg"))


@pytest.fixture(scope="module")
def plain(fruit: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A recogniser on them in float32, which every runtime computes alike, as a machine that prefers it makes."""
    from pomona import training
    from pomona.effort import Machine
    from pomona.training import TrainOptions, train

    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POMONA_CACHE", str(folder / "cache"))
        patch.setattr(training, "measure_machine", lambda _n_workers: Machine(1.0, 9.0, 1.0))
        options = TrainOptions(data=fruit, output=folder / "run", effort="instant", imgsz=64, promise=0.8)
        bundle = train(options).bundle
    assert bundle.manifest.embedding.precision == "f32"
    return bundle


@pytest.fixture(scope="module")
def film(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the camera sees: one of the photos, as raw video."""
    size = (320, 240)
    planes = Image.open(photos[0]).convert("YCbCr").resize(size).split()
    half = [plane.resize((size[0] // 2, size[1] // 2)).tobytes() for plane in planes[1:]]
    frame = b"FRAME\n" + planes[0].tobytes() + b"".join(half)
    path = tmp_path_factory.mktemp("film") / "camera.y4m"
    path.write_bytes(b"YUV4MPEG2 W320 H240 F10:1 Ip A1:1 C420jpeg\n" + frame * 5)
    return path


@pytest.fixture(scope="module")
def browser(film: Path) -> Iterator[Any]:
    if missing := say_missing():
        pytest.skip(f"a page cannot be looked at: {missing}")
    from playwright.sync_api import sync_playwright

    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    arguments = [*CHROMIUM_ARGUMENTS, *camera, f"--use-file-for-fake-video-capture={film}"]
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        yield found
        found.close()


@pytest.fixture(scope="module")
def exported(plain: Bundle, runtime: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as a folder, below the root of a server, as on a shared web space."""
    root = tmp_path_factory.mktemp("web")
    folder = root / "some where" / "fruit"
    folder.mkdir(parents=True)
    write_web(plain, folder, name="fruit <b>&amp;", runtime=runtime)
    return root


@contextlib.contextmanager
def open_shop(browser: Any, address: str, **options: Any) -> Iterator[Shop]:
    """A fresh window on a page; whatever it complains of or asks of another host fails the test."""
    complaints: list[str] = []
    context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1280, "height": 900}, **options})
    try:
        context.grant_permissions(["camera", "clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        origin = re.match(r"https?://[^/]+/", address)
        assert origin
        page.on("console", lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))

        def look(request: Any) -> None:
            if not request.url.startswith((origin[0], "blob:", "data:")):
                complaints.append(f"asked {request.url}")

        context.on("request", look)
        page.goto(address)
        page.locator("html[data-ready]").wait_for()
        yield Shop(page, address, complaints)
        assert complaints == []
    finally:
        context.close()


@pytest.fixture(scope="module")
def static(exported: Path) -> Iterator[str]:
    with serve_folder(exported) as address:
        yield f"{address}some%20where/fruit/"


@pytest.fixture(scope="module")
def desk(browser: Any, static: str) -> Iterator[Shop]:
    """A window on the exported page for many tests: loading the recogniser takes longer than most of them."""
    with open_shop(browser, static) as found:
        yield found


@pytest.fixture
def shop(desk: Shop) -> Iterator[Shop]:
    desk.page.evaluate(CLEAN)
    yield desk
    complaints = desk.complaints.copy()
    desk.complaints.clear()
    assert complaints == []


CLEAN = """() => {
  document.querySelector("#stop").click();
  document.querySelector("#clear").click();
  document.querySelector("#table").tBodies[0].replaceChildren();
  document.querySelector("#batch").hidden = true;
  document.querySelector("[data-language=en]").click();
}"""


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as playwright_expect

    playwright_expect.set_options(timeout=WAIT_MS)
    return playwright_expect(locator)


def give(shop: Shop, *photos: Path) -> None:
    """Choose photos, and wait for their cards to be answered."""
    shop.page.locator("#files").set_input_files([str(photo) for photo in photos])
    expect(shop.page.locator("#cards > li")).to_have_count(len(photos))
    expect(shop.page.locator("#cards > li[aria-busy=true]")).to_have_count(0)


DROP = """async ([files]) => {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
  }
  for (const type of ["dragenter", "dragover", "drop"]) {
    const how = { dataTransfer: transfer, bubbles: true, cancelable: true };
    document.getElementById("give").dispatchEvent(new DragEvent(type, how));
  }
}"""

PASTE = DROP[: DROP.index("  for (const type")] + (
    'document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));\n}'
)


def encode(path: Path, name: str | None = None) -> list[str]:
    import base64

    return [name or path.name, base64.b64encode(path.read_bytes()).decode()]


# --- the exported page ----------------------------------------------------------------------------------------------


def test_a_photo_that_is_dropped_is_answered_as_the_bundle_answers(
    shop: Shop, plain: Bundle, photos: list[Path]
) -> None:
    shop.page.evaluate(DROP, [[encode(photos[0])]])
    card = shop.page.locator("#cards > li")
    expect(card.locator(".answer")).to_be_visible()
    wanted = next(plain.predict([photos[0]]))
    assert wanted.answer is not None
    assert card.locator(".answer > span").first.inner_text() == (wanted.answer.name_en or wanted.answer.label)
    bars = card.locator(".bars li")
    assert bars.first.locator(".name").inner_text() == (wanted.name_en or wanted.label)
    assert abs(float(bars.first.locator(".num").inner_text().rstrip("%")) / 100 - (wanted.score or 0)) <= 0.0015
    expect(shop.page.locator("#said")).to_contain_text(photos[0].name)


def test_what_speaks_for_an_answer_is_painted_over_the_photo(shop: Shop, photos: list[Path]) -> None:
    give(shop, photos[0])
    button = shop.page.get_by_role("button", name="Show why")
    assert shop.page.locator("canvas").count() == 0
    button.click()
    canvas = shop.page.get_by_role("img", name=re.compile("What the answer comes from"))
    expect(canvas).to_be_visible()
    painted = shop.page.wait_for_function(  # red somewhere: the map has arrived
        """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          for (let i = 0; i < data.length; i += 4) if (data[i] > data[i + 2] + 60) return true;
          return false;
        }""",
        arg=canvas.element_handle(),
    )
    assert painted.json_value()
    assert shop.page.get_by_role("button", name="Show why").get_attribute("aria-pressed") == "true"
    shop.page.get_by_role("button", name="Show why").click()
    assert shop.page.locator("canvas").count() == 0


def test_a_photo_is_pasted_and_taken_away(shop: Shop, photos: list[Path]) -> None:
    shop.page.evaluate(PASTE, [[encode(photos[1])]])
    expect(shop.page.locator("#cards .answer")).to_be_visible()
    shop.page.get_by_role("button", name=f"Remove {photos[1].name}").click()
    expect(shop.page.locator("#answers")).to_be_hidden()


def test_photos_that_cannot_be_used_say_why_and_the_others_are_answered(
    shop: Shop, photos: list[Path], tmp_path: Path
) -> None:
    whole = photos[0].read_bytes()
    bad = {"empty.jpg": b"", "a list.jpg": b"apples, pears", "half.jpg": whole[: len(whole) // 2]}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    give(shop, photos[0], *(tmp_path / name for name in bad), photos[1])
    texts = [card.inner_text() for card in shop.page.locator("#cards > li").all()]
    for text, reason in zip(texts[1:4], ("empty", "no photo", "cut short"), strict=True):
        assert "cannot be used" in text
        assert reason in text
    assert all("%" in texts[i] or "Unknown" in texts[i] for i in (0, 4))


def test_a_name_never_becomes_markup(shop: Shop, photos: list[Path]) -> None:
    name = "<img src=x onerror=alert(1)>.jpg"
    shop.page.evaluate(DROP, [[encode(photos[0], name)]])
    expect(shop.page.locator("#cards .answer")).to_be_visible()
    assert shop.page.locator(".file").inner_text() == name
    assert shop.page.locator("#model-name").inner_text() == "fruit <b>&amp;"


def test_the_camera_is_answered_again_and_again_until_it_is_stopped(shop: Shop) -> None:
    page = shop.page
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator("#live .answer")).to_be_visible()
    expect(page.locator("#pace")).to_contain_text("answers a second")
    page.get_by_role("button", name="Keep this picture").click()
    expect(page.locator("#cards .answer")).to_be_visible()
    assert (
        page.locator("#live .answer > span").first.inner_text()
        == page.locator("#cards .answer > span").first.inner_text()
    )
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#camera")).to_be_hidden()
    assert page.evaluate("document.getElementById('video').srcObject") is None
    expect(page.get_by_role("button", name="Use the camera")).to_be_focused()


def test_the_language_changes_everything_and_is_remembered(shop: Shop, photos: list[Path]) -> None:
    page = shop.page
    give(shop, photos[0])
    english = page.locator("body").inner_text()
    page.get_by_role("button", name="中文").click()
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")
    chinese = page.locator("body").inner_text()
    words = {one.strip() for one in english.splitlines() if re.search("[a-z]{3}", one)}
    kept = {
        one for one in words & {line.strip() for line in chinese.splitlines()} if one not in {"English", photos[0].name}
    }
    assert {one for one in kept if "fruit <b>" not in one} == set()
    page.reload()
    page.locator("html[data-ready]").wait_for()
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    assert page.locator("[data-language=zh]").get_attribute("aria-pressed") == "true"
    assert page.locator("h1").inner_text().startswith("给它看一张照片。它认得")


@pytest.fixture
def crate(photos: list[Path], tmp_path: Path) -> Path:
    """A folder of photos in folders, with names that tables stumble over, a broken one and other files."""
    folder = tmp_path / "crate"
    (folder / "inner").mkdir(parents=True)
    for i, photo in enumerate(photos[::12]):
        (folder / "inner" / f"{i}, {photo.name}").write_bytes(photo.read_bytes())
    (folder / "=1+1.jpg").write_bytes(photos[0].read_bytes())
    (folder / "cut.jpg").write_bytes(photos[0].read_bytes()[:300])
    (folder / "notes.txt").write_text("not a photo")
    return folder


def read_table(shop: Shop) -> list[dict[str, str]]:
    with shop.page.expect_download() as download:
        shop.page.get_by_role("button", name="Download CSV").click()
    content = Path(download.value.path()).read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def test_a_folder_becomes_a_table_that_can_be_sorted_and_downloaded(
    shop: Shop, crate: Path, photos: list[Path], plain: Bundle
) -> None:
    page = shop.page
    n_photos = len(photos[::12]) + 2
    page.locator("#folder").set_input_files(str(crate))
    expect(page.locator("#table tbody tr")).to_have_count(n_photos)
    expect(page.locator("#batch-rest")).to_contain_text("1 that cannot be used")
    expect(page.locator("#batch-rest")).to_contain_text("1 other file was left out")
    rows = read_table(shop)
    assert len(rows) == n_photos
    assert [row["file"] for row in rows if "1+1" in row["file"]] == ["crate/=1+1.jpg"]
    assert "truncated" in next(row["error"] for row in rows if "cut" in row["file"]) or next(
        row["error"] for row in rows if "cut" in row["file"]
    )
    for row in rows:
        if "inner" in row["file"]:
            wanted = next(plain.predict([crate.parent / row["file"]]))
            assert row["label"] == wanted.label
            assert abs(float(row["score"]) - (wanted.score or 0)) <= 1e-3
    page.get_by_role("button", name="Sureness").click()
    assert page.locator("[data-column=score]").get_attribute("aria-sort") == "descending"
    shares = [float(text.rstrip("%")) for text in page.locator("#table tbody td.num").all_inner_texts() if text]
    assert shares == sorted(shares, reverse=True)
    page.locator("#table tbody button").first.click()
    expect(page.locator("#cards .answer")).to_be_visible()


def test_a_table_can_be_cancelled_and_keeps_what_it_has(shop: Shop, photos: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    for i in range(60):
        Image.fromarray(np.roll(noise, i, 0)).save(folder / f"{i}.jpg", quality=70)
    shop.page.locator("#folder").set_input_files(str(folder))
    shop.page.locator("#table tbody tr").first.wait_for()
    expect(shop.page.locator("#batch-text")).to_contain_text("left")
    shop.page.get_by_role("button", name="Cancel").click()
    expect(shop.page.locator("#batch-text")).to_contain_text("Cancelled after")
    n_rows = shop.page.locator("#table tbody tr").count()
    assert 0 < n_rows < 60
    assert len(read_table(shop)) == n_rows


def test_everything_is_reached_by_the_keyboard(shop: Shop, photos: list[Path]) -> None:
    page = shop.page
    give(shop, photos[0])
    page.evaluate("document.querySelector('.skip').focus()")
    seen = ["Skip to the page"]
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.innerText")
        if page.evaluate("document.activeElement === document.body") or name in seen:
            break
        seen.append(name)
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none", f"no focus to be seen on {name}"
    assert seen[:6] == ["Skip to the page", "English", "中文", "choose", "open-camera", "choose-folder"]
    assert {"Show why", "clear", "×", "What it knows"} <= set(seen)


def test_each_control_has_a_name_and_the_page_its_landmarks(shop: Shop, photos: list[Path]) -> None:
    give(shop, photos[0])
    tree = shop.page.locator("body").aria_snapshot()
    for role in ("main", "banner", 'heading "Show it a photo', 'heading "Answers"', 'region "Give it photos"'):
        assert role in tree, role
    assert not re.search(r"- (button|img|textbox|combobox)\s*$", tree, re.M), tree


def test_text_stands_out_from_its_ground(shop: Shop, photos: list[Path]) -> None:
    give(shop, photos[0])
    try:
        for scheme in ("light", "dark"):
            shop.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            assert shop.page.evaluate(CONTRAST) == [], scheme
    finally:
        shop.page.emulate_media(color_scheme="light")


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (level) => (level / 255 <= 0.03928 ? level / 255 / 12.92 : ((level / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const groundOf = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const ground = parse(getComputedStyle(one).backgroundColor);
      if (ground.length === 3 || ground[3] === 1) return ground;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const isText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!isText || !element.checkVisibility() || element.closest(".unseen, .skip, :disabled")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(style.color)), light(groundOf(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const isLarge = parseFloat(style.fontSize) >= 24;
    if (ratio < (isLarge ? 3 : 4.5)) faint.push(`${element.tagName} ${element.className}: ${ratio.toFixed(2)}`);
  }
  return faint;
}"""


def test_a_phone_needs_no_sideways_scrolling_and_speaks_its_language(
    browser: Any, static: str, photos: list[Path], crate: Path
) -> None:
    options = {"viewport": {"width": 320, "height": 700}, "is_mobile": True, "has_touch": True, "locale": "zh-CN"}
    with open_shop(browser, static, **options) as shop:
        page = shop.page
        assert page.locator("h1").inner_text().startswith("给它看一张照片。它认得")
        give(shop, *photos[:2])
        page.locator("#folder").set_input_files(str(crate))
        expect(page.locator("#table tbody tr")).to_have_count(len(photos[::12]) + 2)
        page.locator("#open-camera").click()
        expect(page.locator("#live .answer")).to_be_visible()
        for width in (320, 390, 760):
            page.set_viewport_size({"width": width, "height": 700})
            for language in ("English", "中文"):
                page.get_by_role("button", name=language).click()
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (width, language)
        page.locator("#stop").click()


def test_it_goes_on_when_its_server_is_gone(browser: Any, exported: Path, photos: list[Path]) -> None:
    with serve_folder(exported) as address:
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(f"{address}some%20where/fruit/")
        page.locator("html[data-ready]").wait_for()
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
    try:
        page.goto(f"{address}some%20where/fruit/")  # nobody listens there any more
        page.locator("html[data-ready]").wait_for()
        page.locator("#files").set_input_files(str(photos[0]))
        expect(page.locator("#cards .bars")).to_be_visible()
    finally:
        context.close()


DROP_CHOSEN = """() => {
  const transfer = new DataTransfer();
  for (const file of document.getElementById("chosen").files) transfer.items.add(file);
  const how = { dataTransfer: transfer, bubbles: true, cancelable: true };
  document.getElementById("give").dispatchEvent(new DragEvent("drop", how));
}"""


def test_a_photo_that_is_gone_when_its_turn_comes_fails_alone(shop: Shop, photos: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copy(photo, tmp_path / f"{i}.jpg")) for i, photo in enumerate(photos[:3])]
    shop.page.evaluate(
        "document.body.append(Object.assign(document.createElement('input'), {type: 'file', id: 'chosen', "
        "multiple: true}))"
    )
    shop.page.locator("#chosen").set_input_files([str(copy) for copy in copies])
    copies[1].unlink()
    shop.page.evaluate(DROP_CHOSEN)
    shop.page.evaluate("document.getElementById('chosen').remove()")
    expect(shop.page.locator("#cards > li")).to_have_count(3)
    expect(shop.page.locator("#cards > li[aria-busy=true]")).to_have_count(0)
    expect(shop.page.locator("#cards > li").nth(1)).to_contain_text("could not be read")
    assert shop.page.locator("#cards .bars").count() == 2
    gone = [text for text in shop.complaints if "ERR_FILE_NOT_FOUND" in text]
    shop.complaints[:] = [
        text for text in shop.complaints if text not in gone
    ]  # its picture, which is not there either


def test_a_newer_export_is_never_mixed_with_what_a_browser_kept(
    browser: Any, exported: Path, photos: list[Path], tmp_path: Path
) -> None:
    """As over plain http in a shop, where a page keeps nothing itself and the browser guesses how long a file lasts."""
    site = Path(shutil.copytree(exported, tmp_path / "site"))
    long_ago_s = time.time() - 1000 * 86400
    for path in site.rglob("*"):
        os.utime(path, (long_ago_s, long_ago_s))  # so old that a browser expects it to stay as it is
    context = browser.new_context(locale="en-GB", service_workers="block")
    try:
        with serve_folder(site) as address:
            page = context.new_page()
            page.set_default_timeout(WAIT_MS)
            page.goto(f"{address}some%20where/fruit/")
            page.locator("html[data-ready]").wait_for()
            model = next(site.rglob("model.json"))
            described = json.loads(model.read_text("utf-8"))
            model.write_text(json.dumps(described | {"name": "the newer one"}), "utf-8")
            page.goto("about:blank")
            page.goto(f"{address}some%20where/fruit/")
            expect(page.locator("#model-name")).to_have_text("the newer one")
            classes = [*described["classes"], described["classes"][0] | {"label": "one more"}]
            model.write_text(json.dumps(described | {"classes": classes}), "utf-8")
            page.goto("about:blank")
            page.goto(f"{address}some%20where/fruit/")
            page.locator("html[data-ready]").wait_for()
            page.locator("#files").set_input_files(str(photos[0]))
            expect(page.locator("#notice")).to_contain_text("its files are of two exports")
    finally:
        context.close()


def test_nothing_else_may_run_on_the_page(shop: Shop) -> None:
    done = shop.page.evaluate(
        """async () => {
          const tries = {};
          const script = document.createElement("script");
          script.textContent = "globalThis.inlineRan = true";
          document.head.append(script);
          tries.inline = globalThis.inlineRan === true;
          // Apart from this script, which the test's own tool exempts.
          tries.eval = await new Promise((resolve) => setTimeout(() => {
            try { resolve(globalThis.eval("1 + 1") === 2); } catch { resolve(false); }
          }));
          const isRefused = (error) => /Failed to fetch/.test(error.message);
          tries.fetch = await fetch("https://example.invalid/").then(() => true, (error) => !isRefused(error));
          return tries;
        }"""
    )
    assert done == {"inline": False, "eval": False, "fetch": False}
    told = [one for one in shop.complaints if "Content Security Policy" in one]
    assert len(told) >= 2
    shop.complaints.clear()


def test_a_folder_opened_as_a_file_says_what_to_do(exported: Path, browser: Any) -> None:
    page = browser.new_page()
    try:
        page.goto((exported / "some where" / "fruit" / "index.html").as_uri())
        assert "python -m http.server" in page.locator("#loading").inner_text()
    finally:
        page.close()


# --- the same page, served ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serve(run: Path, *flags: str) -> Iterator[str]:
    """`pomona serve` on a free port of this machine, as long as the block."""
    command = [sys.executable, "-m", "pomona", "serve", str(run), "--port", "0", "--workers", "1", *flags]
    environment = {**os.environ, "POMONA_TOKEN": TOKEN}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(START_S)
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            else:
                raise AssertionError(f"the service did not start: {''.join(lines)}")
            signal.alarm(0)
            yield f"{found[0]}/"
        finally:
            signal.alarm(0)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=START_S)
            process.kill()


@pytest.fixture(scope="module")
def served(promising: TrainResult) -> Iterator[str]:
    if importlib.util.find_spec("fastapi") is None:
        pytest.skip("fastapi is not installed: pip install 'pomona[serve]'")
    with serve(promising.bundle.folder) as address:
        yield address


def test_the_service_gives_the_same_page(browser: Any, served: str, photos: list[Path], crate: Path) -> None:
    with open_shop(browser, served) as shop:
        page = shop.page
        expect(page.locator("#place")).to_contain_text("server")
        give(shop, photos[0])
        expect(page.locator("#cards .nearest li")).to_have_count(3)
        page.get_by_role("button", name="Show why").click()
        expect(page.locator("canvas")).to_be_visible()
        assert page.locator("#teaching").is_hidden()
        page.get_by_role("button", name="中文").click()
        expect(page.locator("#answers-title")).to_have_text("答案")
        page.locator("#folder").set_input_files(str(crate))
        expect(page.locator("#table tbody tr")).to_have_count(len(photos[::12]) + 2)
        page.locator("#open-camera").click()
        expect(page.locator("#live .answer")).to_be_visible()
        page.locator("#stop").click()


def test_a_service_that_is_gone_is_said_to_be(browser: Any, promising: TrainResult, photos: list[Path]) -> None:
    with serve(promising.bundle.folder) as address:
        context = browser.new_context(locale="en-GB")
        page = context.new_page()
        page.goto(address)
        page.locator("html[data-ready]").wait_for()
    try:
        page.locator("#files").set_input_files(str(photos[0]))
        expect(page.locator("#notice")).to_contain_text("cannot be reached")
        expect(page.locator("#answers")).to_be_hidden()
    finally:
        context.close()


@pytest.fixture
def pupil(promising: TrainResult, tmp_path: Path) -> Path:
    """A copy of the run that may be taught."""
    import shutil

    if importlib.util.find_spec("pomona.service.teach") is None or importlib.util.find_spec("sqlalchemy") is None:
        pytest.skip("this service cannot be taught")
    return Path(shutil.copytree(promising.bundle.folder, tmp_path / "pupil"))


def test_a_class_is_taught_checked_used_and_taken_back(browser: Any, pupil: Path, strangers: Path) -> None:
    new = sorted(strangers.rglob("*.jpg"))[:4]
    with serve(pupil, "--teach") as address, open_shop(browser, address) as shop:
        page = shop.page
        before = page.locator("#knows").inner_text()
        give(shop, *new)
        page.locator("#cards summary").first.click()
        page.locator("#cards form input").first.fill("Strange fruit")
        page.locator("#cards form button").first.click()
        expect(page.locator("#notice")).to_contain_text("token")
        page.fill("#token", TOKEN)
        page.locator(".token button").click()
        page.locator(".versions").wait_for()
        for i in range(len(new)):
            card = page.locator("#cards > li").nth(i)
            if i:
                card.locator("summary").click()
            card.locator("form input").fill("Strange fruit")
            card.locator("form button").click()
            expect(card.locator(".taught")).to_be_visible()
        expect(page.locator(".waiting-photos li")).to_have_count(len(new))
        page.get_by_role("button", name="Check what this changes").click()
        expect(page.locator("#proposal")).to_contain_text("Strange fruit")
        assert page.locator("#proposal .figure").count() == 2
        page.get_by_role("button", name="Use it from now on").click()
        expect(page.locator(".versions tbody tr")).to_have_count(2)
        after = page.locator("#knows").inner_text()
        assert after != before
        page.get_by_role("button", name="Clear").click()
        give(shop, new[0])
        assert "Strange fruit" in page.locator("#cards > li").inner_text()
        page.locator(".versions [data-version='1']").click()
        expect(page.locator("#knows")).to_have_text(before)
        assert page.evaluate("localStorage.length") == 0, "a token must not outlive its tab"
        page.get_by_role("button", name="Remove", exact=False).first.wait_for()
    assert json.loads((pupil / "pomona.json").read_text("utf-8"))["classes"]
