#include "cuda/api.h"

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/binned/plan.h"
#include "cuda/compat.cuh"
#include "cuda/lanes/layout.cuh"
#include "cuda/params.h"

namespace stdeform::cuda {

// Defined in kernels_<dtype>.cu.
template <class T>
void forward(const Call&, const Device&, const Tuning&, cudaStream_t);
template <class T>
void backward(const Call&, const BinPlan&, void* workspace, const Device&, const Tuning&,
              cudaStream_t);

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

// With room for lanes that count past the last query, point or channel.
constexpr int64_t kMaxSize = std::numeric_limits<int32_t>::max() - kWarps * kWarpSize;

int32_t to_int(int64_t size) {
  if (size > kMaxSize) {
    throw std::invalid_argument("the CUDA kernels take sizes up to " + std::to_string(kMaxSize) +
                                ", got " + std::to_string(size));
  }
  return int32_t(size);
}

Numbers to_numbers(const Array& array) {
  Numbers numbers;
  numbers.data = static_cast<const unsigned char*>(array.data);
  numbers.are_float = array.dtype == DType::f32;
  for (int i = 0; i < kMaxRank; ++i) {
    numbers.stride[i] = uint64_t(array.stride[i]) * uint64_t(size_of(array.dtype));
  }
  return numbers;
}

Call to_call(const Problem& p) {
  if (p.L > kMaxLevels) {
    throw std::invalid_argument("the CUDA kernels take at most " + std::to_string(kMaxLevels) +
                                " levels, got L = " + std::to_string(p.L));
  }
  Call call = {};
  call.problem = p;
  call.problem.spatial_shapes = nullptr;  // the caller's; the sizes are kept below
  call.positions = to_numbers(p.positions);
  call.scores = to_numbers(p.scores);
  call.reference = to_numbers(p.reference);
  call.from_offsets = p.reference.data != nullptr;
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

// A device as the caller's thread's current one; the one before returns with its end.
class CurrentDevice {
 public:
  CurrentDevice(const char* what, const Problem& p, const Queue& queue) : now_(queue.device) {
    check(cudaGetDevice(&before_), what, p, queue);
    if (before_ != now_) check(cudaSetDevice(now_), what, p, queue);
  }
  ~CurrentDevice() {
    if (before_ != now_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_, now_;
};

// Calls launch(device, stream) on the queue's device, whichever the caller's is.
template <class F>
void on_device(const char* what, const Problem& p, const Queue& queue, F launch) {
  const CurrentDevice current(what, p, queue);
  Device device = {};
  check(
      cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, queue.device),
      what, p, queue);
  launch(device, static_cast<cudaStream_t>(queue.stream));
  check(cudaGetLastError(), what, p, queue);
}

bool is_empty(const Problem& p) { return p.B == 0 || p.Q == 0; }  // a grid cannot be empty

}  // namespace

void forward(const Problem& p, const Queue& queue, const Tuning& tuning) {
  if (is_empty(p)) return;
  const Call call = to_call(p);
  on_device("st_deform_attn", p, queue, [&](const Device& device, cudaStream_t stream) {
    by_dtype(p.value.dtype,
             [&](auto type) { forward<decltype(type)>(call, device, tuning, stream); });
  });
}

Backward::Backward(const Problem& p, const Tuning& tuning)
    : call_(to_call(p)), plan_(is_empty(p) ? BinPlan() : BinPlan(p, tuning)), tuning_(tuning) {}

void Backward::enqueue(const Queue& queue, void* workspace) const {
  const Problem& p = call_.problem;
  if (is_empty(p)) return;
  const auto launch = [&](const Device& device, cudaStream_t stream) {
    by_dtype(p.value.dtype, [&](auto type) {
      backward<decltype(type)>(call_, plan_, workspace, device, tuning_, stream);
    });
  };
  on_device("the backward of st_deform_attn", p, queue, launch);
}

}  // namespace stdeform::cuda
