// The end of a launch that broke a rule: a message that names kernel, block, thread and rule.
#pragma once

namespace emulated {

// Ends the launch from within a kernel: the launcher returns an error, all threads are dropped.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Notes a failure outside of any thread; the launcher looks for it.
void note_failure(const char* format, ...) __attribute__((format(printf, 1, 2)));

// What messages call the kernel, and who launched it.
void begin_launch(const char* kernel, const char* launcher);

// As on a device, after a failure nothing runs any more, until it is taken.
bool failed();
const char* failure_message();  // "" if nothing failed
void forget_failure();

// An address of code, as tests/cuda/emulator/build.py finds its source line: "{code +0x1234}", an
// offset in its shared object. Lives until the fourth call after this one.
const char* code_location(const void* address);

}  // namespace emulated
