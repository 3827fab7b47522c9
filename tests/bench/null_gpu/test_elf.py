"""What shared libraries ask for and offer, whatever kind of hash table they have."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lorabench.bench.null_gpu.elf import Elf

pytestmark = pytest.mark.cuda_build  # it takes a compiler

SOURCE = """
int from_elsewhere(int);
int number;
static int hidden(int given) { return given; }
int offered(int given) { return from_elsewhere(hidden(given)) + number; }
"""


@pytest.mark.parametrize("style", ["gnu", "sysv", "both"])
def test_a_library_says_what_it_asks_for_and_offers(tmp_path: Path, style: str) -> None:
    (tmp_path / "lib.c").write_text(SOURCE)
    library = tmp_path / "lib.so"
    flags = ["-shared", "-fPIC", "-nostdlib", f"-Wl,--hash-style={style}"]
    subprocess.run(["cc", *flags, str(tmp_path / "lib.c"), "-o", str(library)], check=True)
    elf = Elf(library, offers=True)
    assert elf.offered == {"offered"}
    assert elf.asked == {"from_elsewhere"}
