"""A model by curl and in a browser, through a real node."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import Browser, Page, expect

from examples.train import handwriting
from tests import models
from tests.node.browsing import browsing
from tests.node.harness import ServedNode, fetch

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLE = Path(__file__).parents[2] / "examples" / "hooks" / "digits"
EVIL = "<img src=x onerror=alert(1)>"
SHOUT = f"""
from tidegate.hooks import InvalidInput
INPUT = OUTPUT = "text"
def preprocess(request):
    import numpy as np
    if request.text == "evil":
        raise InvalidInput({EVIL!r})
    return np.full((1, 4), len(request.text), np.float32)
def postprocess(request, outputs):
    return request.text.upper() * int(request.parameters.get("times", 1))
"""
MIRROR = """
import io
import numpy as np
from PIL import ImageOps
INPUT, OUTPUT = "image", "bytes"
def preprocess(request):
    return np.zeros((1, 4), np.float32)
def postprocess(request, outputs):
    file = io.BytesIO()
    ImageOps.mirror(request.image()).save(file, "PNG")
    return file.getvalue()
"""
ANYTHING = """
import numpy as np
def preprocess(request):
    return np.zeros((1, 4), np.float32)
def postprocess(request, outputs):
    what = request.payload if request.tensors == {} else sorted(request.tensors)
    return {"kind": type(what).__name__, "size": len(what)}
"""

DROP = """async () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 30, height: 20 });
    canvas.getContext("2d").fillRect(0, 0, 10, 20);
    const blob = await new Promise((done) => canvas.toBlob(done));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([blob], "drawn.png", { type: "image/png" }));
    const said = { dataTransfer, bubbles: true, cancelable: true };
    document.querySelector("fieldset").dispatchEvent(new DragEvent("drop", said));
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ServedNode]:
    root = tmp_path_factory.mktemp("people")
    shutil.copytree(EXAMPLE, root / "digits")
    models.add_sub(root / "sum.onnx")
    for name, hooks in (("shout", SHOUT), ("mirror", MIRROR), ("anything", ANYTHING)):
        (root / name).mkdir()
        models.identity(root / name / "model.onnx")
        (root / name / "hooks.py").write_text(hooks)
    async with ServedNode(root) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with browsing() as found:
        yield found


@pytest.fixture
def digit(tmp_path: Path) -> tuple[Path, str]:
    """A picture of a digit, dark on bright paper, and which it is."""
    _, held_out = handwriting.load()
    ink = held_out.images[5][0]
    picture = Image.fromarray((255 - ink * (255 / 16)).clip(0, 255).astype(np.uint8))
    paper = Image.new("L", (220, 260), 255)
    paper.paste(picture.resize((160, 160), Image.Resampling.BICUBIC), (30, 50))
    paper.save(tmp_path / "my digit.png")
    return tmp_path / "my digit.png", str(held_out.digits[5])


async def curl(*arguments: object) -> tuple[int, str, bytes]:
    """Status, content type and body, as curl has them."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-w", "\n%{http_code} %{content_type}", *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0
    body, _, end = output.rpartition(b"\n")
    status, _, kind = end.decode().partition(" ")
    return int(status), kind, body


async def told(*arguments: object) -> Any:
    status, kind, body = await curl(*arguments)
    assert (status, kind) == (200, "application/json"), body
    return json.loads(body)


def url(node: ServedNode, model: str) -> str:
    return f"http://{node.target}/models/{model}"


async def test_curl_sends_a_picture_and_gets_labels(
    node: ServedNode, digit: tuple[Path, str]
) -> None:
    path, label = digit
    address = url(node, "digits")
    kind = "content-type: image/png"
    for arguments in (
        ("-F", f"data=@{path}", address),
        ("-F", f"image=@{path}", f"{address}/versions/1"),
        ("--data-binary", f"@{path}", "-H", kind, address),
    ):
        best, *_ = await told(*arguments)
        assert best["label"] == label
        assert best["score"] > 0.9
    blank = io.BytesIO()
    Image.new("L", (9, 9)).save(blank, "PNG")
    path.write_bytes(blank.getvalue())
    status, _, body = await curl("-F", f"data=@{path}", address)
    assert (status, json.loads(body)["error"][:15]) == (400, "there is no ink")


async def test_curl_sends_numbers(node: ServedNode, tmp_path: Path) -> None:
    address = url(node, "sum")
    np.save(tmp_path / "b.npy", np.array([[1, 1, 1, 1]]))
    for arguments in (
        ("-d", '{"a": [1, 2, 3, 4], "b": [[1, 1, 1, 1]]}', address),
        ("-F", "a=[1, 2, 3, 4]", "-F", f"b=@{tmp_path / 'b.npy'}", address),
        ("--json", '{"b": [1, 1, 1, 1], "a": [[1, 2, 3, 4]]}', address),
    ):
        found = await told(*arguments)
        assert (found["model"], found["version"]) == ("sum", "1")
        assert found["outputs"] == {"total": [[2, 3, 4, 5]], "difference": [[0, 1, 2, 3]]}


async def test_curl_sends_texts_and_anything(node: ServedNode) -> None:
    address = url(node, "shout")
    assert await told("--form-string", "data=;a\nb", address) == ";A\nB"
    assert await told("-d", "text=a%26b", f"{address}?times=2") == "A&BA&B"
    plain = await curl(
        "-d", "hi", "-H", "content-type: text/plain", "-H", "accept: text/plain", address
    )
    assert plain == (200, "text/plain; charset=utf-8", b"HI")
    address = url(node, "anything")
    assert await told("--json", "[1, 2]", address) == {"kind": "list", "size": 2}
    assert await told("-F", "x=abc", address) == {"kind": "str", "size": 3}
    assert await told("-F", "x=@-", address) == {"kind": "bytes", "size": 0}
    assert await told("-F", "x=1", "-F", "y=2", address) == {"kind": "list", "size": 2}


async def test_refusals(node: ServedNode, tmp_path: Path) -> None:
    address = url(node, "shout")
    for status, *arguments in (
        (415, "-d", "a text", address),
        (403, "-d", "text=a", "-H", "origin: http://example.org", address),
        (403, "-d", "text=a", "-H", "sec-fetch-site: cross-site", address),
        (404, "-d", "text=a", url(node, "none")),
        (404, "-d", "text=a", f"{address}/versions/7"),
        (404, address + "/infer"),
        (405, "-X", "DELETE", address),
        (405, "-X", "POST", f"http://{node.target}/models"),
        (400, "-F", "other=a", address),
        (400, "-X", "POST", address),
    ):
        found, kind, body = await curl(*arguments)
        assert (found, kind) == (status, "application/json"), arguments
        assert json.loads(body)["error"]
    same = await curl("-d", "text=a", "-H", f"origin: http://{node.target}", address)
    assert same[0] == 200
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(65 * 2**20)
    status, _, body = await curl("-F", f"data=@{large}", "-H", "expect:", address)
    assert (status, "larger than the limit" in json.loads(body)["error"]) == (413, True)


async def test_what_there_is(node: ServedNode) -> None:
    listed = await told(f"http://{node.target}/models")
    assert [model["model"] for model in listed] == [
        "anything", "digits", "mirror", "shout", "sum",
    ]  # fmt: skip
    assert {model["state"] for model in listed} == {"ready"}
    assert listed[1]["path"] == "/models/digits"
    about = await told(url(node, "digits"))
    assert about["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [1], "send": "an image"}
    ]
    status, kind, head = await curl("-I", url(node, "digits"))
    assert (status, kind, b"content-length" in head) == (200, "application/json", True)
    assert await told("-L", f"http://{node.target}") == listed
    metrics = await asyncio.to_thread(fetch, f"http://127.0.0.1:{node.admin_port}/metrics")
    assert b'protocol="plain-http-rest"' in metrics[1]


async def opened(browser: Browser, address: str, **options: Any) -> tuple[Page, list[str]]:
    """A page, and what it complained of or asked of others."""
    page = await browser.new_page(**options)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append("a dialog"))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    await page.goto(address)
    return page, complaints


async def test_the_form_takes_a_picture(
    node: ServedNode, browser: Browser, digit: tuple[Path, str]
) -> None:
    path, label = digit
    page, complaints = await opened(browser, f"http://{node.target}")
    await page.get_by_role("link", name="digits").click()
    await expect(page.get_by_role("heading", name="digits")).to_be_visible()
    await page.get_by_label("File").set_input_files(path)
    await expect(page.get_by_alt_text("The chosen image")).to_be_visible()
    await page.get_by_role("button", name="Ask the model").click()
    await expect(page.locator("#shown td").first).to_have_text(label)
    await expect(page.locator("#took")).to_contain_text("ms")
    command = shlex.split(await page.locator("#command").inner_text())
    assert command == ["curl", "-F", f"image=@{path.name}", url(node, "digits")]
    command[2] = f"image=@{path}"
    assert (await told(*command[1:]))[0]["label"] == label
    await page.get_by_role("button", name="Clear").click()
    await expect(page.get_by_alt_text("The chosen image")).to_be_hidden()
    assert complaints == []
    await page.close()


async def test_a_picture_is_dropped_and_one_comes_back(node: ServedNode, browser: Browser) -> None:
    page, complaints = await opened(browser, url(node, "mirror"), color_scheme="dark")
    await page.evaluate(DROP)
    await page.get_by_role("button", name="Ask the model").click()
    answer = page.get_by_alt_text("The model's answer")
    await expect(answer).to_be_visible()
    await expect(answer).to_have_js_property("naturalWidth", 30)
    assert complaints == []
    await page.close()


async def test_the_form_takes_texts_and_shows_errors(node: ServedNode, browser: Browser) -> None:
    page, complaints = await opened(browser, url(node, "shout") + "?times=2")
    text = page.get_by_label("Text")
    ask = page.get_by_role("button", name="Ask the model")
    await text.fill("it's\na text")
    await ask.click()
    await expect(page.locator("#shown pre")).to_have_text(json.dumps("IT'S\nA TEXT" * 2))
    command = shlex.split(await page.locator("#command").inner_text())
    assert await told(*command[1:]) == "IT'S\nA TEXT" * 2
    assert complaints == []
    await text.fill("evil")
    await ask.click()
    await expect(page.locator("#shown pre")).to_have_text(EVIL)
    await expect(page.locator("#took")).to_contain_text("400")
    assert all("400" in complaint for complaint in complaints)
    assert await page.locator("#shown img").count() == 0
    await page.close()


async def test_the_form_has_a_field_for_each_input(node: ServedNode, browser: Browser) -> None:
    small = {"width": 360, "height": 640}
    page, complaints = await opened(browser, url(node, "sum"), viewport=small)
    boxes = page.get_by_label("or JSON")
    await expect(boxes).to_have_count(2)
    await boxes.nth(0).fill("[1, 2, 3, 4]")
    await page.get_by_role("button", name="Ask the model").click()
    await expect(page.locator("#shown pre")).to_contain_text('"total": [\n      [1, 2, 3, 4]')
    command = shlex.split(await page.locator("#command").inner_text())
    assert (await told(*command[1:]))["outputs"]["total"] == [[1, 2, 3, 4]]
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert await page.evaluate(wide) is False
    assert complaints == []
    await page.close()


async def test_a_long_answer_is_shown_in_part(node: ServedNode, browser: Browser) -> None:
    page, complaints = await opened(browser, url(node, "shout") + "?times=50000")
    await page.get_by_label("Text").fill("a" * 100)
    await page.get_by_role("button", name="Ask the model").click()
    await expect(page.get_by_text("5000002 bytes")).to_be_visible()
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download the answer").click()
    path = await (await download.value).path()
    assert json.loads(path.read_bytes()) == "A" * 5_000_000
    assert complaints == []
    await page.close()


async def test_a_form_without_scripts(
    node: ServedNode, browser: Browser, digit: tuple[Path, str]
) -> None:
    path, label = digit
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(url(node, "digits"))
    await page.get_by_label("File").set_input_files(path)
    await page.get_by_role("button", name="Ask the model").click()
    await expect(page.locator("body")).to_contain_text(f'"label":"{label}"')
    await context.close()


async def test_a_page_of_another_site_cannot_ask(node: ServedNode, browser: Browser) -> None:
    page = await browser.new_page()
    html = f'<form method="post" action="{url(node, "shout")}"><input name="text"></form>'
    await page.route(
        "**/foreign", lambda route: route.fulfill(body=html, content_type="text/html")
    )
    await page.goto("http://localhost:9/foreign")
    async with page.expect_response("**/models/shout") as response:
        await page.evaluate("document.forms[0].submit()")
    assert (await response.value).status == 403
    await page.close()
