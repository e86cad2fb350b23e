"""The review page shows what was found, in one file, whatever the names hold, and its decisions come back."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from pomona import audit_page
from pomona.audit_page import N_SHOWN, write_audit_page
from pomona.class_tree import ClassTree
from pomona.clean_list import plan_clean
from pomona.dataset import Dataset, Photo, Skipped, load_dataset
from pomona.decisions import Decision, read_decisions
from pomona.errors import StorageError
from pomona.evaluation import Metric
from pomona.findings import CHECKS, Audit, Finding, Nearest, Remark, SplitGap, sort_findings

HOSTILE = "</script ><script>alert(\"1\")</script><!-- & 'x' {{ 7 }} \u202eabc \U0001f34b\u2028"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def fruit(tmp_path: Path) -> Dataset:
    """Photos of three classes, six each, of one tone each."""
    for c, kind in enumerate(["Apple", "Citrus/Lemon", '柠檬, "x"']):
        for i in range(6):
            path = tmp_path / "fruit" / kind / f"{i}, 'a\".png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 60, 3), 80 * c + i, np.uint8)).save(path)
    return load_dataset(tmp_path / "fruit")


def _audit(dataset: Dataset) -> Audit:
    """Something of everything."""
    names = [photo.name for photo in dataset.photos]
    classes = dataset.tree.names
    findings = [
        Finding(names[0], "wrong_label", 0.1, True, "looks like another", suggested=classes[1]),
        Finding(names[0], "blurry", 0.2, True, "sharpness 0.1"),
        Finding(names[1], "exact_duplicate", 0.0, True, "same bytes", other=names[2]),
        Finding(names[3], "conflicting_label", 0.0, True, "same pixels", other=names[9]),
        Finding(names[4], "outlier", 0.3, True, "far"),
        Finding(names[5], "blurry", 0.9, False, "not that much"),
        Finding(names[6], "gps", 0.5, False, "a place"),
        Finding("broken.jpg", "unusable", 0.0, True, "cut short"),
    ]
    photos = tuple(replace(photo, group="g" if i < 4 else photo.group) for i, photo in enumerate(dataset.photos))
    skipped = (Skipped("broken.jpg", Path("broken.jpg"), "truncated", "cut short"),)
    return Audit(
        replace(dataset, photos=photos, skipped=skipped),
        "full",
        sort_findings(findings),
        (Remark("balance", "More lemons would help.", False), Remark("shortcut", "The tray gives it away.", True)),
        {names[0]: Nearest(tuple(names[1:5]), tuple(names[6:10]))},
        SplitGap(Metric(0.98, 0.97, 0.99, 500), Metric(0.86, 0.8, 0.9, 500)),
    )


def _write(tmp_path: Path, audit: Audit, title: str = "") -> str:
    write_audit_page(tmp_path / "audit.html", audit, title=title)
    return (tmp_path / "audit.html").read_text(encoding="utf-8")


class _Page(HTMLParser):
    """What a browser would see: tags with their attributes, the text between them, and scripts apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in {"meta", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text += " " + " ".join(data.split())


def _data(page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_Page(page).scripts[0])
    return found


def test_the_page_says_what_matters_first(tmp_path: Path, fruit: Dataset) -> None:
    text = " ".join(_Page(_write(tmp_path, _audit(fruit), "my fruit")).text.split())
    assert "Audit of my fruit 5 photos deserve a look. 19 photos, 18 of them usable." in text
    assert "What matters most first: cannot be used (1), same photo, different labels (2)," in text
    assert "A random split would say 0.98; on photos of other groups it is right 0.86: 12 points are the split." in text
    assert text.index("The tray gives it away.") < text.index("More lemons would help.")
    assert "broken.jpg cut short" in text
    assert "Holds a place: 1 photo" in text


def test_nothing_found_is_said(tmp_path: Path, fruit: Dataset) -> None:
    page = _write(tmp_path, Audit(fruit, "quick"))
    text = " ".join(_Page(page).text.split())
    assert (
        "Nothing to decide. 18 photos, all usable. A quick check: whether labels are right was not looked at." in text
    )
    assert _data(page)["cards"] == []
    assert "points are the split" not in text


def test_a_split_that_promises_nothing_is_said(tmp_path: Path, fruit: Dataset) -> None:
    same = SplitGap(Metric(0.9, 0.8, 1, 50), Metric(0.91, 0.8, 1, 50))
    assert "right 0.91: it promises no more than holds." in _Page(_write(tmp_path, Audit(fruit, gap=same))).text


def test_a_photo_has_one_card_and_one_picture_however_much_was_found(tmp_path: Path, fruit: Dataset) -> None:
    page = _write(tmp_path, _audit(fruit))
    data = _data(page)
    names = [photo[0] for photo in data["photos"]]
    assert len(set(names)) == len(names)
    assert sorted(names[card["photo"]] for card in data["cards"]) == sorted(
        fruit.photos[i].name for i in (0, 1, 3, 4, 9)
    )
    pictures = [photo[4] for photo in data["photos"]]
    assert all(page.count(picture) == 1 for picture in pictures)
    for photo, picture in zip(data["photos"], pictures, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(picture)))
        tone = next(np.asarray(Image.open(one.path))[0, 0, 0] for one in fruit.photos if one.name == photo[0])
        assert shown.size == (60, 40)
        assert abs(int(np.asarray(shown)[0, 0, 0]) - int(tone)) <= 1
    first = next(card for card in data["cards"] if names[card["photo"]] == fruit.photos[0].name)
    assert [found[0] for found in first["found"]] == ["wrong_label", "blurry"]
    assert [names[i] for i in first["own"]] == [fruit.photos[i].name for i in (1, 2, 3)]
    assert [names[i] for i in first["suggested"]] == [fruit.photos[i].name for i in (6, 7, 8)]


def test_both_photos_of_a_conflict_can_be_decided_on(tmp_path: Path, fruit: Dataset) -> None:
    data = _data(_write(tmp_path, _audit(fruit)))
    pairs = {(c["photo"], f[2]) for c in data["cards"] for f in c["found"] if f[0] == "conflicting_label"}
    assert {(b, a) for a, b in pairs} == pairs
    assert len(pairs) == 2


def test_a_photo_that_is_gone_or_changed_has_no_picture(tmp_path: Path, fruit: Dataset) -> None:
    audit = _audit(fruit)
    fruit.photos[0].path.unlink()
    fruit.photos[1].path.write_bytes(b"other")
    data = _data(_write(tmp_path, audit))
    missing = {photo[0] for photo in data["photos"] if not photo[4]}
    assert missing == {fruit.photos[0].name, fruit.photos[1].name}


def _many(n_photos: int, checks: tuple[str, ...]) -> Audit:
    photos = tuple(
        Photo(Path("/nowhere") / f"{i}.jpg", f"{i:064x}", i % 2, f"{i}", None, f"{i}.jpg") for i in range(n_photos)
    )
    findings = [Finding(p.name, check, i / n_photos, True, "r") for check in checks for i, p in enumerate(photos)]
    tree = ClassTree.from_paths(["A", "B"])
    return Audit(Dataset(photos, tree, (), 0, Path("/nowhere")), "full", sort_findings(findings))


def test_thousands_of_findings_leave_the_worst(tmp_path: Path) -> None:
    data = _data(_write(tmp_path, _many(1000, ("blurry", "dark", "light", "odd_size", "outlier"))))
    assert len(data["cards"]) == N_SHOWN
    assert {photo[0] for photo in data["photos"]} == {f"{i}.jpg" for i in range(N_SHOWN)}
    assert data["counts"]["blurry"] == 1000


def test_pictures_stop_where_the_page_is_full(tmp_path: Path, fruit: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _data(_write(tmp_path, _audit(fruit)))
    sizes = [len(photo[4]) for photo in whole["photos"]]
    monkeypatch.setattr(audit_page, "_PICTURE_BYTES", sum(sizes) // 2)
    data = _data(_write(tmp_path, _audit(fruit)))
    assert 0 < sum(len(photo[4]) for photo in data["photos"]) <= sum(sizes) // 2
    assert len(data["photos"]) == len(sizes)


def test_every_text_is_escaped(tmp_path: Path, fruit: Dataset) -> None:
    def name_all(text: str) -> str:
        photos = tuple(replace(photo, name=f"{text}{i}", group="g") for i, photo in enumerate(fruit.photos))
        names = tuple(f"{text}{c}" for c in range(3))
        dataset = replace(fruit, photos=photos, tree=ClassTree(names, tuple((name,) for name in names)), shown=text)
        findings = [
            Finding(f"{text}{i}", check, 0.5, True, text, f"{text}1", names[0]) for i in (0, 2) for check in CHECKS
        ]
        findings += [Finding(text, "unusable", 0, True, text), Finding(f"{text}5", "gps", 0.5, False, text)]
        return _write(tmp_path, Audit(dataset, "full", sort_findings(findings), (Remark("balance", text, True),)))

    page, plain = _Page(name_all(HOSTILE)), _Page(name_all("plain"))
    assert page.tags[:3] == plain.tags[:3]
    assert [(tag, sorted(found)) for tag, found in page.tags] == [(tag, sorted(found)) for tag, found in plain.tags]
    assert page.text.count(" ".join(HOSTILE.split())) == plain.text.count("plain") > 5
    assert json.loads(page.scripts[0])["photos"][0][0] == f"{HOSTILE}0"


def test_the_policy_admits_the_one_script_and_nothing_from_outside(tmp_path: Path, fruit: Dataset) -> None:
    page = _write(tmp_path, _audit(fruit))
    seen = _Page(page)
    assert seen.open == []
    assert not re.search(r"https?://|@import|url\(|innerHTML|eval\(", page)
    for tag, found in seen.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not [key for key in found if key.startswith("on") or key in {"src", "href"}]
    policy = next(found["content"] for _, found in seen.tags if found.get("http-equiv")) or ""
    digest = base64.b64encode(hashlib.sha256(seen.scripts[1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_only_an_earlier_page_is_replaced(tmp_path: Path, fruit: Dataset) -> None:
    _write(tmp_path, Audit(fruit))
    _write(tmp_path, Audit(fruit), "again")
    for content in (b"<!doctype html><title>mine</title>", b"\x89PNG"):
        (tmp_path / "audit.html").write_bytes(content)
        with pytest.raises(StorageError, match="move it or name another place"):
            write_audit_page(tmp_path / "audit.html", Audit(fruit))
        assert (tmp_path / "audit.html").read_bytes() == content


def test_a_title_that_is_no_text_is_written(tmp_path: Path, fruit: Dataset) -> None:
    assert "bad \\udcff name" in _write(tmp_path, Audit(fruit), "bad \udcff name")


# --- in a browser ---------------------------------------------------------------------------------------------------


def _browse(tmp_path: Path, page: str, script: str) -> Any:
    """Run the page with a second script, which calls `done` with what it saw, and give that back."""
    if BROWSER is None:
        pytest.skip("no chromium on PATH, so the script of the page cannot be run")
    hook = (
        "const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));"
        "const all = (css) => [...document.querySelectorAll(css)];"
        "const done = (value) => { const out = document.createElement('pre'); out.id = 'seen';"
        "out.textContent = encodeURIComponent(JSON.stringify(value)); document.body.append(out); };"
        f"(async () => {{ try {{ {script} }} catch (error) {{ done(String(error.stack)); }} }})();"
    )
    digest = base64.b64encode(hashlib.sha256(hook.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    (tmp_path / "hooked.html").write_text(page.replace("</body>", f"<script>{hook}</script></body>"), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", (tmp_path / "hooked.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, timeout=300, check=True).stdout.decode()
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    return json.loads(unquote(html.unescape(found[1])))


_EXPORT = """
const seen = new Promise((resolve) => {
  URL.createObjectURL = (blob) => { blob.arrayBuffer().then(resolve); return "#"; };
});
document.getElementById("export").click();
done([...new Uint8Array(await seen)]);
"""
_PRESS = """
const press = (key) => {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
};
"""


def test_decisions_leave_the_browser_and_come_back(tmp_path: Path, fruit: Dataset) -> None:
    audit = _audit(fruit)
    page = _write(tmp_path, audit)
    script = (
        _PRESS
        + """
        const card = (check) => all(".card").find((one) => one.textContent.includes(check));
        card("Label may be wrong").querySelector("[value=relabel]").click();
        card("Same file twice").focus(); press("2");
        const input = card("Unlike its class").querySelector(".relabel");
        card("Unlike its class").querySelector("[value=relabel]").click();
        input.value = "New/\u68a8, \\"x\\""; input.dispatchEvent(new Event("input"));
        all(".card")[1].focus(); press("1");
        """
        + _EXPORT
    )
    content = bytes(_browse(tmp_path, page, script))
    assert content.startswith(b"\xef\xbb\xbf")
    (tmp_path / "decisions.csv").write_bytes(content)
    photos = audit.dataset.photos
    decisions = read_decisions(tmp_path / "decisions.csv", audit.dataset)
    assert set(decisions) == {
        Decision(photos[0].name, photos[0].sha256, "relabel", "Citrus/Lemon"),
        Decision(photos[1].name, photos[1].sha256, "drop"),
        Decision(photos[4].name, photos[4].sha256, "relabel", 'New/梨, "x"'),
        Decision(photos[9].name, photos[9].sha256, "keep"),
    }
    plan = plan_clean(audit, decisions)
    assert {one.photo.name for one in plan.dropped} == {photos[1].name, photos[3].name}
    assert plan.new_classes == ('New/梨, "x"',)


def test_closing_the_tab_loses_nothing_and_an_import_adds(tmp_path: Path, fruit: Dataset) -> None:
    page = _write(tmp_path, _audit(fruit))
    _browse(tmp_path, page, "all('.card [value=drop]')[0].click(); done(1);")
    row = f'"other, ""x"".jpg";{"f" * 64};keep;""\\r\\n'
    script = f"""
    const file = new File(["\\ufefffile_name;sha256;decision;label\\r\\n{row.replace('"', chr(92) + '"')}"], "d.csv");
    const transfer = new DataTransfer(); transfer.items.add(file);
    const input = document.getElementById("import");
    input.files = transfer.files; input.dispatchEvent(new Event("change")); await wait(200);
    {_EXPORT}
    """
    lines = bytes(_browse(tmp_path, page, script)).decode("utf-8-sig").splitlines()
    assert [line.split(",")[-2] for line in lines] == ["decision", "drop", "keep"]
    assert lines[2] == f'"other, ""x"".jpg",{"f" * 64},keep,'


def test_a_browser_that_keeps_nothing_is_said(tmp_path: Path, fruit: Dataset) -> None:
    page = _write(tmp_path, _audit(fruit))
    script = """
    Object.defineProperty(window, "localStorage", { get() { throw new Error("denied"); } });
    all(".card [value=keep]")[0].click();
    done(document.getElementById("status").textContent);
    """
    assert "1 decided, 4 open." in (text := _browse(tmp_path, page, script))
    assert "export before you close it" in text


def test_filters_and_keys(tmp_path: Path, fruit: Dataset) -> None:
    page = _write(tmp_path, _audit(fruit))
    script = (
        _PRESS
        + """
        const seen = {};
        const n = () => all(".card").length;
        const set = (id, value) => {
          const field = document.getElementById(id);
          field.value = value;
          field.dispatchEvent(new Event("input"));
        };
        seen.all = n();
        seen.chips = all("#checks button").map((chip) => chip.textContent);
        all("#checks button").find((chip) => chip.textContent.startsWith("Blurred")).click(); seen.blurred = n();
        all("#checks button")[0].click();
        document.body.focus(); press("j"); seen.first = document.activeElement === all(".card")[0];
        press("1"); press("2"); press("k"); press("0");
        seen.third = document.activeElement === all(".card")[1];
        set("state", "done"); seen.done = n(); set("state", "open"); seen.open = n(); set("state", "");
        set("search", "unlike FAR"); seen.search = n(); set("search", "nothing at all"); seen.none = n();
        set("search", "");
        set("class", "1"); seen.lemon = n();
        seen.gallery = all(".beside img").length;
        seen.broken = all("img").filter((img) => img.complete && !img.naturalWidth).length;
        seen.groups = all(".strip img").length;
        done(seen);
        """
    )
    seen = _browse(tmp_path, page, script)
    assert seen.pop("chips")[:2] == ["All5", "Same photo, different labels2"]
    assert seen == {
        "all": 5, "blurred": 1, "first": True, "third": True, "done": 1, "open": 4, "search": 1, "none": 0,
        "lemon": 2, "gallery": 6, "broken": 0, "groups": 4,
    }  # fmt: skip


def test_thousands_of_cards_are_shown_bit_by_bit(tmp_path: Path) -> None:
    page = _write(tmp_path, _many(1000, ("blurry",)))
    script = """
    const first = all(".card").length;
    window.dispatchEvent(new Event("beforeprint"));
    done([first, all(".card").length, document.getElementById("told").textContent]);
    """
    first, last, told = _browse(tmp_path, page, script)
    assert first < last == N_SHOWN
    assert told == f"{N_SHOWN} photos."


def test_hostile_names_stay_text_in_the_browser(tmp_path: Path, fruit: Dataset) -> None:
    photos = (replace(fruit.photos[0], name=HOSTILE), *fruit.photos[1:])
    tree = ClassTree((HOSTILE, *fruit.tree.names[1:]), ((HOSTILE,), *fruit.tree.paths[1:]))
    findings = (Finding(HOSTILE, "outlier", 0.1, True, HOSTILE),)
    page = _write(tmp_path, Audit(replace(fruit, photos=photos, tree=tree), "full", findings))
    seen = _browse(
        tmp_path, page, "done([all('script').length, all('.card')[0].textContent, all('.card')[0].ariaLabel]);"
    )
    assert seen[0] == 3
    assert seen[1].count(HOSTILE) >= 2
    assert seen[2] == HOSTILE
