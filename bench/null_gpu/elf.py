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
            # The names that are offered lie behind those that are asked for, from where the hash table begins.
            first = elf.get_section_by_name(".gnu.hash").params.symoffset
            self.asked = {symbols.get_symbol(index).name for index in range(1, first)}
            if offers:
                every = (symbols.get_symbol(index) for index in range(first, symbols.num_symbols()))
                self.offered = {symbol.name for symbol in every if symbol.entry.st_info.type == "STT_FUNC"}
