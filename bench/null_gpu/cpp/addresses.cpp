#include "addresses.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>

#include "card.h"
#include "export.h"
#include "refusals.h"

namespace null_gpu {
namespace {

// Reads of device memory by the host are real up to this size: counts, losses, predictions.
constexpr size_t real_read_bytes = 64 << 20;

// Values that this thread's next reads of a device return instead of the memory's; see null_gpu_answer.
thread_local std::deque<int64_t> answers;

void* map_untouched(size_t bytes) {
  void* start = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return nullptr;
  madvise(start, bytes, MADV_NOHUGEPAGE);  // one byte that is touched costs 4 KiB, not 2 MiB
  return start;
}

void forget_contents(uintptr_t start, size_t bytes) { madvise(reinterpret_cast<void*>(start), bytes, MADV_DONTNEED); }

// The address space of one device: four times its memory, so that gaps between blocks never make an allocation fail.
class Arena {
 public:
  Arena() {
    const size_t bytes = 4 * whole_pages(card().memory_bytes);
    void* start = map_untouched(bytes + page_bytes);
    if (start == nullptr) fatal("null GPU: no address space (ulimit -v, or vm.overcommit_memory=2, forbid it)");
    holes_[whole_pages(reinterpret_cast<uintptr_t>(start))] = bytes;
  }

  uintptr_t take(size_t bytes) {
    for (auto hole = holes_.begin(); hole != holes_.end(); ++hole) {
      if (hole->second < bytes) continue;
      const uintptr_t start = hole->first;
      if (hole->second > bytes) holes_[start + bytes] = hole->second - bytes;
      holes_.erase(start);
      return start;
    }
    return 0;
  }

  void give_back(uintptr_t start, size_t bytes) {
    forget_contents(start, bytes);
    auto after = holes_.emplace(start, bytes).first;
    auto next = std::next(after);
    if (next != holes_.end() && start + bytes == next->first) {
      after->second += next->second;
      holes_.erase(next);
    }
    if (after == holes_.begin()) return;
    auto before = std::prev(after);
    if (before->first + before->second == start) {
      before->second += after->second;
      holes_.erase(after);
    }
  }

 private:
  std::map<uintptr_t, size_t> holes_;
};

struct Space {
  std::mutex lock;
  std::map<uintptr_t, Range> ranges;
  std::map<int, std::unique_ptr<Arena>> arenas;
};

Space& space() {
  static Space* one = new Space;  // used until the very end of the process
  return *one;
}

}  // namespace

size_t whole_pages(size_t bytes) { return (bytes + page_bytes - 1) / page_bytes * page_bytes; }

void* allocate_device(int device, size_t bytes) {
  Space& all = space();
  std::lock_guard<std::mutex> guard(all.lock);
  auto& arena = all.arenas[device];
  if (arena == nullptr) arena = std::make_unique<Arena>();
  const uintptr_t start = arena->take(whole_pages(bytes));
  if (start != 0) all.ranges[start] = {start, whole_pages(bytes), Kind::device, device};
  return reinterpret_cast<void*>(start);
}

void* allocate(Kind kind, int device, size_t bytes) {
  if (bytes == 0) return nullptr;
  // Reserved address space begins where a page of the device does.
  const size_t spare = kind == Kind::reserved ? page_bytes : 0;
  void* memory = map_untouched(bytes + spare);
  if (memory == nullptr) return nullptr;
  uintptr_t start = reinterpret_cast<uintptr_t>(memory);
  if (spare != 0) {
    const uintptr_t aligned = whole_pages(start);
    if (aligned > start) munmap(memory, aligned - start);
    const uintptr_t end = start + bytes + spare;
    if (end > aligned + bytes) munmap(reinterpret_cast<void*>(aligned + bytes), end - aligned - bytes);
    start = aligned;
  }
  Space& all = space();
  std::lock_guard<std::mutex> guard(all.lock);
  all.ranges[start] = {start, bytes, kind, device};
  return reinterpret_cast<void*>(start);
}

Range release(const void* pointer) {
  Space& all = space();
  std::lock_guard<std::mutex> guard(all.lock);
  const auto found = all.ranges.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == all.ranges.end()) return {};
  const Range range = found->second;
  all.ranges.erase(found);
  if (range.kind == Kind::device) {
    all.arenas[range.device]->give_back(range.start, range.bytes);
  } else {
    munmap(reinterpret_cast<void*>(range.start), range.bytes);
  }
  return range;
}

Range find(const void* pointer) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  Space& all = space();
  std::lock_guard<std::mutex> guard(all.lock);
  auto after = all.ranges.upper_bound(address);
  if (after == all.ranges.begin()) return {};
  const Range& range = std::prev(after)->second;
  return address < range.start + range.bytes ? range : Range{};
}

bool is_of_a_device(const void* pointer) {
  const Range range = find(pointer);
  return range.start != 0 && (range.kind == Kind::device || range.kind == Kind::reserved);
}

void copy(void* to, const void* from, size_t bytes) {
  if (!answers.empty() && bytes <= sizeof(int64_t) && is_of_a_device(from) && !is_of_a_device(to)) {
    memcpy(to, &answers.front(), bytes);
    answers.pop_front();
    return;
  }
  if (bytes > real_bytes) {
    if (is_of_a_device(to) || (bytes > real_read_bytes && is_of_a_device(from))) return;
  }
  memmove(to, from, bytes);
}

void fill(void* to, int value, size_t bytes) {
  if (bytes <= real_bytes) {
    memset(to, value, bytes);
    return;
  }
  if (value != 0) return;
  // Zeros of any size are real, since the kernel clears pages that are discarded.
  const uintptr_t start = reinterpret_cast<uintptr_t>(to), end = start + bytes;
  const uintptr_t page = sysconf(_SC_PAGESIZE);
  const uintptr_t first = (start + page - 1) / page * page, last = end / page * page;
  memset(to, 0, first - start);
  forget_contents(first, last - first);
  memset(reinterpret_cast<void*>(last), 0, end - last);
}

}  // namespace null_gpu

using null_gpu::answers;

// Some kernels count (the true elements of a mask), and the host reads the count to allocate the result. A caller that
// knows the count sets it here: this thread's next read of up to eight bytes of device memory returns `count`.
EXPORT void null_gpu_answer(int64_t count) { answers.push_back(count); }

// Forgets answers that nobody read, and returns how many there were.
EXPORT int null_gpu_forget_answers() {
  const int unread = static_cast<int>(answers.size());
  answers.clear();
  return unread;
}
