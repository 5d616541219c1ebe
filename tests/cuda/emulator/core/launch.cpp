#include "launch.h"

#include <numeric>

#include "failure.h"
#include "guard.h"
#include "races.h"
#include "runtime.h"
#include "shared.h"

namespace emulated {
namespace {

// The limits that every architecture since 7.0 shares.
bool is_possible(const Launch& what) {
  const auto [gx, gy, gz] = what.grid;
  const auto [bx, by, bz] = what.block;
  const std::uint64_t threads = std::uint64_t{bx} * by * bz;
  return gx && gy && gz && gx < 1u << 31 && gy < 1u << 16 && gz < 1u << 16 && threads &&
         threads <= kMaxFibers && bx <= 1024 && by <= 1024 && bz <= 64 &&
         what.dynamic_bytes <= allowed_dynamic_shared(what.function);
}

std::vector<std::uint64_t> block_order(std::uint64_t count) {
  std::vector<std::uint64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (schedule.order == Order::lifo) return {order.rbegin(), order.rend()};
  if (schedule.order == Order::random) {
    for (std::uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  }
  return order;
}

}  // namespace

std::vector<Launch>& launches() {
  static std::vector<Launch> all;
  return all;
}

void launch(Launch what, Body body, void* argument) {
  if (failed()) {
    set_last_error(cudaErrorLaunchFailure);
    return;
  }
  begin_launch(what.kernel, what.launcher);
  if (!is_possible(what)) {
    note_failure(
        "impossible launch: grid (%u, %u, %u), block (%u, %u, %u), %zu bytes of dynamic "
        "shared memory, of which %zu are allowed",
        what.grid.x, what.grid.y, what.grid.z, what.block.x, what.block.y, what.block.z,
        what.dynamic_bytes, allowed_dynamic_shared(what.function));
    set_last_error(cudaErrorInvalidConfiguration);
    return;
  }
  ++statistics.launches;
  what.device = current_device();
  launches().push_back(what);
  races_begin_launch();
  const dim3 grid = what.grid, block = what.block;
  {
    const FaultHandler handler;
    for (const std::uint64_t i : block_order(std::uint64_t{grid.x} * grid.y * grid.z)) {
      if (failed()) break;
      const uint3 index = {static_cast<unsigned>(i % grid.x),
                           static_cast<unsigned>(i / grid.x % grid.y),
                           static_cast<unsigned>(i / grid.x / grid.y)};
      reset_shared(what.dynamic_bytes);
      races_begin_block(static_cast<int>(block.x * block.y * block.z));
      run_block(index, block, grid, body, argument);
    }
  }
  end_launch();
  release_shared();
  if (failed()) set_last_error(cudaErrorLaunchFailure);
}

}  // namespace emulated
