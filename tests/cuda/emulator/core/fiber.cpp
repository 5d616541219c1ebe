#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__) && !defined(EMULATED_UCONTEXT)

// Saves what the System V calling convention asks a function to keep, and no signal mask: 30 times
// faster than swapcontext, which calls the system twice.
extern "C" void emulated_switch(void** save, void* to);
asm(R"(.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch,@function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch,.-emulated_switch
)");

// A stack as emulated_switch leaves it: six registers below the address that it returns to.
static void* first_position(char* stack, std::size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + size);
  *--top = nullptr;  // entry's own return address, which also aligns the stack as a call does
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}

#else

#include <ucontext.h>

static void emulated_switch(void** save, void* to) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

// The context is at the top of the stack that it describes.
static void* first_position(char* stack, std::size_t size, void (*entry)()) {
  size = (size - sizeof(ucontext_t)) & ~std::size_t{63};
  auto* context = reinterpret_cast<ucontext_t*>(stack + size);
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = size;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

#endif

namespace emulated {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kStack = 128 << 10;
constexpr std::size_t kSlot = kPage + kStack;

// All slots in one piece, so that an address identifies its stack.
char* slots() {
  static char* const first = [] {
    void* const memory = mmap(nullptr, kMaxFibers * kSlot, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    char* const slots = static_cast<char*>(memory);
    for (int slot = 0; slot < kMaxFibers; ++slot) mprotect(slots + slot * kSlot, kPage, PROT_NONE);
    return slots;
  }();
  return first;
}

}  // namespace

void start_fiber(Fiber& fiber, int slot, void (*entry)()) {
  fiber.stack = slots() + slot * kSlot + kPage;
  fiber.stack_size = kStack;
  fiber.position = first_position(fiber.stack, kStack, entry);
}

void switch_fiber(Fiber* from, Fiber& to) {
  Fiber forgotten;
  emulated_switch(&(from ? *from : forgotten).position, to.position);
}

bool on_stack(const void* address) {
  const auto offset = static_cast<std::size_t>(static_cast<const char*>(address) - slots());
  return offset < kMaxFibers * kSlot;
}

bool below_stack(const void* address) {
  const auto offset = static_cast<std::size_t>(static_cast<const char*>(address) - slots());
  return offset < kMaxFibers * kSlot && offset % kSlot < kPage;
}
}  // namespace emulated
