"""What a shared library needs, asks for and offers, by its ELF tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorabench.estimator.errors import UserError


class Elf:
    """One shared library; what it offers, which is long to read of some, is read if ``offers``.

    Raises:
        UserError: pyelftools, which reads such files, is not installed.
    """

    def __init__(self, path: Path, *, offers: bool = False) -> None:
        try:
            from elftools.elf.elffile import ELFFile
        except ImportError:
            raise UserError("the null GPU needs pyelftools: pip install 'lorabench[rehearse]'") from None
        self.needed: list[str] = []
        """Names of libraries that it needs."""
        self.search_path: list[Path] = []
        """Folders in which it has them looked for."""
        self.asked: set[str] = set()
        """Names that other libraries must offer."""
        self.offered: set[str] = set()
        """Names of the functions that it offers."""
        with path.open("rb") as file:
            elf: Any = ELFFile(file)
            for tag in elf.get_section_by_name(".dynamic").iter_tags():
                if tag.entry.d_tag == "DT_NEEDED":
                    self.needed.append(tag.needed)
                elif tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                    text = tag.rpath if tag.entry.d_tag == "DT_RPATH" else tag.runpath
                    self.search_path += [Path(each.replace("$ORIGIN", str(path.parent))) for each in text.split(":")]
            symbols = elf.get_section_by_name(".dynsym")
            # The names that are offered lie behind those that are asked for, from where the hash table begins. Some
            # libraries of CUDA 12 have no such table, and their names are in any order.
            hashes = elf.get_section_by_name(".gnu.hash")
            first = symbols.num_symbols() if hashes is None else hashes.params.symoffset
            head = [symbols.get_symbol(index) for index in range(1, first)]
            self.asked = {symbol.name for symbol in head if symbol.entry.st_shndx == "SHN_UNDEF"}
            if offers:
                tail = (symbols.get_symbol(index) for index in range(first, symbols.num_symbols()))
                self.offered = {symbol.name for symbol in (*head, *tail) if _is_offered(symbol)}


def _is_offered(symbol: Any) -> bool:
    return bool(symbol.entry.st_shndx != "SHN_UNDEF" and symbol.entry.st_info.type == "STT_FUNC")
