#include "memory.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <vector>

#include "failure.h"
#include "fiber.h"
#include "scheduler.h"
#include "thread.h"

namespace emulated {
namespace {

constexpr std::size_t kPage = 4096;
constexpr unsigned char kSlack = 0xa5;

struct Guarded {
  char* array;
  std::size_t bytes, mapped;
};
std::map<const char*, Guarded> all;  // by the first mapped byte

std::map<const char*, Guarded>::iterator holding(const void* address) {
  auto found = all.upper_bound(static_cast<const char*>(address));
  if (found == all.begin()) return all.end();
  --found;
  return static_cast<const char*>(address) < found->first + found->second.mapped ? found
                                                                                 : all.end();
}

}  // namespace

void* allocate_guarded(std::size_t bytes, std::size_t alignment, Side side) {
  const std::size_t body = std::max(kPage, (bytes + kPage - 1) / kPage * kPage);
  const std::size_t mapped = body + 2 * kPage;
  void* const memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  char* const first = static_cast<char*>(memory) + kPage;
  mprotect(first - kPage, kPage, PROT_NONE);
  mprotect(first + body, kPage, PROT_NONE);
  const std::size_t room = (bytes + alignment - 1) / alignment * alignment;
  char* const array = side == Side::end ? first + body - room : first;
  std::memset(first, kSlack, array - first);
  std::memset(array + bytes, kSlack, first + body - array - bytes);
  all[first - kPage] = {array, bytes, mapped};
  return array;
}

bool release_guarded(void* array) {
  const auto found = holding(array);
  if (found == all.end()) return false;
  const Guarded guarded = found->second;
  char* const first = const_cast<char*>(found->first);
  const auto is_slack = [](char c) { return static_cast<unsigned char>(c) == kSlack; };
  const bool untouched =
      std::all_of(first + kPage, guarded.array, is_slack) &&
      std::all_of(guarded.array + guarded.bytes, first + guarded.mapped - kPage, is_slack);
  all.erase(found);
  munmap(first, guarded.mapped);
  return untouched;
}

Extent find_guarded(const void* address) {
  const auto found = holding(address);
  return found == all.end() ? Extent() : Extent{found->second.array, found->second.bytes};
}

void fail_access(const void* address, const void* code) {
  const char* const where = static_cast<const char*>(address);
  const char* const from = code_location(code);
  if (below_stack(address)) fail("stack overflow at %s", from);
  const auto found = holding(address);
  if (found == all.end()) fail("illegal address %p at %s", address, from);
  const Guarded& array = found->second;
  fail("illegal address: byte %td of an array of %zu bytes, at %s", where - array.array,
       array.bytes, from);
}

namespace {

struct sigaction segv_before, bus_before;
stack_t stack_before;

void on_fault(int signal, siginfo_t* info, [[maybe_unused]] void* context) {
  if (!current) {  // not a kernel's: let it strike again, unhandled
    sigaction(signal, signal == SIGSEGV ? &segv_before : &bus_before, nullptr);
    return;
  }
  void* code = nullptr;
#ifdef __x86_64__
  code = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#endif
  fail_access(info->si_addr, code);  // leaves the handler for good
}

}  // namespace

FaultHandler::FaultHandler() {
  static char stack[64 << 10];  // a kernel's own may be what overflowed
  stack_t here = {};
  here.ss_sp = stack;
  here.ss_size = sizeof stack;
  sigaltstack(&here, &stack_before);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &segv_before);
  sigaction(SIGBUS, &action, &bus_before);
}

FaultHandler::~FaultHandler() {
  sigaction(SIGSEGV, &segv_before, nullptr);
  sigaction(SIGBUS, &bus_before, nullptr);
  sigaltstack(&stack_before, nullptr);
}

namespace {

struct Array {
  const void* site;  // null: the dynamic one
  std::size_t bytes;
  void* data;
  bool in_use;  // by the running block
};
std::vector<Array> arrays;
std::size_t dynamic_bytes_here;

std::size_t bytes_in_use(bool only_static) {
  std::size_t sum = 0;
  for (const Array& array : arrays) {
    if (array.in_use && !(only_static && !array.site)) sum += array.bytes;
  }
  return sum;
}

void* get(const void* site, std::size_t bytes, std::size_t alignment) {
  const auto found = std::find_if(arrays.begin(), arrays.end(), [&](const Array& array) {
    return array.site == site && array.bytes == bytes;
  });
  Array& array = found != arrays.end()
                     ? *found
                     : arrays.emplace_back(Array{
                           site, bytes, allocate_guarded(bytes, alignment, Side::end), false});
  if (!array.in_use) {
    array.in_use = true;
    std::memset(array.data, 0xff, bytes);
    if (bytes_in_use(true) > kStaticSharedLimit || bytes_in_use(false) > kBlockSharedLimit) {
      fail("%zu bytes of shared memory, %zu of them static, are too many", bytes_in_use(false),
           bytes_in_use(true));
    }
  }
  return array.data;
}

}  // namespace

void* static_shared(const void* site, std::size_t bytes, std::size_t alignment) {
  return get(site, bytes, alignment);
}

void* dynamic_shared() { return get(nullptr, dynamic_bytes_here, 16); }

void reset_shared(std::size_t dynamic_bytes) {
  dynamic_bytes_here = dynamic_bytes;
  for (Array& array : arrays) array.in_use = false;
}

void release_shared() {
  for (const Array& array : arrays) {
    if (!release_guarded(array.data)) {
      note_failure("a write beside a shared array of %zu bytes", array.bytes);
    }
  }
  arrays.clear();
}

bool in_shared(const void* address) {
  return std::any_of(arrays.begin(), arrays.end(), [&](const Array& array) {
    const auto offset = static_cast<const char*>(address) - static_cast<const char*>(array.data);
    return offset >= 0 && static_cast<std::size_t>(offset) < array.bytes;
  });
}

}  // namespace emulated
