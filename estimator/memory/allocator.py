"""CUDA's caching allocator, replayed: how much it takes from the device to serve a sequence of allocations.

As read in torch's `c10/cuda/CUDACachingAllocator.cpp`, for one stream and default settings:

- sizes are rounded up to 512 B;
- up to 1 MiB they come from the small pool, in segments of 2 MiB; above from the large pool: below 10 MiB in segments
  of 20 MiB, from 10 MiB on in segments of their own size, rounded up to 2 MiB;
- the smallest free block that is large enough is taken; what is left of it becomes a free block if it is at least
  512 B (small pool) or more than 1 MiB (large pool);
- a freed block merges with its free neighbours in the segment;
- before it fails, the allocator gives segments that are wholly free back to the device.

With ``expandable_segments:True`` each pool has one segment of addresses, most of them unmapped, and maps pages of
2 MiB (small pool) or 20 MiB (large) next to free blocks when it needs them. Blocks are always split; before it fails,
the allocator unmaps every page that is wholly free.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from lorabench.estimator.quantities import MIB

SMALLEST_BLOCK = 512
LARGEST_SMALL = MIB
"""Largest allocation that the small pool serves."""
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
SMALLEST_OWN_SEGMENT = 10 * MIB
"""From here on an allocation gets a segment of its own size."""
SEGMENT_ROUNDING = 2 * MIB
ADDRESSES = 2**50
"""Bytes of addresses in an expandable segment, and of a device: more than any device has memory."""


class MemoryBlock:
    """A stretch of a segment: in use, free, or (in an expandable segment) unmapped."""

    __slots__ = ("address", "following", "free", "large", "mapped", "preceding", "size")

    def __init__(self, address: int, size: int, *, large: bool, mapped: bool = True) -> None:
        self.address = address
        self.size = size
        self.large = large
        self.mapped = mapped
        self.free = True
        self.preceding: MemoryBlock | None = None
        self.following: MemoryBlock | None = None


class Pool:
    """Blocks, the smallest first, and of equal ones that at the lowest address."""

    def __init__(self) -> None:
        self.order: list[tuple[int, int]] = []
        """Size and address of each."""
        self.blocks: dict[int, MemoryBlock] = {}
        """By address."""

    def add(self, block: MemoryBlock) -> None:
        """Take ``block`` in."""
        insort(self.order, (block.size, block.address))
        self.blocks[block.address] = block

    def remove(self, block: MemoryBlock) -> None:
        """Let go of ``block``."""
        del self.order[bisect_left(self.order, (block.size, block.address))]
        del self.blocks[block.address]


class DeviceAddresses:
    """The device's addresses: a segment gets the lowest ones that are free.

    They matter because the allocator takes the block at the lowest address among equal ones. CUDA does not document how
    it chooses addresses. It reuses those of freed memory, and the null GPU gives the lowest ones too.
    """

    def __init__(self) -> None:
        self._holes: list[tuple[int, int]] = [(0, ADDRESSES)]
        """Start and bytes of each free range, the lowest first; neighbours are merged."""

    def take(self, size: int) -> int:
        """Return the lowest address with ``size`` free bytes from it on, which are taken."""
        for index, (start, room) in enumerate(self._holes):
            if room > size:
                self._holes[index] = (start + size, room - size)
                return start
            if room == size:
                del self._holes[index]
                return start
        raise AssertionError("there are more addresses than any device has memory")

    def give_back(self, start: int, size: int) -> None:
        """Free ``size`` bytes from ``start`` on."""
        index = bisect_left(self._holes, (start, 0))
        if index < len(self._holes) and self._holes[index][0] == start + size:
            size += self._holes.pop(index)[1]
        if index and sum(self._holes[index - 1]) == start:
            start, before = self._holes.pop(index - 1)
            size += before
            index -= 1
        self._holes.insert(index, (start, size))


class CachingAllocator:
    """The allocator's state."""

    def __init__(self, *, capacity: int | None = None, expandable_segments: bool = False) -> None:
        self.capacity = capacity
        self.expandable_segments = expandable_segments
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = 0
        self.in_use: dict[int, MemoryBlock] = {}
        """Key of an allocation → its block."""
        self.free_blocks = {False: Pool(), True: Pool()}
        """Of the small and the large pool."""
        self._unmapped = {False: Pool(), True: Pool()}
        self._addresses = DeviceAddresses()
        if expandable_segments:
            for large in (False, True):
                self._unmapped[large].add(MemoryBlock(0, ADDRESSES, large=large, mapped=False))

    def allocate(self, key: int, size: int) -> bool:
        """Serve an allocation of ``size`` bytes; return False if there is no room."""
        size = max(SMALLEST_BLOCK, _round_up(size, SMALLEST_BLOCK))
        large = size > LARGEST_SMALL
        block = self._best_fit(size, large=large)
        if block is None:
            grow = self._map if self.expandable_segments else self._new_segment
            block = grow(size, large=large)
            if block is None:
                self.empty_cache()
                block = grow(size, large=large)
            if block is None:
                return False
        self._split(block, size)
        block.free = False
        self.in_use[key] = block
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return True

    def free(self, key: int) -> None:
        """Free the allocation of ``key``."""
        block = self.in_use.pop(key)
        self.allocated -= block.size
        block.free = True
        self._offer(block)

    def empty_cache(self) -> None:
        """Give back to the device what is wholly free: segments, or pages of expandable ones."""
        for pool in self.free_blocks.values():
            for block in list(pool.blocks.values()):
                if self.expandable_segments:
                    self._unmap(block)
                elif block.preceding is None and block.following is None:
                    pool.remove(block)
                    self.reserved -= block.size
                    self._addresses.give_back(block.address, block.size)

    # Blocks

    def _best_fit(self, size: int, *, large: bool) -> MemoryBlock | None:
        """Return the smallest free block of at least ``size``, no longer free.

        One that can grow, since unmapped addresses follow it, counts as large as it can grow.
        """
        pool = self.free_blocks[large]
        index = bisect_left(pool.order, (size, -1))
        if index == len(pool.order):
            return None
        block = pool.blocks[pool.order[index][1]]
        if self.expandable_segments:
            while index + 1 < len(pool.order):
                other = pool.blocks[pool.order[index + 1][1]]
                if _size_to_grow_to(other) >= _size_to_grow_to(block):
                    break
                block = other
                index += 1
        pool.remove(block)
        return block

    def _offer(self, block: MemoryBlock) -> MemoryBlock:
        """Make ``block`` a free one, merged with its free neighbours, and return that."""
        pool = self.free_blocks[block.large]
        after, before = block.following, block.preceding
        if after is not None and after.free and after.mapped:
            pool.remove(after)
            _join(block, after)
        if before is not None and before.free and before.mapped:
            pool.remove(before)
            _join(before, block)
            block = before
        pool.add(block)
        return block

    def _split(self, block: MemoryBlock, size: int) -> None:
        """Cut ``block`` down to ``size`` if the rest is worth keeping."""
        rest = block.size - size
        always = self.expandable_segments or not block.large
        worth_it = rest >= SMALLEST_BLOCK if always else rest > LARGEST_SMALL
        if worth_it:
            self.free_blocks[block.large].add(_cut(block, size))

    # Segments

    def _new_segment(self, size: int, *, large: bool) -> MemoryBlock | None:
        """Return a new segment as one block."""
        if not large:
            taken = SMALL_SEGMENT
        elif size < SMALLEST_OWN_SEGMENT:
            taken = LARGE_SEGMENT
        else:
            taken = _round_up(size, SEGMENT_ROUNDING)
        if not self._take(taken):
            return None
        return MemoryBlock(self._addresses.take(taken), taken, large=large)

    def _map(self, size: int, *, large: bool) -> MemoryBlock | None:
        """Return a block of at least ``size`` after mapping what it lacks."""
        block = self._room(size, large=large)
        if not block.mapped:
            mapped = self._map_pages(block, size)
            if mapped is None:
                return None
            block = mapped
        while block.size < size:
            assert block.following is not None
            mapped = self._map_pages(block.following, size - block.size)
            if mapped is None:
                return None
            block = mapped
        self.free_blocks[large].remove(block)
        return block

    def _room(self, size: int, *, large: bool) -> MemoryBlock:
        """Return the first of consecutive free or unmapped blocks with room for ``size``."""
        pool = self._unmapped[large]
        for _, address in pool.order:
            block = first = pool.blocks[address]
            if block.preceding is not None and block.preceding.free:
                first = block.preceding
            room, following = 0, first
            while following.free:
                room += following.size
                if room >= size:
                    return first
                if following.following is None:
                    break
                following = following.following
        raise AssertionError("the last block is unmapped and larger than any device")

    def _map_pages(self, block: MemoryBlock, size: int) -> MemoryBlock | None:
        """Map the beginning of an unmapped ``block`` and return it, merged with its free neighbours."""
        page = LARGE_SEGMENT if block.large else SMALL_SEGMENT
        size = min(_round_up(size, page), block.size)
        if not self._take(size):
            return None
        unmapped = self._unmapped[block.large]
        unmapped.remove(block)
        if block.size > size:
            unmapped.add(_cut(block, size))
        block.mapped = True
        return self._offer(block)

    def _unmap(self, block: MemoryBlock) -> None:
        """Give back the pages that lie wholly in free ``block``."""
        page = LARGE_SEGMENT if block.large else SMALL_SEGMENT
        start = _round_up(block.address, page)
        end = (block.address + block.size) // page * page
        if end <= start:
            return
        free, unmapped = self.free_blocks[block.large], self._unmapped[block.large]
        free.remove(block)
        pages = block
        if start > block.address:
            pages = _cut(block, start - block.address)
            free.add(block)
        if pages.address + pages.size > end:
            free.add(_cut(pages, end - start))
        self.reserved -= pages.size
        pages.mapped = False
        after, before = pages.following, pages.preceding
        if after is not None and not after.mapped:
            unmapped.remove(after)
            _join(pages, after)
        if before is not None and not before.mapped:
            unmapped.remove(before)
            _join(before, pages)
            pages = before
        unmapped.add(pages)

    def _take(self, size: int) -> bool:
        """Take ``size`` bytes from the device, if it has them."""
        if self.capacity is not None and self.reserved + size > self.capacity:
            return False
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True


def _cut(block: MemoryBlock, size: int) -> MemoryBlock:
    """Shorten ``block`` to ``size`` and return the rest as a block that follows it."""
    rest = MemoryBlock(block.address + size, block.size - size, large=block.large, mapped=block.mapped)
    rest.preceding, rest.following = block, block.following
    if block.following is not None:
        block.following.preceding = rest
    block.following = rest
    block.size = size
    return rest


def _join(first: MemoryBlock, second: MemoryBlock) -> None:
    """Let ``first`` take in ``second``, which follows it."""
    first.size += second.size
    first.following = second.following
    if second.following is not None:
        second.following.preceding = first


def _size_to_grow_to(block: MemoryBlock) -> int:
    following = block.following
    return block.size + (following.size if following is not None and not following.mapped else 0)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
