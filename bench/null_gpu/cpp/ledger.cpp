#include "ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <mutex>
#include <string>

#include "card.h"
#include "refusals.h"

namespace null_gpu {
namespace {

struct Entry {
  pid_t process;  // 0: free
  int card;
  size_t bytes;
};

constexpr size_t entries = 4096;

// A file that processes share, under a lock that the kernel releases if its holder dies; without a folder, memory of
// this process.
class Ledger {
 public:
  Ledger() {
    const std::string path = note_path("ledger");
    const size_t size = entries * sizeof(Entry);
    void* memory;
    if (path.empty()) {
      memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    } else {
      file_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
      if (file_ < 0 || ftruncate(file_, size) != 0) fatal("null GPU: cannot write " + path);
      memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
    }
    if (memory == MAP_FAILED) fatal("null GPU: no memory for its ledger");
    table_ = static_cast<Entry*>(memory);
  }

  // Calls `look` with the entry of this process and card, and the bytes of all processes on that card.
  template <class Look>
  auto with(int card, Look look) {
    std::lock_guard<std::mutex> guard(lock_);
    if (file_ >= 0) flock(file_, LOCK_EX);
    Entry* own = nullptr;
    Entry* room = nullptr;
    size_t all = 0;
    for (size_t i = 0; i < entries; i++) {
      Entry& entry = table_[i];
      if (entry.process != 0 && entry.process != getpid() && kill(entry.process, 0) != 0 && errno == ESRCH) {
        entry = {};
      }
      if (entry.process == 0) {
        if (room == nullptr) room = &entry;
        continue;
      }
      if (entry.card != card) continue;
      all += entry.bytes;
      if (entry.process == getpid()) own = &entry;
    }
    if (own == nullptr) own = room;
    if (own == nullptr) fatal("null GPU: too many processes for its ledger");
    auto result = look(*own, all);
    if (file_ >= 0) flock(file_, LOCK_UN);
    return result;
  }

  template <class Look>
  void each(Look look) {
    std::lock_guard<std::mutex> guard(lock_);
    for (size_t i = 0; i < entries; i++) look(table_[i]);
  }

 private:
  int file_ = -1;
  Entry* table_;
  std::mutex lock_;
};

Ledger& ledger() {
  static Ledger* one = new Ledger;  // used until the very end of the process
  return *one;
}

}  // namespace

bool take(int card_number, size_t bytes) {
  return ledger().with(card_number, [&](Entry& own, size_t all) {
    if (all + bytes > card().usable_bytes) return false;
    own = {getpid(), card_number, own.process == 0 ? bytes : own.bytes + bytes};
    return true;
  });
}

void give_back(int card_number, size_t bytes) {
  ledger().with(card_number, [&](Entry& own, size_t) {
    own.bytes -= bytes;
    return true;
  });
}

std::vector<Taken> taken_by_process(int card_number) {
  free_bytes(card_number);  // removes ended processes
  std::vector<Taken> all;
  ledger().each([&](const Entry& entry) {
    if (entry.process != 0 && entry.card == card_number) all.push_back({entry.process, entry.bytes});
  });
  return all;
}

size_t free_bytes(int card_number) {
  return ledger().with(card_number, [&](Entry&, size_t all) { return card().usable_bytes - all; });
}

}  // namespace null_gpu
