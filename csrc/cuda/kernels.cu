#include "kernels.h"

#include <limits>
#include <stdexcept>
#include <string>

#include "bin_plan.h"
#include "call.h"
#include "compat.cuh"
#include "layout.cuh"

namespace stdeform::cuda {

// Defined in kernels_<dtype>.cu.
template <class T>
void forward(const Call&, const Device&, const Tuning&, cudaStream_t);
template <class T>
void backward(const Call&, const Device&, const Tuning&, cudaStream_t);

namespace {

std::string sizes(const Problem& p) {
  const auto text = [](const char* letter, int64_t n) {
    return std::string(letter) + " = " + std::to_string(n);
  };
  return text("B", p.B) + text(", Q", p.Q) + text(", S", p.S) + text(", M", p.M) +
         text(", D", p.D) + text(", L", p.L) + text(", K", p.K) + text(", N", p.N);
}

void check(cudaError_t error, const char* what, const Problem& p, const Queue& queue) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // told here; the next call must not find it
  throw std::runtime_error(std::string(what) + " failed on CUDA device " +
                           std::to_string(queue.device) + ": " + cudaGetErrorString(error) + " (" +
                           sizes(p) + ")");
}

// With room for the last block, which may reach past the last query.
constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max() - kWarps * kWarpSize;

int32_t to_int(int64_t size) {
  if (size > kMaxSize) {
    throw std::invalid_argument("the CUDA kernels take sizes up to " + std::to_string(kMaxSize) +
                                ", got " + std::to_string(size));
  }
  return int32_t(size);
}

Call to_call(const Problem& p) {
  if (p.L > kMaxLevels) {
    throw std::invalid_argument("the CUDA kernels take at most " + std::to_string(kMaxLevels) +
                                " levels, got L = " + std::to_string(p.L));
  }
  Call call = {};
  call.problem = p;
  call.B = to_int(p.B), call.Q = to_int(p.Q), call.M = to_int(p.M);
  call.D = to_int(p.D), call.L = to_int(p.L), call.K = to_int(p.K);
  int64_t first_cell = 0;
  for (int64_t l = 0; l < p.L; ++l) {
    int64_t cells = 1;
    call.size[l][kMaxAxes - 1] = 1;
    for (int n = 0; n < p.N; ++n) {
      const int64_t size = p.spatial_shapes[l * p.N + p.N - 1 - n];
      call.size[l][n] = to_int(size);
      cells *= size;
    }
    call.first_cell[l] = to_int(first_cell);
    first_cell += cells;
  }
  return call;
}

template <class F>
void by_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::f64: return f(double());
    case DType::f32: return f(float());
    case DType::f16: return f(Half());
    case DType::bf16: return f(BFloat16());
  }
}

// Launches on the queue's device, whichever the caller's is, and makes that current again.
template <class F>
void enqueue(const char* what, const Problem& p, const Queue& queue, const Tuning& tuning,
             F launch) {
  if (p.B == 0 || p.Q == 0) return;  // a grid cannot be empty
  const Call call = to_call(p);
  int before = queue.device;
  check(cudaGetDevice(&before), what, p, queue);
  if (before != queue.device) check(cudaSetDevice(queue.device), what, p, queue);
  Device device = {};
  check(
      cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, queue.device),
      what, p, queue);
  launch(call, device, tuning, static_cast<cudaStream_t>(queue.stream));
  const cudaError_t error = cudaGetLastError();
  if (before != queue.device) cudaSetDevice(before);
  check(error, what, p, queue);
}

}  // namespace

void forward(const Problem& p, const Queue& queue, const Tuning& tuning) {
  enqueue("st_deform_attn", p, queue, tuning, [&](const Call& call, auto... where) {
    by_dtype(p.value.dtype, [&](auto type) { forward<decltype(type)>(call, where...); });
  });
}

void backward(const Problem& p, const Queue& queue, const Tuning& tuning) {
  enqueue("the backward of st_deform_attn", p, queue, tuning, [&](const Call& call, auto... where) {
    by_dtype(p.value.dtype, [&](auto type) { backward<decltype(type)>(call, where...); });
  });
}

int64_t workspace_bytes(const Problem& p, const Tuning& tuning) {
  return p.B == 0 || p.Q == 0 ? 0 : BinPlan(p, tuning).bytes();
}

}  // namespace stdeform::cuda
