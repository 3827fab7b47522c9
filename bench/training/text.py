"""Training text: Python's own text or a file, as tokens in batches, packed or a document a row."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BufferedReader
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

from lorabench.estimator.errors import UserError
from lorabench.estimator.input_files import open_input

BYTES = 256
LARGEST_TEXT_BYTES = 2**28
"""Limit of a document, which is tokenised at once: a text file, or a line of a .jsonl file. A run needs little."""
NOT_LIBRARY = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")
"""Folders in the standard library's folder that are not installed everywhere, or do not belong to it."""


def shipped_documents() -> Iterator[str]:
    """Yield text that Python itself ships, in a fixed order: the language reference, then the library's source."""
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield topics[topic]
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not set(path.relative_to(library).parts) & set(NOT_LIBRARY):
            yield path.read_text(encoding="utf-8", errors="replace")


def file_documents(path: Path) -> Iterator[str]:
    """Yield the documents in ``path``: the "text" field of each line of a .jsonl file, or any other file as a whole.

    Raises:
        UserError: ``path`` is not a file, cannot be read, is empty or too large; or a line is not a JSON object with a
            "text" string (with the line number).
    """
    try:
        with open_input(path) as file:
            if path.suffix == ".jsonl":
                yield from _texts(path, file)
                return
            raw = file.read(LARGEST_TEXT_BYTES + 1) or b""
    except OSError as error:
        raise UserError(f"{path}: cannot read the dataset ({error.strerror}): name a text or .jsonl file") from error
    if len(raw) > LARGEST_TEXT_BYTES:
        raise UserError(
            f"{path}: more than {LARGEST_TEXT_BYTES // 2**20} MiB of text: use a part of it, or a .jsonl file, "
            "which is read line by line"
        )
    text = _decoded(path, raw, 1)
    if not text.strip():
        raise UserError(f"{path}: the dataset holds no text")
    yield text


def _texts(path: Path, file: BufferedReader) -> Iterator[str]:
    wanted = 'each line of a .jsonl file must be a JSON object with a "text" field'
    empty = True
    for number, raw in enumerate(iter(partial(file.readline, LARGEST_TEXT_BYTES + 1), b""), 1):
        if len(raw) > LARGEST_TEXT_BYTES:
            raise UserError(f"{path} line {number}: more than {LARGEST_TEXT_BYTES // 2**20} MiB of text: {wanted}")
        line = _decoded(path, raw, number)
        if not line.strip():
            continue
        empty = False
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} line {number}: not JSON ({error}): {wanted}") from error
        if not isinstance(document, dict) or not isinstance(document.get("text"), str):
            raise UserError(f'{path} line {number}: no "text" string in it: {wanted}')
        yield document["text"]
    if empty:
        raise UserError(f"{path}: the dataset holds no text")


def _decoded(path: Path, raw: bytes, first_line: int) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = first_line + raw.count(b"\n", 0, error.start)
        raise UserError(f"{path} line {number}: not UTF-8 text ({error.reason}): convert it to UTF-8") from error


def byte_tokenizer(vocab_size: int) -> Callable[[str], list[int]]:
    """Return a tokenizer for models without one: one token per byte of UTF-8.

    If the vocabulary is large enough, each document begins with token 256 and ends with 257.

    Raises:
        UserError: the vocabulary has fewer than 256 tokens.
    """
    if vocab_size < BYTES:
        raise UserError(f"a vocabulary of {vocab_size} tokens is too small for byte-level text, which needs {BYTES}")
    begin, end = ([BYTES], [BYTES + 1]) if vocab_size >= BYTES + 2 else ([], [])
    return lambda document: [*begin, *document.encode(errors="replace"), *end]


Rows = list[list[int]]
"""The token ids of one batch, by row."""


class BatchLayout(NamedTuple):
    """How documents fill batches of shape (batch_size, seq_len)."""

    batch_size: int
    seq_len: int
    padding: bool
    """Whether each row is the beginning of one document, with at least one token of padding; else text is packed."""

    def units(self, documents: Iterable[list[int]]) -> Iterator[Any]:
        """Yield what batches consist of: tokens; with padding, rows."""
        if not self.padding:
            return chain.from_iterable(documents)
        return (document[: self.seq_len - 1] for document in documents if document)

    @property
    def size(self) -> int:
        """Units of a batch."""
        return self.batch_size if self.padding else self.batch_size * self.seq_len

    def batches(self, units: Iterable[Any]) -> Iterator[Rows]:
        """Yield batches of ``units``. Only the last units, which do not fill a batch, are dropped."""
        stream = iter(units)
        while len(block := list(islice(stream, self.size))) == self.size:
            if self.padding:
                yield block
            else:
                yield [block[start : start + self.seq_len] for start in range(0, self.size, self.seq_len)]


class Text(NamedTuple):
    """The text of a run in batches."""

    held_out: list[Rows]
    training: Iterator[Rows]
    """It never ends: the text repeats when it is used up."""
    tokens: int | None
    """Tokens of the whole text if they do not fill a batch; None if they do."""


def held_out_and_training(
    dataset: Path | None, tokenize: Callable[[str], list[int]], layout: BatchLayout, *, held_out: int
) -> Text:
    """Return the first ``held_out`` batches of the dataset (or of Python's own text), and batches of the rest.

    If the dataset would have no full batch left for training, nothing is held out.

    Raises:
        UserError: the dataset is bad, or its text has no tokens.
    """

    def once() -> Iterator[Any]:
        documents = shipped_documents() if dataset is None else file_documents(dataset)
        return layout.units(map(tokenize, documents))

    size = layout.size
    first = once()
    taken = list(islice(first, (held_out + 1) * size))
    if not taken:
        raise UserError(f"{dataset}: the tokenizer returns no tokens for the dataset's text")
    kept = held_out * size if len(taken) == (held_out + 1) * size else 0
    over_again = (islice(once(), kept, None) for _ in repeat(None))
    found = sum(map(len, taken)) if layout.padding else len(taken)
    return Text(
        held_out=list(layout.batches(taken[:kept])),
        training=layout.batches(chain(taken[kept:], first, chain.from_iterable(over_again))),
        tokens=found if len(taken) < size else None,
    )
