#include "cpu/threads/team.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/threads/openmp.h"

namespace stdeform {
namespace {

bool has_openmp() { return !openmp::file().empty(); }

// Of a thread of the standard library.
struct Place {
  int thread, team_size;
};
thread_local Place place = {0, 1};

void run_std_threads(int count, void (*work)(void*), void* context) {
  int made = 1;
  std::mutex gate;  // closed until all are made, as the system may refuse some
  const auto work_as = [&](int thread) {
    {
      const std::lock_guard<std::mutex> opened(gate);
    }
    place = {thread, made};
    work(context);
  };
  std::vector<std::thread> others;
  others.reserve(size_t(count - 1));
  try {
    const std::lock_guard<std::mutex> closed(gate);
    for (; made < count; ++made) others.emplace_back(work_as, made);
  } catch (const std::exception&) {
    // Those that were made do the work.
  }
  work_as(0);
  place = {0, 1};
  for (std::thread& other : others) other.join();
}

}  // namespace

void run_team(int num_useful, int pool_size, void (*work)(void*), void* context) {
  if (has_openmp()) {
    openmp::run(pool_size, work, context);
  } else {
    run_std_threads(num_useful, work, context);
  }
}

int this_thread() { return has_openmp() ? openmp::this_thread() : place.thread; }
int team_size() { return has_openmp() ? openmp::team_size() : place.team_size; }

int num_processors() {
  if (has_openmp()) return openmp::num_processors();
  return std::max(1, int(std::thread::hardware_concurrency()));  // 0: it does not know
}

double worthwhile_us() { return has_openmp() ? 20 : 200; }

}  // namespace stdeform
