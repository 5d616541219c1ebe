// Samples where the threads of this process spend their processor time. Each thread has a timer of
// its own processor time; its signal handler notes the innermost address on the stack that is in
// one library, and where that has called another one. Called by sampling.py.

#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <unwind.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <vector>

namespace {

constexpr int64_t kCapacity = 1 << 20;

struct Sample {
  int64_t offset;    // in the library; -1: nowhere on the stack
  uintptr_t callee;  // an address in the function that it called; 0: it ran itself
};

uintptr_t library_begin, library_end;
Sample samples[kCapacity];
std::atomic<int64_t> num_samples{kCapacity};
std::vector<timer_t> timers;

_Unwind_Reason_Code visit(_Unwind_Context* context, void* argument) {
  Sample& sample = *static_cast<Sample*>(argument);
  int is_exact = 0;  // whether the address is that of an instruction, not where a call returns to
  const uintptr_t address = _Unwind_GetIPInfo(context, &is_exact);
  if (address < library_begin || address >= library_end) {
    sample.callee = address;
    return _URC_NO_REASON;
  }
  sample.offset = int64_t(address - library_begin) - (is_exact ? 0 : 1);
  if (is_exact) sample.callee = 0;  // above it there is only the signal
  return _URC_NORMAL_STOP;
}

Sample look() {
  Sample sample = {-1, 0};
  _Unwind_Backtrace(visit, &sample);
  return sample;
}

// Stays installed after `stop`, as a last signal may still be on its way.
void take_sample(int) {
  const int error = errno;
  if (num_samples.load() < kCapacity) {
    const Sample sample = look();
    const int64_t i = num_samples.fetch_add(1);
    if (i < kCapacity) samples[i] = sample;
  }
  errno = error;
}

// The clock of another thread's processor time, as Linux encodes it.
clockid_t clock_of(int32_t thread) { return clockid_t(~uint32_t(thread) << 3 | 6); }

}  // namespace

extern "C" {

void stop() {
  for (const timer_t timer : timers) timer_delete(timer);
  timers.clear();
}

// Addresses in [begin, end) are the library's. Returns 0, or the error number of the system.
int start(uintptr_t begin, uintptr_t end, const int32_t* threads, int32_t count, int64_t period) {
  library_begin = begin, library_end = end;
  look();  // the first call may allocate, which a handler must not
  struct sigaction action = {};
  action.sa_handler = take_sample;
  action.sa_flags = SA_RESTART;
  if (sigaction(SIGPROF, &action, nullptr)) return errno;
  num_samples = 0;
  for (int32_t i = 0; i < count; ++i) {
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGPROF;
    event._sigev_un._tid = threads[i];
    const timespec every = {time_t(period / 1000000000), long(period % 1000000000)};
    const itimerspec setting = {every, every};
    timer_t timer;
    if (timer_create(clock_of(threads[i]), &event, &timer)) {
      if (errno == EINVAL) continue;  // the thread has ended
      const int error = errno;
      return stop(), error;
    }
    timers.push_back(timer);
    if (timer_settime(timer, 0, &setting, nullptr)) {
      const int error = errno;
      return stop(), error;
    }
  }
  return 0;
}

// After `stop`: writes the address of the samples, returns how many there are, and ends them.
int64_t take_samples(const Sample** first) {
  *first = samples;
  const int64_t count = num_samples.exchange(kCapacity);
  return count < kCapacity ? count : kCapacity;
}

}  // extern "C"
