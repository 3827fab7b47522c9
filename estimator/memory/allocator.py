"""CUDA's caching allocator, replayed: how much it takes from the device to serve a sequence of allocations.

As read in torch's `c10/cuda/CUDACachingAllocator.cpp`, for one stream:

- sizes are rounded up to 512 B, or to divisions between powers of 2 (`roundup_power2_divisions`);
- up to 1 MiB they come from the small pool, in segments of 2 MiB; above from the large pool: below 10 MiB in segments
  of 20 MiB (`large_segment_size_mb`), from 10 MiB on in segments of their own size, rounded up to 2 MiB;
- the smallest free block that is large enough is taken, and of equal ones that in the oldest segment (the segments'
  registration counter), then at the lowest address; what is left of it becomes a free block if it is at least
  512 B (small pool) or more than 1 MiB (large pool);
- a freed block merges with its free neighbours in the segment;
- before it fails, the allocator releases segments that are wholly free.

With ``expandable_segments`` a segment is a stretch of addresses, 9/8 of the device's memory, most of them unmapped. The
allocator maps pages of 2 MiB (small pool) or 20 MiB (large) next to free blocks when it needs them. A pool begins
another segment if no stretch of free and unmapped addresses is long enough. We assume that it lies below the earlier
ones, as Linux places it; a driver may place it elsewhere. Blocks are always split; before it fails, the allocator
unmaps every page that is wholly free.

With ``max_split_size_mb`` blocks of that size and more are neither split nor used for smaller allocations. Before all
segments, only as many of these blocks are given back as an allocation needs.

With ``garbage_collection_threshold`` and a limit, segments that are free for longer than the average are given back
before a new one is taken, as soon as more than that share of the limit is reserved.
"""

from __future__ import annotations

from bisect import bisect_left

from lorabench.estimator.memory.allocator_settings import DEFAULTS, SMALLEST_OWN_SEGMENT, AllocatorSettings
from lorabench.estimator.quantities import MIB

SMALLEST_BLOCK = 512
LARGEST_SMALL = MIB
"""Largest allocation that the small pool serves."""
SMALL_SEGMENT = 2 * MIB
SEGMENT_ROUNDING = 2 * MIB
MOST_ADDRESSES = 2**50
"""Bytes of addresses in an expandable segment if the device's memory is unknown: more than any device has."""
ADDRESS_BITS = 80
"""Bits of an address in a sort key."""
LAST_ADDRESS = 2**59
"""Expandable segments lie below it."""


class MemoryBlock:
    """A stretch of a segment: in use, free, or (in an expandable segment) unmapped."""

    __slots__ = ("address", "following", "free", "freed_at", "key", "mapped", "pool", "preceding", "size")

    freed_at: int
    """Number of searches in the pool before the block came into it."""
    key: int
    """Size and address in one number, while it is in the pool."""

    def __init__(
        self,
        address: int,
        size: int,
        pool: Pool,
        mapped: bool = True,
        preceding: MemoryBlock | None = None,
        following: MemoryBlock | None = None,
    ) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.mapped = mapped
        self.free = True
        self.preceding = preceding
        self.following = following


class Pool:
    """Free blocks, the smallest first, and of equal ones that at the lowest address, which is in the oldest segment."""

    __slots__ = ("blocks", "exchanges", "keys", "large", "page", "searches", "unmapped", "unsplit")

    def __init__(self, *, large: bool, settings: AllocatorSettings) -> None:
        self.large = large
        self.page = settings.large_segment if large else SMALL_SEGMENT
        self.unsplit = LARGEST_SMALL if large and not settings.expandable_segments else 0
        """What is left of a block becomes a block of its own if it has more bytes than these."""
        self.keys: list[int] = []
        """Size and address of each block, in one number."""
        self.blocks: list[MemoryBlock] = []
        self.searches = 0
        self.exchanges = 0
        """How often memory was taken from the device or given back."""
        self.unmapped: list[MemoryBlock] = []
        """Unmapped blocks, by address."""

    def add(self, block: MemoryBlock) -> None:
        """Add ``block``."""
        block.key = key = block.size << ADDRESS_BITS | block.address
        block.freed_at = self.searches
        index = bisect_left(self.keys, key)
        self.keys.insert(index, key)
        self.blocks.insert(index, block)

    def remove(self, block: MemoryBlock) -> None:
        """Remove ``block``."""
        index = bisect_left(self.keys, block.key)
        del self.keys[index]
        del self.blocks[index]

    def first_of(self, size: int) -> int:
        """Return the index of the smallest block of at least ``size``; the number of blocks if there is none."""
        return bisect_left(self.keys, size << ADDRESS_BITS)


class CachingAllocator:
    """The allocator's state."""

    def __init__(self, settings: AllocatorSettings = DEFAULTS, *, capacity: int | None = None) -> None:
        """Begin with nothing reserved, on a device that has ``capacity`` bytes to give; None for any number."""
        self.settings = settings
        self.capacity = capacity
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = 0
        self.in_use: dict[int, MemoryBlock] = {}
        """Key of an allocation → its block."""
        self.small = Pool(large=False, settings=settings)
        self.large = Pool(large=True, settings=settings)
        self._divisions = settings.roundup_divisions
        self._plain = not settings.expandable_segments and settings.max_split is None
        self._collects = settings.limit is not None and settings.collection_threshold > 0
        self._addresses = MOST_ADDRESSES if capacity is None else capacity * 9 // 8
        self._end_of_segments = 0
        """A new segment begins here, so that blocks of earlier segments have lower addresses."""
        self._end_of_addresses = LAST_ADDRESS
        """Expandable segments lie below it."""

    @property
    def exchanges(self) -> int:
        """How often memory was taken from the device or given back."""
        return self.small.exchanges + self.large.exchanges

    def copied(self) -> CachingAllocator:
        """Return another allocator in the same state."""
        twin = CachingAllocator(self.settings, capacity=self.capacity)
        twin.allocated, twin.peak_allocated = self.allocated, self.peak_allocated
        twin.reserved, twin.peak_reserved = self.reserved, self.peak_reserved
        twin._end_of_segments, twin._end_of_addresses = self._end_of_segments, self._end_of_addresses
        twins: dict[MemoryBlock, MemoryBlock] = {}
        pools = (self.small, twin.small), (self.large, twin.large)
        for block in (*self.in_use.values(), *(free for pool, _ in pools for free in (*pool.blocks, *pool.unmapped))):
            pool = twin.large if block.pool.large else twin.small
            twins[block] = MemoryBlock(block.address, block.size, pool, block.mapped)
        for block, same in twins.items():
            same.free = block.free
            if block.following is not None:
                same.following = twins[block.following]
                same.following.preceding = same
        twin.in_use = {key: twins[block] for key, block in self.in_use.items()}
        for pool, other in pools:
            other.keys = [*pool.keys]
            other.blocks = [twins[block] for block in pool.blocks]
            for block, same in zip(pool.blocks, other.blocks, strict=True):
                same.key, same.freed_at = block.key, block.freed_at
            other.unmapped = [twins[block] for block in pool.unmapped]
            other.searches, other.exchanges = pool.searches, pool.exchanges
        return twin

    def allocate(self, key: int, size: int) -> bool:
        """Serve an allocation of ``size`` bytes; return False if there is no room."""
        size = self._rounded(size) if self._divisions else (size + 511) & -512 or SMALLEST_BLOCK
        pool = self.large if size > LARGEST_SMALL else self.small
        keys = pool.keys
        pool.searches += 1
        index = bisect_left(keys, size << ADDRESS_BITS)
        if not self._plain:
            index = self._suitable(index, size, pool)
        if index < len(keys):
            del keys[index]
            block = pool.blocks.pop(index)
        else:
            grown = self._grow(size, pool)
            if grown is None:
                return False
            block = grown
        if block.size - size > pool.unsplit and (self._plain or self._may_split(size, pool)):
            # pool.add(_cut(block, size)), without calls
            address, following = block.address + size, block.following
            rest = block.following = MemoryBlock(address, block.size - size, pool, True, block, following)
            if following is not None:
                following.preceding = rest
            rest.freed_at = pool.searches
            rest.key = rest.size << ADDRESS_BITS | address
            index = bisect_left(keys, rest.key)
            keys.insert(index, rest.key)
            pool.blocks.insert(index, rest)
            block.size = size
        block.free = False
        self.in_use[key] = block
        self.allocated = allocated = self.allocated + block.size
        if allocated > self.peak_allocated:
            self.peak_allocated = allocated
        return True

    def free(self, key: int) -> None:
        """Free the allocation of ``key``."""
        block = self.in_use.pop(key)
        self.allocated -= block.size
        block.free = True
        _offer(block)

    def empty_cache(self) -> None:
        """Give back to the device what is wholly free: segments, or pages of expandable ones."""
        for pool in (self.large, self.small):
            for block in list(pool.blocks):
                if self.settings.expandable_segments:
                    self._unmap(block)
                elif not _is_split(block):
                    self._give_back(block)

    # Sizes

    def _rounded(self, size: int) -> int:
        """Return ``size``, rounded up to a division between powers of 2 if the settings ask for it."""
        interval = min(max(size.bit_length() - MIB.bit_length(), 0), len(self._divisions) - 1)
        divisions = self._divisions[interval]
        if divisions > 1 and size > SMALLEST_BLOCK * divisions:
            return _round_up(size, (1 << size.bit_length() - 1) // divisions)
        return max(SMALLEST_BLOCK, _round_up(size, SMALLEST_BLOCK))

    def _segment(self, size: int, pool: Pool) -> int:
        """Return the bytes of a new segment for an allocation of ``size``."""
        return _round_up(size, SEGMENT_ROUNDING) if size >= SMALLEST_OWN_SEGMENT else pool.page

    # Blocks

    def _suitable(self, index: int, size: int, pool: Pool) -> int:
        """Return the index of the block to take, if settings are not the defaults; the number of blocks for none.

        ``index``: that of the smallest block that is large enough. A block that can grow, since unmapped addresses
        follow it, counts as large as it can grow.
        """
        blocks, most = pool.blocks, self.settings.max_split
        if index == len(blocks):
            return index
        if self.settings.expandable_segments:
            while index + 1 < len(blocks) and _size_to_grow_to(blocks[index + 1]) < _size_to_grow_to(blocks[index]):
                index += 1
        if most is None:
            return index
        found = blocks[index].size
        too_large = found >= most if size < most else found >= size + self.settings.max_non_split_rounding
        return len(blocks) if too_large else index

    def _may_split(self, size: int, pool: Pool) -> bool:
        most = self.settings.max_split
        return most is None or size < most or not pool.unsplit

    def _grow(self, size: int, pool: Pool) -> MemoryBlock | None:
        """Return a block of at least ``size`` from the device; None if it has no room, even for what is cached."""
        if self._collects:
            self._collect()
        block = self._try_to_grow(size, pool)
        if block is None and self._give_back_unsplit(size, pool):
            block = self._try_to_grow(size, pool)
        if block is None:
            self.empty_cache()
            block = self._try_to_grow(size, pool)
        return block

    def _try_to_grow(self, size: int, pool: Pool) -> MemoryBlock | None:
        limit = self.settings.limit
        if limit is not None and self.reserved + self._segment(size, pool) > limit:
            return None
        return self._map(size, pool) if self.settings.expandable_segments else self._new_segment(size, pool)

    # Segments

    def _new_segment(self, size: int, pool: Pool) -> MemoryBlock | None:
        """Return a new segment as one block."""
        taken = self._segment(size, pool)
        if not self._take(taken, pool):
            return None
        self._end_of_segments += taken
        return MemoryBlock(self._end_of_segments - taken, taken, pool)

    def _give_back(self, block: MemoryBlock) -> None:
        """Give back the segment that ``block`` is."""
        block.pool.remove(block)
        self.reserved -= block.size
        block.pool.exchanges += 1

    def _give_back_unsplit(self, size: int, pool: Pool) -> bool:
        """Give back blocks too large to be split, as many as ``size`` needs; return whether these were enough."""
        most = self.settings.max_split
        if most is None or self.settings.expandable_segments:
            return False
        wanted = max(size, most)
        index = pool.first_of(wanted)
        if index < len(pool.blocks):
            self._give_back(pool.blocks[index])
            return True
        given = 0
        while given < wanted and pool.blocks and pool.blocks[-1].size >= most:
            given += pool.blocks[-1].size
            self._give_back(pool.blocks[-1])
        return given >= wanted

    def _collect(self) -> None:
        """Give back segments of the large pool that are free for longer than the average, if too much is reserved."""
        assert self.settings.limit is not None
        pool = self.large
        excess = self.reserved - int(self.settings.collection_threshold * self.settings.limit)
        idle = [] if self.settings.expandable_segments else [block for block in pool.blocks if not _is_split(block)]
        while excess > 0 and idle:
            least_age = sum(pool.searches - block.freed_at for block in idle) / len(idle)
            old = [block for block in idle if pool.searches - block.freed_at >= least_age]
            for block in old:
                excess -= block.size
                self._give_back(block)
            idle = [block for block in idle if block not in old]

    # Expandable segments

    def _map(self, size: int, pool: Pool) -> MemoryBlock | None:
        """Return a block of at least ``size`` after mapping what it lacks."""
        block = _room(size, pool) or self._new_expandable_segment(pool)
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
        pool.remove(block)
        return block

    def _new_expandable_segment(self, pool: Pool) -> MemoryBlock:
        """Return the addresses of a new segment as one unmapped block."""
        size = _round_up(self._addresses, pool.page)
        self._end_of_addresses = (self._end_of_addresses - size) // pool.page * pool.page
        block = MemoryBlock(self._end_of_addresses, size, pool, mapped=False)
        pool.unmapped.insert(0, block)
        return block

    def _map_pages(self, block: MemoryBlock, size: int) -> MemoryBlock | None:
        """Map the beginning of an unmapped ``block`` and return it, merged with its free neighbours."""
        pool = block.pool
        size = min(_round_up(size, pool.page), block.size)
        if not self._take(size, pool):
            return None
        index = pool.unmapped.index(block)
        del pool.unmapped[index]
        if block.size > size:
            pool.unmapped.insert(index, _cut(block, size))
        block.mapped = True
        return _offer(block)

    def _unmap(self, block: MemoryBlock) -> None:
        """Give back the pages that lie wholly in free ``block``."""
        pool = block.pool
        start = _round_up(block.address, pool.page)
        end = (block.address + block.size) // pool.page * pool.page
        if end <= start:
            return
        pool.remove(block)
        pages = block
        if start > block.address:
            pages = _cut(block, start - block.address)
            pool.add(block)
        if pages.address + pages.size > end:
            pool.add(_cut(pages, end - start))
        self.reserved -= pages.size
        pool.exchanges += 1
        pages.mapped = False
        after, before = pages.following, pages.preceding
        if after is not None and not after.mapped:
            pool.unmapped.remove(after)
            _join(pages, after)
        if before is not None and not before.mapped:
            pool.unmapped.remove(before)
            _join(before, pages)
            pages = before
        if _is_split(pages):
            pool.unmapped.append(pages)
            pool.unmapped.sort(key=lambda unmapped: unmapped.address)

    def _take(self, size: int, pool: Pool) -> bool:
        """Take ``size`` bytes from the device for ``pool``, if it has them."""
        if self.capacity is not None and self.reserved + size > self.capacity:
            return False
        self.reserved += size
        pool.exchanges += 1
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True


def _offer(block: MemoryBlock) -> MemoryBlock:
    """Make ``block`` a free one, merged with its free neighbours, and return that."""
    # with Pool.remove, _join and Pool.add, without calls
    pool = block.pool
    keys, blocks = pool.keys, pool.blocks
    after, before = block.following, block.preceding
    if after is not None and after.free and after.mapped:
        index = bisect_left(keys, after.key)
        del keys[index], blocks[index]
        block.size += after.size
        block.following = following = after.following
        if following is not None:
            following.preceding = block
    if before is not None and before.free and before.mapped:
        index = bisect_left(keys, before.key)
        del keys[index], blocks[index]
        before.size += block.size
        before.following = following = block.following
        if following is not None:
            following.preceding = before
        block = before
    block.freed_at = pool.searches
    block.key = key = block.size << ADDRESS_BITS | block.address
    index = bisect_left(keys, key)
    keys.insert(index, key)
    blocks.insert(index, block)
    return block


def _room(size: int, pool: Pool) -> MemoryBlock | None:
    """Return the first of consecutive free or unmapped blocks with room for ``size``, at the lowest address."""
    for block in pool.unmapped:
        first = block
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
    return None


def _cut(block: MemoryBlock, size: int) -> MemoryBlock:
    """Shorten ``block`` to ``size`` and return the rest as a block that follows it."""
    following = block.following
    rest = MemoryBlock(block.address + size, block.size - size, block.pool, block.mapped, block, following)
    if following is not None:
        following.preceding = rest
    block.following = rest
    block.size = size
    return rest


def _join(first: MemoryBlock, second: MemoryBlock) -> None:
    """Merge ``second``, which follows ``first``, into it."""
    first.size += second.size
    first.following = second.following
    if second.following is not None:
        second.following.preceding = first


def _is_split(block: MemoryBlock) -> bool:
    return block.preceding is not None or block.following is not None


def _size_to_grow_to(block: MemoryBlock) -> int:
    following = block.following
    return block.size + (following.size if following is not None and not following.mapped else 0)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
