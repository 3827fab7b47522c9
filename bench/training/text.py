"""Training text: Python's own text or a file, as tokens, packed into batches without padding."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BufferedReader
from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple

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


def pack(documents: Iterable[Iterable[int]], batch_size: int, seq_len: int) -> Iterator[list[list[int]]]:
    """Yield batches of shape (batch_size, seq_len): the concatenated documents, cut into rows.

    No token is padding or repeated. Only the last tokens, which do not fill a batch, are dropped.
    """
    stream = chain.from_iterable(documents)
    while True:
        block = list(islice(stream, batch_size * seq_len))
        if len(block) < batch_size * seq_len:
            return
        yield [block[start : start + seq_len] for start in range(0, len(block), seq_len)]


class Text(NamedTuple):
    """The text of a run, packed into batches."""

    held_out: list[list[list[int]]]
    training: Iterator[list[list[int]]]
    """It never ends: the text repeats when it is used up."""
    tokens: int | None
    """Tokens of the whole text if they do not fill a batch; None if they do."""


def held_out_and_training(
    dataset: Path | None, tokenize: Callable[[str], list[int]], batch_size: int, seq_len: int, *, held_out: int
) -> Text:
    """Return the first ``held_out`` packed batches of the dataset (or of Python's own text), and batches of the rest.

    If the dataset would have no full batch left for training, nothing is held out.

    Raises:
        UserError: the dataset is bad, or its text has no tokens.
    """

    def once() -> Iterator[int]:
        documents = shipped_documents() if dataset is None else file_documents(dataset)
        return chain.from_iterable(map(tokenize, documents))

    size = batch_size * seq_len
    first = once()
    taken = list(islice(first, (held_out + 1) * size))
    if not taken:
        raise UserError(f"{dataset}: the tokenizer returns no tokens for the dataset's text")
    kept = held_out * size if len(taken) == (held_out + 1) * size else 0
    over_again = (islice(once(), kept, None) for _ in repeat(None))
    return Text(
        held_out=list(pack([taken[:kept]], batch_size, seq_len)),
        training=pack(chain([taken[kept:], first], over_again), batch_size, seq_len),
        tokens=len(taken) if len(taken) < size else None,
    )
