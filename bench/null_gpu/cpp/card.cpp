#include "card.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "conditions.h"
#include "refusals.h"

namespace null_gpu {
namespace {

const char* said(const char* variable) {
  const char* value = getenv(variable);
  if (value == nullptr || *value == '\0') {
    fatal(std::string("the null GPU needs ") + variable + " in the environment");
  }
  return value;
}

long long number(const char* variable) { return atoll(said(variable)); }

std::vector<int> read_visible() {
  std::vector<int> seen;
  const char* list = getenv("CUDA_VISIBLE_DEVICES");
  if (list == nullptr) {
    for (int i = 0; i < cards(); i++) seen.push_back(i);
    return seen;
  }
  // As CUDA reads it: the list ends at the first entry that names no card.
  std::string rest = list;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    std::string entry = rest.substr(0, comma);
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    entry.erase(0, entry.find_first_not_of(" \t"));
    entry.erase(entry.find_last_not_of(" \t") + 1);
    int found = -1;
    if (!entry.empty() && entry.find_first_not_of("0123456789") == std::string::npos) {
      const int index = atoi(entry.c_str());
      if (index < cards()) found = index;
    } else if (entry.rfind("GPU-", 0) == 0 || entry.rfind("MIG-", 0) == 0) {
      for (int i = 0; i < cards(); i++) {
        if (visible_uuid_text(i).rfind(entry, 0) == 0) found = i;
      }
    }
    if (found < 0) break;
    seen.push_back(found);
  }
  return seen;
}

std::string hexadecimal(const unsigned char b[16]) {
  char text[64];
  snprintf(text, sizeof text, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2],
           b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
  return text;
}

const std::vector<int>& visible() {
  static const std::vector<int> seen = [] {
    std::vector<int> found = read_visible();
    if (conditions().mig && found.size() > 1) found.resize(1);  // CUDA uses one instance, however many there are
    return found;
  }();
  return seen;
}

}  // namespace

const Card& card() {
  static const Card read = [] {
    Card c;
    c.name = said("NULL_GPU_NAME");
    if (sscanf(said("NULL_GPU_CAPABILITY"), "%d.%d", &c.major, &c.minor) != 2) {
      fatal("NULL_GPU_CAPABILITY must be such as 8.0");
    }
    c.multiprocessors = static_cast<int>(number("NULL_GPU_MULTIPROCESSORS"));
    c.threads_per_multiprocessor = static_cast<int>(number("NULL_GPU_THREADS_PER_MULTIPROCESSOR"));
    c.blocks_per_multiprocessor = static_cast<int>(number("NULL_GPU_BLOCKS_PER_MULTIPROCESSOR"));
    c.shared_bytes_per_multiprocessor = number("NULL_GPU_SHARED_BYTES_PER_MULTIPROCESSOR");
    c.shared_bytes_per_block = number("NULL_GPU_SHARED_BYTES_PER_BLOCK");
    c.memory_bytes = number("NULL_GPU_MEMORY_BYTES");
    c.usable_bytes = number("NULL_GPU_USABLE_BYTES");
    c.cache_bytes = number("NULL_GPU_CACHE_BYTES");
    return c;
  }();
  return read;
}

int cards() {
  static const int count = static_cast<int>(number("NULL_GPU_COUNT"));
  return count;
}

int visible_cards() { return static_cast<int>(visible().size()); }

int card_of(int ordinal) { return visible().at(ordinal); }

void uuid_of(int card, unsigned char bytes[16]) {
  memset(bytes, 0, 16);
  memcpy(bytes, "null-gpu", 8);
  bytes[15] = static_cast<unsigned char>(card);
}

std::string uuid_text(int card) {
  unsigned char bytes[16];
  uuid_of(card, bytes);
  return "GPU-" + hexadecimal(bytes);
}

void visible_uuid_of(int card, unsigned char bytes[16]) {
  uuid_of(card, bytes);
  if (conditions().mig) memcpy(bytes, "null-mig", 8);
}

std::string visible_uuid_text(int card) {
  unsigned char bytes[16];
  visible_uuid_of(card, bytes);
  return (conditions().mig ? "MIG-" : "GPU-") + hexadecimal(bytes);
}

}  // namespace null_gpu
