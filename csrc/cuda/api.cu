#include "cuda/api.h"

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/binned/plan.h"
#include "cuda/compat.cuh"
#include "cuda/lanes/layout.cuh"
#include "cuda/params.h"

namespace stdeform::cuda {

// Instantiated in inst_<dtype>.cu.
template <class T>
void launch_forward(const KernelParams&, const DeviceProps&, const Tuning&, cudaStream_t);
template <class T>
void launch_backward(const KernelParams&, const BinPlan&, void* workspace, const DeviceProps&,
                     const Tuning&, cudaStream_t);

namespace {

std::string sizes(const Problem& p) {
  const auto text = [](const char* letter, int64_t n) {
    return std::string(letter) + " = " + std::to_string(n);
  };
  return text("B", p.B) + text(", Q", p.Q) + text(", S", p.S) + text(", M", p.M) +
         text(", D", p.D) + text(", L", p.L) + text(", P", p.P) + text(", N", p.N);
}

void check(cudaError_t error, const char* what, const Problem& p, const Stream& stream) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // reported here; the next call must not find it
  throw std::runtime_error(std::string(what) + " failed on CUDA device " +
                           std::to_string(stream.device) + ": " + cudaGetErrorString(error) + " (" +
                           sizes(p) + ")");
}

// With room for lanes with indices past the last query, point or channel.
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

KernelParams to_params(const Problem& p) {
  if (p.L > kMaxLevels) {
    throw std::invalid_argument("the CUDA kernels take at most " + std::to_string(kMaxLevels) +
                                " levels, got L = " + std::to_string(p.L));
  }
  KernelParams params = {};
  params.problem = p;
  // The caller's; what they hold is kept below.
  params.problem.spatial_shapes = params.problem.num_points = nullptr;
  params.positions = to_numbers(p.positions);
  params.scores = to_numbers(p.scores);
  params.reference = to_numbers(p.reference);
  params.from_offsets = p.reference.data != nullptr;
  params.B = to_int(p.B), params.Q = to_int(p.Q), params.M = to_int(p.M);
  params.D = to_int(p.D), params.L = to_int(p.L), params.P = to_int(p.P);
  int64_t first_cell = 0, first_point = 0;
  for (int64_t l = 0; l < p.L; ++l) {
    int64_t cells = 1;
    params.size[l][kMaxAxes - 1] = 1;
    for (int n = 0; n < p.N; ++n) {
      const int64_t size = p.spatial_shapes[l * p.N + p.N - 1 - n];
      params.size[l][n] = to_int(size);
      cells *= size;
    }
    params.first_cell[l] = to_int(first_cell);
    first_cell += cells;
    params.first_point[l] = to_int(first_point);
    first_point += p.num_points[l];
  }
  params.first_point[p.L] = params.P;
  return params;
}

// Makes a device the current one of the thread, and restores the one before at its end.
class CurrentDevice {
 public:
  CurrentDevice(const char* what, const Problem& p, const Stream& stream) : now_(stream.device) {
    check(cudaGetDevice(&before_), what, p, stream);
    if (before_ != now_) check(cudaSetDevice(now_), what, p, stream);
  }
  ~CurrentDevice() {
    if (before_ != now_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_, now_;
};

// Calls launch(device, stream) with the stream's device as the current one.
template <class F>
void on_device(const char* what, const Problem& p, const Stream& stream, F launch) {
  const CurrentDevice current(what, p, stream);
  DeviceProps device = {};
  check(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount,
                               stream.device),
        what, p, stream);
  launch(device, static_cast<cudaStream_t>(stream.handle));
  check(cudaGetLastError(), what, p, stream);
}

bool is_empty(const Problem& p) { return p.B == 0 || p.Q == 0; }  // a grid cannot be empty

}  // namespace

void enqueue_forward(const Problem& p, const Stream& stream, const Tuning& tuning) {
  if (is_empty(p)) return;
  const KernelParams params = to_params(p);
  on_device("st_deform_attn", p, stream, [&](const DeviceProps& device, cudaStream_t stream) {
    visit_dtype(p.value.dtype,
                [&](auto zero) { launch_forward<decltype(zero)>(params, device, tuning, stream); });
  });
}

Backward::Backward(const Problem& p, const Tuning& tuning)
    : params_(to_params(p)), plan_(is_empty(p) ? BinPlan() : BinPlan(p, tuning)), tuning_(tuning) {}

void Backward::enqueue(const Stream& stream, void* workspace) const {
  const Problem& p = params_.problem;
  if (is_empty(p)) return;
  const auto launch = [&](const DeviceProps& device, cudaStream_t stream) {
    visit_dtype(p.value.dtype, [&](auto zero) {
      launch_backward<decltype(zero)>(params_, plan_, workspace, device, tuning_, stream);
    });
  };
  on_device("the backward of st_deform_attn", p, stream, launch);
}

}  // namespace stdeform::cuda
