#include "cpu/threads/openmp.h"

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace stdeform::openmp {
namespace {

using Count = int (*)();
using Work = void (*)(void*);
Count thread_num, num_threads_of_team, num_procs;
std::string found_file;

#ifdef _WIN32

// The interface of LLVM's runtime and Intel's.
struct Place {  // in the source
  int32_t reserved, flags, more_reserved[2];
  const char* text;
};
using Microtask = void (*)(int32_t* global_thread, int32_t* thread, void* argument);
struct Call {
  Work work;
  void* context;
};
int32_t (*global_thread_num)(Place*);
void (*push_num_threads)(Place*, int32_t global_thread, int32_t count);
void (*fork_call)(Place*, int32_t num_arguments, Microtask, ...);

HMODULE find_library(const std::string&) {
  for (const char* name : {"libiomp5md.dll", "libomp140.x86_64.dll", "libomp.dll"}) {
    if (const HMODULE loaded = GetModuleHandleA(name)) return loaded;
  }
  return nullptr;
}

void* find_symbol(HMODULE library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(library, name));
}

std::string file_of(HMODULE library) {
  constexpr int kLongest = 1 << 15;  // of all paths, in characters
  std::wstring path(kLongest, L'\0');
  const int length = int(GetModuleFileNameW(library, &path[0], kLongest));
  std::string text(size_t(3 * length), '\0');  // in UTF-8
  const int bytes = WideCharToMultiByte(CP_UTF8, 0, path.data(), length, &text[0], int(text.size()),
                                        nullptr, nullptr);
  text.resize(size_t(bytes));
  return text;
}

void run_team(int num_threads, Work work, void* context) {
  Place here = {0, 2, {0, 0}, ";unknown;unknown;0;0;;"};
  Call call = {work, context};
  const Microtask microtask = [](int32_t*, int32_t*, void* argument) {
    const auto* the_call = static_cast<const Call*>(argument);
    the_call->work(the_call->context);
  };
  push_num_threads(&here, global_thread_num(&here), num_threads);
  fork_call(&here, 1, microtask, &call);
}

#else

// The interface of GNU's runtime, which LLVM's and Intel's have as well.
void (*parallel)(Work, void* context, unsigned num_threads, unsigned flags);

void* find_library(const std::string& torch) {
#ifdef __APPLE__
  const std::string name = "libtorch_cpu.dylib";
#else
  const std::string name = "libtorch_cpu.so";
#endif
  for (const std::string& path : {torch + "/lib/" + name, name}) {
    if (void* loaded = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD)) return loaded;
  }
  return nullptr;
}

// Also among the libraries that this one needs. Before them, on Linux, what the whole process
// shares, such as a runtime that was preloaded: PyTorch calls that, too.
void* find_symbol(void* library, const char* name) {
#ifndef __APPLE__
  if (void* shared = dlsym(RTLD_DEFAULT, name)) return shared;
#endif
  return dlsym(library, name);
}

std::string file_of(void*) {
  Dl_info info;
  return dladdr(reinterpret_cast<void*>(thread_num), &info) ? info.dli_fname : "";
}

void run_team(int num_threads, Work work, void* context) {
  parallel(work, context, unsigned(num_threads), 0);
}

#endif

}  // namespace

void find(const std::string& torch) {
  const auto library = find_library(torch);
  if (!library) return;
  const auto entry = [&](const char* name, auto& function) {
    void* symbol = find_symbol(library, name);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
    return symbol != nullptr;
  };
  if (entry("omp_get_thread_num", thread_num) &&
      entry("omp_get_num_threads", num_threads_of_team) && entry("omp_get_num_procs", num_procs) &&
#ifdef _WIN32
      entry("__kmpc_global_thread_num", global_thread_num) &&
      entry("__kmpc_push_num_threads", push_num_threads) && entry("__kmpc_fork_call", fork_call)
#else
      entry("GOMP_parallel", parallel)
#endif
  ) {
    found_file = file_of(library);
  }
}

const std::string& file() { return found_file; }
void run(int num_threads, Work work, void* context) { run_team(num_threads, work, context); }
int this_thread() { return thread_num(); }
int team_size() { return num_threads_of_team(); }
int num_processors() { return num_procs(); }

}  // namespace stdeform::openmp
