"""The libraries that a shared library needs, and the symbols that it imports and exports, from its ELF tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorabench.estimator.errors import UserError


class Elf:
    """One shared library. Its exported functions are read only if ``offers``, since some libraries have very many.

    Raises:
        UserError: pyelftools, which reads such files, is not installed.
    """

    def __init__(self, path: Path, *, offers: bool = False) -> None:
        try:
            from elftools.elf.elffile import ELFFile
        except ImportError:
            raise UserError("the null GPU needs pyelftools: pip install 'lorabench[rehearse]'") from None
        self.needed: list[str] = []
        """Names of the libraries that it links (DT_NEEDED)."""
        self.search_path: list[Path] = []
        """Folders where the loader looks for them (DT_RPATH, DT_RUNPATH)."""
        self.asked: set[str] = set()
        """Names of the symbols that it imports."""
        self.offered: set[str] = set()
        """Names of the functions that it exports; empty unless ``offers``."""
        with path.open("rb") as file:
            elf: Any = ELFFile(file)
            for tag in elf.get_section_by_name(".dynamic").iter_tags():
                if tag.entry.d_tag == "DT_NEEDED":
                    self.needed.append(tag.needed)
                elif tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                    text = tag.rpath if tag.entry.d_tag == "DT_RPATH" else tag.runpath
                    self.search_path += [Path(each.replace("$ORIGIN", str(path.parent))) for each in text.split(":")]
            symbols = elf.get_section_by_name(".dynsym")
            # Exported names come after the imported ones; the hash table says where they begin. Some libraries of
            # CUDA 12 have no such table, and their names are in any order.
            hashes = elf.get_section_by_name(".gnu.hash")
            first = symbols.num_symbols() if hashes is None else hashes.params.symoffset
            head = [symbols.get_symbol(index) for index in range(1, first)]
            self.asked = {symbol.name for symbol in head if symbol.entry.st_shndx == "SHN_UNDEF"}
            if offers:
                tail = (symbols.get_symbol(index) for index in range(first, symbols.num_symbols()))
                self.offered = {symbol.name for symbol in (*head, *tail) if _is_offered(symbol)}


def _is_offered(symbol: Any) -> bool:
    return bool(symbol.entry.st_shndx != "SHN_UNDEF" and symbol.entry.st_info.type == "STT_FUNC")
