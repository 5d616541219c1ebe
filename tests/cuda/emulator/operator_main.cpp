// Runs small problems through the CUDA operator, forward and backward, and calls that it must
// refuse: what the sanitizers watch and what coverage is of. Prints how many there were, and fails
// if one is refused that should not be, or the reverse, or if anything but numbers comes out.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <random>
#include <vector>

#include "cuda/api.h"
#include "cuda/compat.cuh"

using namespace stdeform;

namespace {

enum class Form { locations, points, boxes };

struct Settings {
  Form form;
  DType dtype, side_dtype;
  std::vector<int64_t> shapes;  // [L, N]
  int64_t L, B, Q, M, D, K;
  bool odd_coordinates;  // NaN, infinity, far away
  bool all_grads;        // or the value's alone
  cuda::Tuning tuning;
  bool deterministic;
};

std::size_t element_size(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
}

// An array on the heap, exactly as large as it must be.
struct Owned {
  std::vector<unsigned char> memory;
  Array array;

  Owned(DType dtype, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (std::size_t i = shape.size(); i-- > 0; count *= shape[i]) array.stride[i] = count;
    memory.assign(count * element_size(dtype), 0);
    array.data = memory.data();
    array.dtype = dtype;
  }

  int64_t count() const { return int64_t(memory.size() / element_size(array.dtype)); }

  void set(int64_t i, double x) {
    switch (array.dtype) {
      case DType::f64: static_cast<double*>(array.data)[i] = x; break;
      case DType::f32: static_cast<float*>(array.data)[i] = float(x); break;
      case DType::f16: from_real(float(x), static_cast<Half*>(array.data)[i]); break;
      case DType::bf16: from_real(float(x), static_cast<BFloat16*>(array.data)[i]); break;
    }
  }
  double get(int64_t i) const {
    switch (array.dtype) {
      case DType::f64: return static_cast<const double*>(array.data)[i];
      case DType::f32: return static_cast<const float*>(array.data)[i];
      case DType::f16: return to_real(static_cast<const Half*>(array.data)[i]);
      default: return to_real(static_cast<const BFloat16*>(array.data)[i]);
    }
  }

  template <class F>
  void fill(F next) {
    for (int64_t i = 0; i < count(); ++i) set(i, next());
  }
  bool is_finite() const {
    for (int64_t i = 0; i < count(); ++i) {
      if (!std::isfinite(get(i))) return false;
    }
    return true;
  }
};

bool run(const Settings& s, unsigned seed) {
  std::mt19937 random(seed);
  const auto between = [&](double low, double high) {
    return [&random, low, high] { return std::uniform_real_distribution<>(low, high)(random); };
  };
  Problem p;
  p.N = int(s.shapes.size()) / int(s.L);
  p.B = s.B, p.Q = s.Q, p.M = s.M, p.D = s.D, p.L = s.L, p.K = s.K;
  for (int64_t l = 0; l < s.L; ++l) {
    int64_t cells = 1;
    for (int n = 0; n < p.N; ++n) cells *= s.shapes[l * p.N + n];
    p.S += cells;
  }
  p.spatial_shapes = s.shapes.data();
  p.boxes = s.form == Form::boxes;
  const int width = p.boxes ? 2 * p.N : p.N;
  Owned value(s.dtype, {p.B, p.S, p.M, p.D}), out(s.dtype, {p.B, p.Q, p.M, p.D});
  Owned positions(s.side_dtype, {p.B, p.Q, p.M, p.L, p.K, p.N});
  Owned scores(s.side_dtype, {p.B, p.Q, p.M, p.L, p.K});
  Owned reference(s.side_dtype, {p.B, p.Q, p.L, width});
  value.fill(between(-1, 1));
  scores.fill(between(-1, 1));
  reference.fill(between(0, 1));
  positions.fill(s.form == Form::locations ? between(-0.2, 1.2) : between(-3, 3));
  if (s.odd_coordinates) {
    const double odd[] = {std::nan(""), std::numeric_limits<double>::infinity(),
                          -std::numeric_limits<double>::infinity(), 6e4, -6e4};
    for (int64_t i = 0; i < positions.count(); i += 3) positions.set(i, odd[i % 5]);
  }
  p.value = value.array, p.positions = positions.array, p.scores = scores.array;
  if (s.form != Form::locations) p.reference = reference.array;
  p.out = out.array;

  const DType compute = s.dtype == DType::f64 ? DType::f64 : DType::f32;
  Owned grad_value(compute, {p.B, p.S, p.M, p.D}), grad_scores(compute, {p.B, p.Q, p.M, p.L, p.K});
  Owned grad_positions(s.side_dtype, {p.B, p.Q, p.M, p.L, p.K, p.N});
  Owned grad_reference(compute, {p.B, p.Q, p.M, p.L, width});
  try {
    cuda::enqueue_forward(p, {int(seed % 2), nullptr}, s.tuning);  // on either device
    if (!out.is_finite()) return false;
    p.grad_out = out.array;
    p.grad_value = grad_value.array;
    if (s.all_grads) {
      p.grad_scores = grad_scores.array;
      p.grad_positions = grad_positions.array;
      if (s.form != Form::locations) p.grad_reference = grad_reference.array;
    }
    p.deterministic = s.deterministic;
    const cuda::Backward backward(p, s.tuning);
    std::vector<unsigned char> workspace(backward.workspace_bytes());
    backward.enqueue({int(seed % 2), nullptr}, workspace.data());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return false;
  }
  return grad_value.is_finite() && grad_scores.is_finite() && grad_positions.is_finite() &&
         grad_reference.is_finite();
}

// Every dtype, number of axes and class of head_dim, the other settings in turn. `by_bins`: the
// backward works bin by bin, every second one in a fixed order.
std::vector<Settings> problems(bool by_bins) {
  std::vector<Settings> all;
  const int64_t head_dims[] = {16, 32, 48, 64, 96, 128, 1, 20, 130};
  const int64_t numbers_of_points[] = {3, 1, 5, 9}, numbers_of_queries[] = {1, 5, 9, 33};
  const std::vector<int64_t> video[] = {{2, 3, 4}, {1, 1, 1, 3, 2, 2}};
  const std::vector<int64_t> image[] = {{3, 4}, {1, 1, 3, 2}};
  unsigned i = 0;
  for (const int64_t D : head_dims) {
    for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
      for (const int N : {3, 2}) {
        const int64_t L = 1 + i % 2;
        Settings s = {Form(i % 3),
                      dtype,
                      i % 5 == 1 ? DType::f32 : dtype,
                      (N == 3 ? video : image)[L - 1],
                      L,
                      1,
                      numbers_of_queries[i / 2 % 4],
                      1 + i % 2,
                      D,
                      numbers_of_points[i / 3 % 4],
                      i % 4 == 1,
                      i % 7 != 6,
                      {},
                      by_bins && i % 4 < 2};
        s.tuning.forward_splits = i % 4 == 3 ? 3 : -1;
        s.tuning.backward_bins = by_bins;
        s.tuning.samples_per_warp = i % 3 ? -1 : 7;
        s.tuning.workspace_bytes = i % 5 ? -1 : 0;
        all.push_back(s);
        ++i;
      }
    }
  }
  if (by_bins) {
    // More than 32 samples in a bin.
    all.push_back({Form::locations,
                   DType::f32,
                   DType::f32,
                   {1, 1, 1},
                   1,
                   1,
                   33,
                   1,
                   16,
                   9,
                   false,
                   true,
                   {},
                   true});
    // A query for every cell, of two levels.
    Settings s = {
        Form::points, DType::f32, DType::f32, {3, 4, 3, 1, 2, 2}, 2, 2, 40, 2, 48, 3, false,
        true,         {},         false};
    s.tuning.forward_bricks = 2;
    all.push_back(s);
  }
  return all;
}

// Whether the call is refused, with a message that names `what`.
template <class F>
bool is_refused(F call, const char* what) {
  try {
    call();
  } catch (const std::exception& error) {
    if (std::strstr(error.what(), what)) return true;
    std::fprintf(stderr, "expected \"%s\" in: %s\n", what, error.what());
    return false;
  }
  std::fprintf(stderr, "not refused: %s\n", what);
  return false;
}

int current_device() {
  int device = -1;
  cudaGetDevice(&device);
  return device;
}

// Counts the calls that went as they should not.
int refusals() {
  const std::vector<int64_t> shapes(3 * 65, 1);
  Problem p;
  p.N = 3, p.B = p.S = p.M = p.D = p.Q = p.L = p.K = 1;
  p.spatial_shapes = shapes.data();
  Problem many_levels = p, long_rows = p, many_samples = p;
  many_levels.L = many_levels.S = 65;
  long_rows.D = int64_t{1} << 31;
  many_samples.Q = many_samples.K = int64_t{1} << 16;
  many_samples.deterministic = true;
  many_samples.grad_value.data = &many_samples;  // anything but null
  Problem nothing = p;                           // launches nothing
  nothing.B = 0;
  cuda::enqueue_forward(nothing, {0, nullptr});
  cuda::Backward(nothing).enqueue({0, nullptr}, nullptr);
  cuda::Tuning many_splits;
  many_splits.forward_splits = 17;
  return !is_refused([&] { cuda::enqueue_forward(p, {9, nullptr}); }, "CUDA device 9") +
         !is_refused([&] { cuda::enqueue_forward(many_levels, {0, nullptr}); }, "got L = 65") +
         !is_refused([&] { cuda::enqueue_forward(long_rows, {0, nullptr}); }, "2147483648") +
         !is_refused([&] { cuda::Backward backward(many_samples); }, "got 4294967296 and 8") +
         !(is_refused([&] { cuda::enqueue_forward(p, {1, nullptr}, many_splits); },
                      "at most 16 warps can share a tile, got 17") &&
           current_device() == 0) +
         !is_refused([] { cuda::Tuning()["brick"] = 1; }, "no tuning \"brick\"");
}

}  // namespace

int main() {
  int failures = refusals();
  unsigned seed = 0;
  for (const bool by_bins : {false, true}) {
    for (const Settings& settings : problems(by_bins)) {
      ++seed;
      if (run(settings, seed)) continue;
      ++failures;
      std::fprintf(stderr, "problem %u failed\n", seed);
    }
  }
  std::printf("%u problems, %d failures\n", seed, failures);
  return failures != 0;
}
