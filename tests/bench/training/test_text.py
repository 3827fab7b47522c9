from __future__ import annotations

import ast
from itertools import chain, islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.bench.training.losses import complaint_about_text
from lorabench.bench.training.text import (
    BatchLayout,
    byte_tokenizer,
    file_documents,
    held_out_and_training,
    shipped_documents,
)
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.recipe import make_recipe


def packed(batch_size: int, seq_len: int) -> BatchLayout:
    return BatchLayout(batch_size, seq_len, padding=False)


@given(
    documents=st.lists(st.lists(st.integers(0, 300), max_size=40), max_size=20),
    batch_size=st.integers(1, 4),
    seq_len=st.integers(1, 9),
)
def test_packing_loses_repeats_and_pads_nothing(documents: list[list[int]], batch_size: int, seq_len: int) -> None:
    layout = packed(batch_size, seq_len)
    batches = list(layout.batches(layout.units(documents)))
    tokens = list(chain.from_iterable(documents))
    filled = list(chain.from_iterable(row for batch in batches for row in batch))
    assert filled == tokens[: len(filled)]
    assert 0 <= len(tokens) - len(filled) < batch_size * seq_len
    assert all(len(batch) == batch_size and {len(row) for row in batch} == {seq_len} for batch in batches)


@given(
    documents=st.lists(st.lists(st.integers(0, 300), max_size=12), max_size=20),
    batch_size=st.integers(1, 4),
    seq_len=st.integers(2, 9),
)
def test_a_padded_row_is_the_beginning_of_one_document(
    documents: list[list[int]], batch_size: int, seq_len: int
) -> None:
    layout = BatchLayout(batch_size, seq_len, padding=True)
    batches = list(layout.batches(layout.units(documents)))
    rows = [row for batch in batches for row in batch]
    texts = [document for document in documents if document]
    assert all(document[: len(row)] == row for row, document in zip(rows, texts, strict=False))
    assert all(len(row) == min(len(document), seq_len - 1) for row, document in zip(rows, texts, strict=False))
    assert len(rows) == len(texts) // batch_size * batch_size


@given(text=st.text(), vocab_size=st.integers(256, 1000))
def test_byte_tokens_are_the_bytes_of_the_text_within_the_vocabulary(text: str, vocab_size: int) -> None:
    tokens = byte_tokenizer(vocab_size)(text)
    assert all(0 <= token < vocab_size for token in tokens)
    marked = tokens[:1] == [256]
    assert marked == (vocab_size >= 258)
    assert bytes(tokens[1:-1] if marked else tokens).decode() == text
    assert not marked or tokens[-1] == 257


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="vocabulary of 255 tokens is too small"):
        byte_tokenizer(255)


def test_shipped_text_is_the_same_prose_first_every_time() -> None:
    first, again = (list(islice(shipped_documents(), 80)) for _ in range(2))
    assert first == again
    assert first[0].startswith('The "assert" statement')
    assert sum(map(len, first)) > 200_000


def test_shipped_code_follows_the_prose() -> None:
    from pydoc_data.topics import topics

    code = list(islice(shipped_documents(), len(topics), len(topics) + 40))
    modules = [ast.parse(document) for document in code]
    assert any(module.body for module in modules)  # some are comments alone


def test_a_short_dataset_starts_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    held_out, batches, _ = held_out_and_training(tmp_path / "a.txt", byte_tokenizer(256), packed(1, 4), held_out=1)
    assert [bytes(row).decode() for batch in islice(batches, 3) for row in batch] == ["abca", "bcab", "cabc"]
    assert held_out == []  # it has nothing to spare


def test_a_short_dataset_starts_over_with_its_first_document_if_batches_are_padded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "abcdef"}\n{"text": "gh"}\n{"text": "i"}\n')
    layout = BatchLayout(2, 4, padding=True)
    held_out, batches, tokens = held_out_and_training(tmp_path / "a.jsonl", byte_tokenizer(256), layout, held_out=1)
    assert [[bytes(row).decode() for row in batch] for batch in islice(batches, 2)] == [["abc", "gh"], ["i", "abc"]]
    assert held_out == []
    assert tokens is None  # they fill a batch


def test_held_out_text_is_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghijklmno")
    held_out, batches, _ = held_out_and_training(tmp_path / "a.txt", byte_tokenizer(256), packed(2, 2), held_out=2)
    assert [bytes(row).decode() for batch in held_out for row in batch] == ["ab", "cd", "ef", "gh"]
    trained = [bytes(row).decode() for batch in islice(batches, 4) for row in batch]
    assert trained == ["ij", "kl", "mn", "oi", "jk", "lm", "no", "ij"]


def test_each_line_of_a_jsonl_file_is_a_document(tmp_path: Path) -> None:
    # A line separator of Unicode ends no line of JSON.
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "one\u2028", "id": 1}\r\n\n{"text": "two\\nlines"}')
    assert list(file_documents(tmp_path / "a.jsonl")) == ["one\u2028", "two\nlines"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": }\n', "a.jsonl line 2: not JSON"),
        ("a.jsonl", b'{"text": "one"}\n\n[1]\n', 'a.jsonl line 3: no "text" string'),
        ("a.jsonl", b'{"text": 3}\n', 'a.jsonl line 1: no "text" string'),
        ("a.jsonl", b'{"txt": "one"}\n', 'a.jsonl line 1: no "text" string'),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1: not JSON"),
        ("a.txt", b"fine\nfine\n\xff\xfe\n", "a.txt line 3: not UTF-8"),
        ("a.txt", b" \n", "a.txt: the dataset holds no text"),
        ("a.jsonl", b"\n \n", "a.jsonl: the dataset holds no text"),
        ("a.jsonl", b'{"text": "one"}\n\xff\n', "a.jsonl line 2: not UTF-8"),
    ],
)
def test_a_bad_dataset_is_refused_with_its_line(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        list(file_documents(tmp_path / name))
    assert complaint in str(refused.value)


def test_datasets_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(2**28 + 1)
    for path, complaint in (
        (tmp_path / "missing.txt", r"cannot read the dataset \(No such file or directory\): name a text"),
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "not a file"),
        (tmp_path / "large.txt", "more than 256 MiB of text: use a part of it, or a .jsonl file"),
    ):
        with pytest.raises(UserError, match=complaint):
            list(file_documents(path))


def test_text_that_makes_no_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(UserError, match="returns no tokens"):
        held_out_and_training(tmp_path / "a.txt", lambda document: [], packed(1, 4), held_out=1)


@pytest.mark.parametrize(("text", "tokens"), [("abcdefg", 7), ("abcdefgh", None), ("a", 1)])
def test_a_text_that_fills_no_batch_is_counted_and_repeated(tmp_path: Path, text: str, tokens: int | None) -> None:
    (tmp_path / "a.txt").write_text(text)
    found = held_out_and_training(tmp_path / "a.txt", byte_tokenizer(256), packed(2, 4), held_out=1)
    assert found.tokens == tokens
    assert found.held_out == []
    [batch] = islice(found.training, 1)
    assert b"".join(map(bytes, batch)).decode() == (8 * text)[:8]


def test_a_text_that_fills_no_batch_is_said() -> None:
    said = "the dataset has 1,000 tokens, too few for one batch of 1 × 2048: every batch repeats them"
    assert complaint_about_text(1000, make_recipe("any")) == said
    assert complaint_about_text(None, make_recipe("any")) is None
    padded = make_recipe("any", padding=True, batch_size=4)
    said = "the dataset has 1,000 tokens in fewer than the 4 documents of a batch: every batch repeats them"
    assert complaint_about_text(1000, padded) == said
