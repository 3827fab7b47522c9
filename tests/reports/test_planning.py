"""What fits and what if, as Chromium answers them, against the estimator itself."""

from __future__ import annotations

import math
import random
import re
from itertools import cycle
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from lorabench.estimator.answers.estimates import Estimate, estimate_recipe
from lorabench.estimator.answers.verdict import verdict_and_margin
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.recipes.recipe import Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.throughput import estimate_throughput
from lorabench.reports.quantities import format_bytes, format_number
from tests.reports.chromium import Browser
from tests.reports.sample_pages import HOSTILE, MODELS

CHOOSE = """
const section = document.getElementById(arguments[0]);
for (const [name, value] of Object.entries(arguments[1])) {
  const field = section.querySelector(`[name="${name}"]`);
  field.value = value;
  field.dispatchEvent(new Event(field.type === "number" ? "input" : "change", { bubbles: true }));
}"""
TABLES = """return [...document.querySelectorAll(arguments[0])].map((table) =>
[...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent)))"""


@pytest.fixture
def page(browser: Browser) -> Browser:
    """The page as it opens, with its tables shown."""
    browser.show("planning")
    browser.run("for (const summary of document.querySelectorAll('.data > summary')) summary.click()")
    browser.wait("return [...document.querySelectorAll('.data table')].every((table) => table.rows.length)")
    return browser


def choose(page: Browser, section: str, **chosen: Any) -> None:
    page.run(CHOOSE, section, chosen)


def tables(page: Browser, selector: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = page.run(TABLES, selector)
    return found


def text(page: Browser, selector: str) -> str:
    return page.texts(selector)[0]


def recipe_of(model: str, method: str, rank: int, **options: Any) -> Recipe:
    if model == "eager only":
        options["attn_implementation"] = "eager"
    return make_recipe(MODELS[model].name, method=method, rank=None if method == "full" else rank, **options)


def estimated(model: str, gpu: str, method: str, rank: int, **options: Any) -> Estimate:
    return estimate_recipe(ResolvedRecipe(MODELS[model], recipe_of(model, method, rank, **options)), find_device(gpu))


def judged(model: str, gpu: str, method: str, rank: int, **options: Any) -> tuple[Breakdown, str]:
    """Return the memory and the verdict of an estimate, without all that it seeks besides."""
    device = find_device(gpu)
    recipe = recipe_of(model, method, rank, **options)
    memory = estimate_memory(ResolvedRecipe(MODELS[model], recipe), compute_capability=device.compute_capability)
    return memory, verdict_and_margin(memory, device.memory_bytes)[0]


def sampled(count: int) -> list[tuple[str, str, int, int, int, bool]]:
    """Return (model, GPU, rank, batch size, length, checkpointing) at random, and on either side of each branch."""
    draw = random.Random(20)
    found = [("windowed", "l4", 8, size, length, True) for size in (1, 2) for length in (4095, 4096)]
    found += [("llama", "h100-sxm", 16, 256, 131072, True), ("learned positions", "a10", 512, 3, 1024, False)]
    for _ in range(count):
        model = draw.choice([*MODELS])
        length = round(128 * 2 ** draw.uniform(0, math.log2(MODELS[model].max_position_embeddings / 128)))
        gpu = draw.choice(["rtx-4090", "h100-sxm", "mi300x", "b200", "a40"])
        found.append((model, gpu, 2 ** draw.randint(0, 9), draw.randint(1, 64), length, draw.random() < 0.5))
    return found


def test_what_if_says_what_estimate_says_to_the_byte(page: Browser) -> None:
    for model, gpu, rank, batch_size, seq_len, checkpointing in sampled(16):
        asked = {"batch_size": batch_size, "seq_len": seq_len, "gradient_checkpointing": checkpointing}
        choose(page, "what_if", model=MODELS[model].name, gpu=gpu, rank=rank, batchSize=batch_size, seqLen=seq_len)
        choose(page, "what_if", checkpointing="yes" if checkpointing else "no")
        [[[_, *methods], *lines]] = tables(page, "#what_if table")
        assert methods == ["full", "lora", "qlora"]
        shown = {name: dict(zip(methods, cells, strict=True)) for name, *cells in lines}
        for method in methods:
            memory, verdict = judged(model, gpu, method, rank, **asked)
            assert memory.peak_reserved_range_bytes is not None
            assert memory.device_total_range_bytes is not None
            expected = {name.replace("_", " "): str(count) for name, count in memory.components.items()} | {
                "peak": str(memory.peak_allocated_bytes),
                "reserved, low": str(memory.peak_reserved_range_bytes[0]),
                "reserved, high": str(memory.peak_reserved_range_bytes[1]),
                "on the GPU, low": str(memory.device_total_range_bytes[0]),
                "on the GPU, high": str(memory.device_total_range_bytes[1]),
                "in phase": memory.phase,
                "verdict": verdict,
            }
            assert {name: cells[method] for name, cells in shown.items()} == expected, (model, gpu, method, asked)


def test_each_control_changes_the_answer(page: Browser) -> None:
    def answer() -> list[str]:
        values = [text(page, f"#what_if .{name}") for name in ("verdict", "peak", "total", "speed", "trainable")]
        return [*values, text(page, "#what_if .settings"), text(page, "#what_if figcaption")]

    seen = [answer()]
    for name, value in {
        "batchSize": 2,
        "seqLen": 4096,
        "rank": 64,
        "method": "qlora",
        "checkpointing": "no",
        "gpu": "h100-sxm",
        "model": MODELS["windowed"].name,
    }.items():
        choose(page, "what_if", **{name: value})
        seen.append(answer())
        assert seen[-1] != seen[-2], name
    verdicts = [verdict.rpartition(": ")[2] for verdict, *_ in seen]
    assert verdicts[:3] == ["✓ fits", "~ tight", "✗ does not fit"]


def test_the_headlines_are_the_estimates(page: Browser) -> None:
    choose(page, "what_if", method="qlora", batchSize=3, seqLen=1000)
    estimate = estimated("llama", "rtx-4090", "qlora", 16, batch_size=3, seq_len=1000)
    assert estimate.margin_bytes is not None
    assert text(page, "#what_if .peak") == format_bytes(estimate.memory.peak_allocated_bytes)
    spare = format_bytes(estimate.margin_bytes)
    assert text(page, "#what_if .margin") == f"23.24 of 23.99 GiB usable: at least {spare} to spare."
    assert text(page, "#what_if .trainable") == f"{estimate.parameters.trainable:,}"
    settings = estimate.recipe.describe()
    for name, value in re.findall(r"(\w+) ([^,]+)", text(page, "#what_if .settings")):
        assert settings.pop(name) == value
    assert set(settings) == {"model", "method", "rank", "batch_size", "seq_len", "gradient_checkpointing"}


def test_what_was_chosen_instead_of_a_default_is_said(page: Browser) -> None:
    choose(page, "what_if", model=MODELS["llama"].name)
    assert text(page, "#what_if .assumptions") == ""
    choose(page, "what_if", model=MODELS["eager only"].name)
    assert text(page, "#what_if .assumptions") == (
        "Assumed: attn_implementation eager instead of sdpa: google/gemma-2-2b caps its attention scores, which sdpa "
        "does not support."
    )


def test_speed_is_the_estimate_for_any_sizes_on_any_gpu(page: Browser) -> None:
    for (model, gpu, rank, batch_size, seq_len, checkpointing), method in zip(
        sampled(9), cycle(("full", "lora", "qlora")), strict=False
    ):
        choose(page, "what_if", model=MODELS[model].name, gpu=gpu, method=method, rank=rank)
        choose(page, "what_if", batchSize=batch_size, seqLen=seq_len, checkpointing=("no", "yes")[checkpointing])
        options = {"batch_size": batch_size, "seq_len": seq_len, "gradient_checkpointing": checkpointing}
        speed = estimate_throughput(
            ResolvedRecipe(MODELS[model], recipe_of(model, method, rank, **options)), find_device(gpu)
        )
        assert speed is not None
        assert text(page, "#what_if .speed") == f"{format_number(speed.tokens_per_second)} tokens/s"
        least, most = map(format_number, speed.tokens_per_second_range)
        fits = estimated(model, gpu, method, rank, **options).verdict != "does not fit"
        assert (
            text(page, "#what_if .rates")
            == f"{least} to {most}, from the datasheet{'' if fits else ', with enough memory'}."
        )


def test_speed_is_left_open_where_only_the_memory_is_known(page: Browser) -> None:
    choose(page, "what_if", gpu="24GB")
    assert text(page, "#what_if .speed") == "unknown"
    assert text(page, "#what_if .rates") == "Only the memory of 24GB is known."


@pytest.mark.parametrize(
    "chosen", [{"batchSize": ""}, {"batchSize": 0}, {"batchSize": 1.5}, {"seqLen": 131073}, {"seqLen": 127}]
)
def test_numbers_that_no_recipe_has_get_no_answer(page: Browser, chosen: dict[str, Any]) -> None:
    choose(page, "what_if", **chosen)
    assert text(page, "#what_if .verdict").startswith(
        "Enter a whole batch size up to 256 and a length from 128 to 131072"
    )
    assert not page.find("#what_if .peak")[0].is_displayed()
    choose(page, "what_if", batchSize=1, seqLen=128)
    assert page.find("#what_if .peak")[0].is_displayed()


def test_what_fits_says_what_estimate_says(page: Browser) -> None:
    choose(page, "fits", gpu="a100-sxm-40gb", rank=64, checkpointing="no", model=MODELS["windowed"].name)
    maps = dict(zip(["full", "lora", "qlora"], tables(page, "#fits table"), strict=True))
    draw = random.Random(3)
    verdicts = set()
    for method, [[_, *sizes], *lines] in maps.items():
        assert [line[0] for line in lines] == [str(128 * 2**power) for power in range(9)]
        for length, *cells in draw.sample(lines, 4):
            for size, cell in zip(sizes, cells, strict=True):
                asked = {"batch_size": int(size.removeprefix("batch ")), "seq_len": int(length)}
                memory, verdict = judged("windowed", "a100-sxm-40gb", method, 64, gradient_checkpointing=False, **asked)
                assert memory.device_total_range_bytes is not None
                assert cell == f"{format_bytes(memory.device_total_range_bytes[1])}, {verdict}", asked
                verdicts.add(verdict)
    assert verdicts == {"fits", "tight", "does not fit"}


def test_the_map_shows_what_its_table_says(page: Browser) -> None:
    for gpu in ("rtx-4090", "h100-sxm"):
        choose(page, "fits", gpu=gpu)
        for number, (colour, verdict) in enumerate(
            (("fits", "fits"), ("tight", "tight"), ("too-much", "does not fit")) * 3
        ):
            at = number // 3
            drawn = page.run(
                "return document.querySelectorAll('#fits .chart')[arguments[0]]"
                ".querySelectorAll(`path[fill='var(--${arguments[1]})']`).length",
                at,
                colour,
            )
            said = [cell for line in tables(page, "#fits table")[at][1:] for cell in line[1:]]
            assert drawn == sum(cell.endswith(f", {verdict}") for cell in said)
        assert gpu in text(page, "#fits figcaption")


def test_lengths_end_where_the_models_positions_do(page: Browser) -> None:
    choose(page, "fits", model=MODELS["learned positions"].name)
    assert [line[0] for line in tables(page, "#fits table")[0][1:]] == [str(128 * 2**step) for step in range(4)]


def test_names_of_models_stay_text_and_the_page_asks_for_nothing(page: Browser) -> None:
    for section in ("fits", "what_if"):
        choose(page, section, model=HOSTILE)
    assert text(page, "#what_if .verdict").startswith(HOSTILE)
    assert page.run("return [window.ran, document.querySelectorAll('img').length]") == [None, 0]
    assert page.complaints() == []


def test_the_controls_work_by_keyboard(page: Browser) -> None:
    def field(name: str) -> Any:
        return page.find(f"#what_if [name={name}]")[0]

    field("method").send_keys("q")
    field("batchSize").send_keys(Keys.ARROW_UP)
    field("seqLen").send_keys(Keys.CONTROL, "a")
    field("seqLen").send_keys("512")
    assert Select(field("method")).first_selected_option.text == "qlora"
    assert ", qlora r16, 2×512, " in text(page, "#what_if .verdict")
