"""Claims about fine-tuning against arithmetic done by hand, and against runs made up to agree or not."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from lorabench.bench.records.record import RunRecord
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.reports.page import render_page
from lorabench.reports.runs import arrange
from lorabench.reports.sections import SECTIONS
from lorabench.reports.sections.claims import OF_ELEMENTS, OF_RECIPES, OF_RUNS, Answered, claims, read_claims
from lorabench.reports.subject import Subject
from tests.sample_records import STEP_SECONDS, sample_record


def answered(*records: RunRecord) -> dict[tuple[str, str], Answered]:
    """Return the answers by what the claim says and what the figure is of, with these runs."""
    data = claims(Subject(arrange({"results": records}) if records else []))
    assert data is not None
    return {
        (claim.says, figure.figure.what): figure
        for _, of_topic in data["topics"]
        for claim, figures in of_topic
        for figure in figures
    }


def one(answers: dict[tuple[str, str], Answered], says: str, what: str) -> Answered:
    [found] = [answer for (said, figure), answer in answers.items() if says in said and figure == what]
    return found


@pytest.mark.parametrize(
    ("says", "what", "expected", "verdict"),
    [
        ("16 B per parameter", "Llama-2-7B", 16 * 6_738_415_616, "agrees"),
        ("16 B per parameter", "Llama-2-70B", 16 * 68_976_648_192, "agrees"),
        ("2 + 2 + 8", "float32 weights", 16 * 8_030_261_248, "differs"),
        ("2 + 2 + 8", "bf16 weights", 8 * 8_030_261_248, "differs"),
        ("four times", "Llama-2-7B", 8 * 6_738_415_616, "agrees"),
        ("2P + 16", "persistent, Llama-3.1-8B r16", 2 * 8_030_261_248 + 16 * 41_943_040, "agrees"),
        ("rank 16 on attention", "trainable", 13_631_488, "differs"),
        ("0.127 bits", "constants", 0.5, "agrees"),
        ("0.127 bits", "double quantisation", 8 / 64 + 32 / (64 * 256), "agrees"),
        ("saves about 0.4 bits", "7B", 7e9 / 8 * (0.5 - 8 / 64 - 32 / (64 * 256)), "agrees"),
        ("65B in NF4", "constants", 65e9 / 8 * (8 / 64 + 32 / (64 * 256)), "differs"),
        ("4,194,304", "all seven", 8 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008)), "differs"),
        ("4,194,304", "query and value only", 8 * 32 * 2 * 2 * 4096, "agrees"),
        ("4096 × 4096", "rank 64", 64 * (4096 + 4096), "agrees"),
        ("32 · 12", "linear layers", 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008), "agrees"),
        ("adapter file", "query and value only", 4 * 4_194_304, "agrees"),
        ("adapter file", "all linear", 4 * 19_988_480, "differs"),
    ],
)
def test_estimates_are_what_arithmetic_says(says: str, what: str, expected: float, verdict: str) -> None:
    answer = one(answered(), says, what)
    assert answer.estimated == pytest.approx(expected, rel=1e-6)
    assert (answer.verdict, answer.measured) == (verdict, None)


def test_each_figure_is_answered_by_what_there_is() -> None:
    for claim in read_claims():
        for figure in claim.figures:
            known = OF_RECIPES.keys() | OF_ELEMENTS.keys() | {"slower", None}
            assert figure.quantity in known, figure
            assert figure.runs is None or figure.runs in OF_RUNS, figure
    for answer in answered().values():
        assert (answer.estimated is None) == (answer.figure.quantity is None)
        assert (answer.verdict == "unknown") == (answer.estimated is None)


@pytest.mark.parametrize(("slower", "verdict"), [(0.12, "agrees"), (0.4, "differs"), (-0.1, "differs")])
def test_runs_tell_how_much_slower_qlora_trains(slower: float, verdict: str) -> None:
    seconds = [second / (1 - slower) for second in STEP_SECONDS]
    answer = one(
        answered(sample_record(), sample_record(method="qlora", step_seconds=seconds)), "10 to 15 %", "pairs of runs"
    )
    assert answer.measured == pytest.approx(slower)
    assert (answer.verdict, answer.runs) == (verdict, 1)


def unstable(record: RunRecord) -> RunRecord:
    assert record.measurement is not None
    return replace(record, measurement=replace(record.measurement, unstable=("made up",)))


def test_unstable_runs_do_not_answer_for_speed() -> None:
    lora, qlora = sample_record(), sample_record(method="qlora", step_seconds=[9 * second for second in STEP_SECONDS])
    steady = [replace(record, repeat=1) for record in (lora, sample_record(method="qlora"))]
    answer = one(answered(lora, unstable(qlora)), "10 to 15 %", "pairs of runs")
    assert (answer.verdict, answer.measured, answer.shown["measured"]) == ("unknown", None, "unstable runs only")
    answer = one(answered(lora, unstable(qlora), *steady), "10 to 15 %", "pairs of runs")
    assert (answer.measured, answer.runs) == (0, 1)
    losses = [unstable(with_held_out_loss(record, 5)) for record in (lora, qlora)]
    assert one(answered(*losses), "QLoRA comes within", "held-out loss").verdict == "agrees"


def with_held_out_loss(record: RunRecord, loss: float) -> RunRecord:
    assert record.measurement is not None
    return replace(record, measurement=replace(record.measurement, held_out_loss_before=7.0, held_out_loss_after=loss))


@pytest.mark.parametrize(
    ("says", "before", "after", "matching"),
    [
        ("QLoRA comes within", {"method": "lora"}, {"method": "qlora"}, 1.01),
        ("A high rank", {"method": "full"}, {"rank": 256}, 1.01),
        ("All-linear", {"target_modules": "attention"}, {"target_modules": "all-linear"}, 0.9),
    ],
)
def test_runs_tell_which_learns_more(says: str, before: dict[str, Any], after: dict[str, Any], matching: float) -> None:
    for ratio, verdict in ((matching, "agrees"), (1.2, "differs")):
        records = [
            with_held_out_loss(sample_record(**options), loss) for options, loss in ((before, 5), (after, 5 * ratio))
        ]
        answer = one(answered(*records), says, "held-out loss")
        assert answer.measured == pytest.approx(ratio - 1)
        assert answer.verdict == verdict


def test_a_low_rank_says_nothing_of_a_high_one() -> None:
    records = [with_held_out_loss(sample_record(method="full"), 5), with_held_out_loss(sample_record(rank=8), 9)]
    assert one(answered(*records), "A high rank", "held-out loss").verdict == "unknown"


@pytest.mark.parametrize(("adapted", "verdict"), [(6.5, "agrees"), (6.6, "differs")])
def test_runs_tell_whether_adapters_change_the_first_loss(adapted: float, verdict: str) -> None:
    record = sample_record()
    assert record.measurement is not None
    record = replace(record, measurement=replace(record.measurement, base_loss=6.5, adapted_loss=adapted))
    assert one(answered(record), "B is 0", "largest difference").verdict == verdict


def test_a_measured_peak_decides_where_the_claims_own_recipe_ran() -> None:
    spec = find_model("meta-llama/Llama-3.1-8B")
    recipe = make_recipe(spec.name, method="qlora")
    record = sample_record(backend="cuda")
    assert record.measurement is not None
    memory = replace(record.measurement.memory, peak_allocated_bytes=5 * 10**9)
    ran = replace(
        record,
        recipe=recipe,
        model_config=spec.config,
        digest=recipe.digest(spec.config),
        measurement=replace(record.measurement, memory=memory),
    )
    answer = one(answered(ran), "4 GB of weights", "peak")
    assert (answer.measured, answer.verdict, answer.shown["measured"]) == (5e9, "agrees", "5 GB")
    assert one(answered(replace(ran, digest="0" * 12)), "4 GB of weights", "peak").verdict == "differs"


def test_the_section_shows_every_figure() -> None:
    [section] = [section for section in SECTIONS if section.name == "claims"]
    data = section.data(Subject([]))
    assert data is not None
    page = render_page("claims", "claims", [(section, data)])
    assert page.count('<td class="verdict ') == sum(len(claim.figures) for claim in read_claims())
    for text in ("107.8 GB", "1.104 TB", "13,631,488", "0.127 bits", "326.4 MB"):
        assert text in page
