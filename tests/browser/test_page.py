"""The server's page in a browser."""

import base64
import io
import json
from urllib.request import Request, urlopen

import numpy as np
import pytest
from browser.conftest import DESKTOP, PHONE
from doubles.live_server import served
from doubles.until import until
from PIL import Image

pytestmark = pytest.mark.browser
SIZES = pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])

SAME_PIXELS = """async both => {
  const pixels = async url => {
    const image = new Image(); image.src = url; await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.width; canvas.height = image.height;
    const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
    return [...context.getImageData(0, 0, image.width, image.height).data].join();
  };
  return await pixels(both[0]) === await pixels(both[1]);
}"""


def said(page, text):
    """Wait until the page says so, or tells an error."""
    wanted = page.locator("#said", has_text=text)
    wanted.or_(page.locator("#wrong:visible")).first.wait_for()
    assert wanted.is_visible(), page.locator("#wrong").inner_text()


def ready(page):
    page.locator("#model", has_text="10 classes").wait_for()
    until(lambda: page.input_value("#class"))  # the last that the page sets by itself
    return page


def choose(page, text):
    page.fill("#class", text)
    page.locator("#classes li").first.wait_for()
    page.keyboard.press("Enter")


def draw(page, n=1, **fields):
    for name, value in {"n": n, **fields}.items():
        page.fill(f"#{name}", str(value))
    page.click("#go")


def of_the_api(address, **fields):
    request = Request(
        address + "/v1/images/generations", json.dumps(fields).encode(),
        {"content-type": "application/json"},
    )  # fmt: skip
    with urlopen(request, timeout=60) as answer:
        return [base64.b64decode(one["b64_json"]) for one in json.load(answer)["data"]]


def width_of(page):
    return page.evaluate("document.documentElement.scrollWidth")


def worst_of(page, axe):
    """axe-core's serious and critical findings."""
    page.evaluate(axe)
    found = page.evaluate("axe.run()")["violations"]
    return [
        (one["id"], one["nodes"][0]["html"])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@SIZES
def test_pictures_appear_part_by_part_and_are_the_apis(opened, server, viewport):
    address, _, gate = server
    page = ready(opened(viewport))
    choose(page, "3")
    with gate.hold():
        draw(page, n=2, seed=5)
        tiles = page.locator("#gallery li")
        seen = []
        for part in range(3):
            gate.let()
            page.locator("#said", has_text="drawn.").wait_for()
            pixels = tiles.nth(1).locator("img")
            until(lambda part=part, pixels=pixels: pixels.get_attribute("src") not in [None, *seen])
            seen.append(pixels.get_attribute("src"))
            tops = page.eval_on_selector_all(".edge", "all => all.map(one => one.style.top)")
            assert tops == [f"{25 * (part + 1)}%"] * 2
            assert page.locator("#gallery .veil").count() == 2
            assert page.locator("#gallery a").count() == 0
        gate.let()
        said(page, "2 pictures finished")
    assert page.locator("#gallery .veil").count() == 0
    assert width_of(page) == viewport["width"]
    expected = of_the_api(address, prompt="3", n=2, seed=5)
    for place in range(2):
        with page.expect_download() as download:
            tiles.nth(place).locator("a").click()
        assert download.value.suggested_filename.endswith(f"-seed5-{place}.png")
        content = download.value.path().read_bytes()
        assert content == expected[place]
        assert (
            json.loads(Image.open(io.BytesIO(content)).text["Description"])["sampling"]["seed"] == 5
        )


def test_stop_ends_the_drawing_on_the_server_too(opened, server):
    _, service, gate = server
    page = ready(opened())
    stopped = service.batcher.counts.stopped
    with gate.hold():
        draw(page, n=3)
        gate.let()
        said(page, "a quarter is drawn")
        page.click("#stop")
        said(page, "Stopped; 0 of 3 pictures finished")
    until(lambda: service.batcher.counts.stopped == stopped + 3)
    assert page.locator("#gallery article").count() == 0
    assert page.locator("#empty").is_visible()
    draw(page, n=1)
    said(page, "1 picture finished")


def test_the_settings_of_a_picture_are_used_again(opened):
    page = ready(opened())
    choose(page, "7")
    name = page.input_value("#class")
    draw(page, n=2, seed=2**64 - 1, guidance="1.5, 2" if page.locator("#each").is_visible() else 3)
    said(page, "2 pictures finished")
    assert page.input_value("#seed") == "0"  # the next one
    guidance = page.input_value("#guidance")
    page.uncheck("#next")
    choose(page, "1")
    draw(page, n=1, seed=1, guidance=1)
    said(page, "1 picture finished")
    assert page.locator("#gallery article").count() == 2
    page.get_by_role("button", name="number 1").click()
    shown = page.locator("#large-settings").inner_text().split()
    assert shown[shown.index("seed") + 1] == str(2**64 - 1)
    page.click("#large-again")
    found = {key: page.input_value(f"#{key}") for key in ("class", "n", "seed", "guidance")}
    assert found == {"class": name, "n": "1", "seed": str(2**64 - 1), "guidance": guidance}
    assert page.input_value("#first_image") == "1"
    first = page.locator("#gallery article").nth(1).locator("a").nth(1).get_attribute("href")
    page.click("#go")
    said(page, "1 picture finished")
    page.locator("#gallery article").nth(2).wait_for()
    again = page.locator("#gallery article").first.locator("a").get_attribute("href")
    assert page.evaluate(SAME_PIXELS, [first, again])


GIVE = """({target, event, field, type, file, text}) => {
  const data = new DataTransfer();
  if (text) data.setData("text/plain", text);
  if (file) {
    const bytes = Uint8Array.from(atob(file), one => one.charCodeAt(0));
    data.items.add(new File([bytes], "noise.png", {type: "image/png"}));
  }
  const options = {bubbles: true, cancelable: true, [field]: data};
  return document.querySelector(target).dispatchEvent(new window[type](event, options));
}"""


def give(page, event, target="body", **content):
    """Drop or paste a file or a text; whether the browser then does what it does by itself."""
    kind, field = {"paste": ("ClipboardEvent", "clipboardData")}.get(
        event, ("DragEvent", "dataTransfer")
    )
    return page.evaluate(
        GIVE, {"target": target, "event": event, "type": kind, "field": field, **content}
    )


def noise(size):
    """A PNG's bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "PNG")
    return picture.getvalue()


@SIZES
def test_a_dropped_picture_is_reconstructed_and_its_tokens_shown(opened, server, viewport):
    address, service, _ = server
    page = ready(opened(viewport))
    picture = noise(service.size)
    content = base64.b64encode(picture).decode()
    assert not give(page, "dragover", file=content) and not give(page, "drop", file=content)
    said(page, "noise.png: reconstructed")
    request = Request(address + "/v1/tokens", picture, {"content-type": "image/png"})
    with urlopen(request, timeout=60) as answer:
        tokens = json.load(answer)["tokens"]
    cells = page.locator("[role=gridcell]")
    assert cells.count() == len(tokens) * len(tokens[0])
    cells.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    ids = ", ".join(map(str, tokens[1][1]))
    assert page.locator(".tokens figcaption").inner_text() == f"Row 2, column 2: {ids}"
    assert page.locator(".pair .mark:visible").count() == 2
    shown = page.locator(".pair img").nth(1)
    assert shown.evaluate("image => image.naturalWidth") == service.size[1]
    assert width_of(page) == viewport["width"]


def test_a_pasted_picture_is_reconstructed_and_text_is_left_to_the_fields(opened, server):
    page = ready(opened())
    for event in ("dragover", "drop", "paste"):
        assert give(page, event, "#seed", text="7")
    assert page.locator("#wrong").is_hidden()
    give(page, "paste", file=base64.b64encode(noise(server[1].size)).decode())
    said(page, "noise.png: reconstructed")
    assert page.locator("#gallery article").count() == 1


def test_the_keyboard_alone_draws(opened):
    page = ready(opened())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "class"
    page.keyboard.press("ArrowDown")
    page.locator("#classes li[aria-selected=true]").wait_for()
    page.keyboard.press("ArrowDown")
    active = page.get_attribute("#class", "aria-activedescendant")
    assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    page.keyboard.press("Enter")
    assert page.get_attribute("#class", "aria-expanded") == "false"
    page.keyboard.press("Enter")  # as in any form
    said(page, "finished")
    for _ in range(40):
        page.keyboard.press("Tab")
        label = page.evaluate("document.activeElement.getAttribute('aria-label') ?? ''")
        if label.startswith("Look at"):
            break
    page.keyboard.press("Enter")
    assert page.locator("#large").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#large").is_hidden()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == label


def test_errors_are_one_line(opened, server):
    page = ready(opened())
    wrong = page.locator("#wrong")
    page.fill("#class", "no such class")
    page.click("#go")
    wrong.wait_for()
    assert "no such class" in wrong.inner_text()
    assert "\n" not in wrong.inner_text()
    choose(page, "1")
    draw(page, n=65)
    page.locator("#wrong", has_text="64").wait_for()
    draw(page, n=1, seed="x")
    page.locator("#wrong", has_text="Seed must be a whole number").wait_for()
    page.fill("#seed", "1")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no"})
    page.locator("#wrong", has_text="the picture").wait_for()
    page.context.set_offline(True)
    page.click("#go")
    page.locator("#wrong", has_text="The server does not answer").wait_for()
    page.context.set_offline(False)
    page.click("#go")
    said(page, "finished")
    assert wrong.is_hidden()


def test_a_key_is_asked_for_where_the_server_wants_one(opened, digits_engine):
    with served(digits_engine, api_keys=frozenset({"right"})) as (address, _):
        page = opened(address=address)
        page.locator("#key").wait_for()
        assert page.locator("#draw").is_hidden()
        page.fill("#key", "left")
        page.keyboard.press("Enter")
        page.locator("#key-form", has_text="API key").wait_for()
        page.locator("#wrong", has_text="API key").wait_for()
        page.fill("#key", "right")
        page.keyboard.press("Enter")
        ready(page)
        draw(page)
        said(page, "1 picture finished")
        page.reload()
        ready(page)
        assert page.locator("#key-form").is_hidden()


@SIZES
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, server, axe, viewport, colours):
    gate = server[2]
    page = ready(opened(viewport, color_scheme=colours, reduced_motion="reduce"))
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 20, 19)") == (colours == "dark")
    page.click("summary")
    assert worst_of(page, axe) == []
    with gate.hold():
        draw(page, n=2)
        gate.let()
        said(page, "a quarter is drawn")
        page.fill("#class", "")
        page.locator("#classes li").first.wait_for()
        assert worst_of(page, axe) == []
        gate.let(3)
        said(page, "finished")
    page.get_by_role("button", name="number 0").click()
    assert worst_of(page, axe) == []
    page.click("#large-tokens")
    said(page, "reconstructed")
    assert worst_of(page, axe) == []
    assert width_of(page) == viewport["width"]
