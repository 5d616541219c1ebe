// The Python module stdeform._C. The only file that knows Python: arrays arrive as PyTorch's
// tensors, which DLPack describes, errors leave as exceptions.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/problem.h"
#include "cpu/isa.h"
#include "cpu/threads/openmp.h"
#include "dlpack.h"
#ifdef STDEFORM_WITH_CUDA
#include "cuda/api.h"
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace stdeform {
namespace {

struct ShapedArray {
  Array array;
  int64_t size[kMaxRank];
};

DType to_dtype(const dlpack::DataType& from, const char* name) {
  if (from.code == dlpack::kFloat && from.bits == 64) return DType::f64;
  if (from.code == dlpack::kFloat && from.bits == 32) return DType::f32;
  if (from.code == dlpack::kFloat && from.bits == 16) return DType::f16;
  if (from.code == dlpack::kBfloat && from.bits == 16) return DType::bf16;
  throw std::invalid_argument(std::string(name) + " must hold floating-point numbers");
}

// How PyTorch describes a tensor: by a function of C, or where it is too old to have one, in a
// capsule that a function of Python makes, in four times the time.
struct {
  dlpack::Describe describe = nullptr;
  py::handle to_capsule;
} pytorch;

void find_pytorch() {
  const py::module_ torch = py::module_::import("torch");
  openmp::find(py::str(torch.attr("__path__")[py::int_(0)]));
  const py::object type = torch.attr("Tensor");
  if (py::hasattr(type, dlpack::kTableOfType)) {
    const py::object capsule = type.attr(dlpack::kTableOfType);
    const auto* table =
        static_cast<const dlpack::Table*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kTable));
    if (!table) throw py::error_already_set();
    if (table->major == dlpack::kTableVersion) pytorch.describe = table->describe;
  }
  const py::object to_capsule = py::module_::import("torch.utils.dlpack").attr("to_dlpack");
  pytorch.to_capsule = to_capsule.inc_ref();  // for as long as the process lives
}

// What a tensor is and where its numbers are, as long as the tensor lives.
class Description {
 public:
  Description(const py::handle& tensor) {
    if (pytorch.describe) {
      if (pytorch.describe(tensor.ptr(), &described_)) throw py::error_already_set();
      return;
    }
    capsule_ = pytorch.to_capsule(tensor);
    const auto* held =
        static_cast<const dlpack::Tensor*>(PyCapsule_GetPointer(capsule_.ptr(), dlpack::kCapsule));
    if (!held) throw py::error_already_set();
    described_ = *held;
  }

  const dlpack::Tensor* operator->() const { return &described_; }

 private:
  dlpack::Tensor described_;
  py::object capsule_;  // holds the shape
};

// An Array does not own its memory: the tensor must outlive the kernel.
//
// `joins_levels`: the tensor may have one axis more, [.., L, K] in place of axis 3, which is [..,
// P].
ShapedArray to_array(const Description& tensor, int rank, const char* name,
                     bool joins_levels = false) {
  const bool has_levels = joins_levels && tensor->ndim == rank + 1;
  if (tensor->ndim != rank && !has_levels) {
    throw std::invalid_argument(std::string(name) + " must have " + std::to_string(rank) +
                                " axes, got " + std::to_string(tensor->ndim));
  }
  if (!tensor->data) {
    throw std::invalid_argument(std::string(name) +
                                " has no memory: a fake or meta tensor reached the native core");
  }
  ShapedArray shaped;
  shaped.array.data = static_cast<char*>(tensor->data) + tensor->byte_offset;
  shaped.array.dtype = to_dtype(tensor->dtype, name);
  for (int i = 0; i < rank; ++i) {
    const int axis = has_levels && i >= 3 ? i + 1 : i;
    shaped.size[i] = tensor->shape[axis];
    shaped.array.stride[i] = tensor->strides[axis];
  }
  if (has_levels) {
    const int64_t levels = tensor->shape[3], points = tensor->shape[4];
    // An axis of size 1 may have any stride.
    if (points == 1) shaped.array.stride[3] = tensor->strides[3];
    if (levels > 1 && points > 1 && tensor->strides[3] != points * tensor->strides[4]) {
      throw std::invalid_argument(std::string(name) +
                                  " must have levels without gaps between them");
    }
    shaped.size[3] = levels * points;
  }
  return shaped;
}

// Of a gradient, which is not computed where it has no elements.
Array optional_array(const py::handle& from, int rank, const char* name,
                     bool joins_levels = false) {
  const Description tensor(from);
  const int64_t* shape = tensor->shape;
  const bool is_empty = std::find(shape, shape + tensor->ndim, 0) != shape + tensor->ndim;
  return is_empty ? Array() : to_array(tensor, rank, name, joins_levels).array;
}

void check_sizes(const ShapedArray& array, std::initializer_list<int64_t> expected,
                 const char* name) {
  const auto text = [](const int64_t* sizes, size_t rank) {
    std::string joined;
    for (size_t i = 0; i < rank; ++i) joined += (i ? ", " : "") + std::to_string(sizes[i]);
    return "[" + joined + "]";
  };
  if (std::equal(expected.begin(), expected.end(), array.size)) return;
  throw std::invalid_argument(std::string(name) + " must have shape " +
                              text(expected.begin(), expected.size()) + ", got " +
                              text(array.size, expected.size()));
}

void check_dtype(const Array& array, const Array& value, const char* name) {
  if (array.dtype == value.dtype || array.dtype == DType::f32) return;
  throw std::invalid_argument(std::string(name) + " must be float32 or have the dtype of value");
}

void check_sum(int64_t sum, int64_t expected, const char* what) {
  if (sum == expected) return;
  throw std::invalid_argument(std::string(what) + ", " + std::to_string(expected) + ", got " +
                              std::to_string(sum));
}

void check_at_least_1(const std::vector<int64_t>& numbers, const char* name) {
  for (const int64_t number : numbers) {
    if (number >= 1) continue;
    throw std::invalid_argument(std::string(name) + " must hold numbers of at least 1, got " +
                                std::to_string(number));
  }
}

// Of numbers of at least 0 and 1; what would overflow is the largest number, no size of an array.
constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
int64_t plus(int64_t a, int64_t b) { return a > kLargest - b ? kLargest : a + b; }
int64_t times(int64_t a, int64_t b) { return a > kLargest / b ? kLargest : a * b; }

// Views [B, Q, M * D], of the value's dtype, as [B, Q, M, D].
Array split_heads(const py::handle& from, const Problem& p, const char* name) {
  const ShapedArray rows = to_array(from, 3, name);
  check_sizes(rows, {p.B, p.Q, p.M * p.D}, name);
  Array heads = rows.array;
  if (heads.dtype != p.value.dtype) {
    throw std::invalid_argument(std::string(name) + " must have the dtype of value");
  }
  heads.stride[3] = heads.stride[2];
  heads.stride[2] *= p.D;
  return heads;
}

// Sizes or counts, in a tuple or list. Faster than pybind11's conversion, as is the tuple of
// inputs.
std::vector<int64_t> to_numbers(const py::handle& from, const char* name) {
  const auto items = py::reinterpret_steal<py::object>(PySequence_Fast(from.ptr(), name));
  if (!items) throw py::error_already_set();
  std::vector<int64_t> numbers(size_t(PySequence_Fast_GET_SIZE(items.ptr())));
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = PyLong_AsLongLong(PySequence_Fast_GET_ITEM(items.ptr(), Py_ssize_t(i)));
    if (numbers[i] == -1 && PyErr_Occurred()) throw py::error_already_set();
  }
  return numbers;
}

// What a problem points to besides the tensors: it must outlive the kernel too.
struct Tables {
  std::vector<int64_t> spatial_shapes, num_points;
};

// The last line of defence against reading outside of an array: graphs that were recorded for other
// sizes call the registered operator without the checks of stdeform._checks.
//
// An empty `num_points` is filled in: as many points on each level.
Problem to_problem(const py::tuple& inputs, Tables& tables) {
  if (inputs.size() != 6) throw std::invalid_argument("a call must have 6 inputs");
  const auto input = [&](Py_ssize_t i) { return py::handle(PyTuple_GET_ITEM(inputs.ptr(), i)); };
  tables.spatial_shapes = to_numbers(input(0), "spatial_shapes must be a sequence of ints");
  tables.num_points = to_numbers(input(5), "num_points must be a sequence of ints");
  const auto& [spatial_shapes, num_points] = tables;
  const py::handle value = input(1), positions = input(2), scores = input(3), reference = input(4);
  Problem p;
  const ShapedArray v = to_array(value, 4, "value");
  const ShapedArray s = to_array(positions, 5, "positions", true);
  p.B = v.size[0], p.S = v.size[1], p.M = v.size[2], p.D = v.size[3];
  p.Q = s.size[1], p.P = s.size[3], p.N = int(s.size[4]);
  if (p.N != 2 && p.N != 3) {
    throw std::invalid_argument("positions must have 2 or 3 axes, got " + std::to_string(p.N));
  }
  p.L = int64_t(spatial_shapes.size()) / p.N;
  p.spatial_shapes = spatial_shapes.data();
  if (num_points.empty() && p.L > 0) tables.num_points.assign(size_t(p.L), p.P / p.L);
  p.num_points = num_points.data();
  check_sum(int64_t(spatial_shapes.size()), int64_t(num_points.size()) * p.N,
            "spatial_shapes must have N sizes for each entry of num_points");
  check_at_least_1(spatial_shapes, "spatial_shapes");
  check_at_least_1(num_points, "num_points");
  int64_t cells = 0;
  for (int64_t l = 0; l < p.L; ++l) {
    const int64_t* sizes = &spatial_shapes[size_t(l * p.N)];
    cells = plus(cells, std::accumulate(sizes, sizes + p.N, int64_t{1}, times));
  }
  check_sum(cells, p.S, "spatial_shapes must have as many cells as value has rows");
  check_sum(std::accumulate(num_points.begin(), num_points.end(), int64_t{0}, plus), p.P,
            "num_points must add up to the points of positions");
  check_sizes(s, {p.B, p.Q, p.M, p.P, p.N}, "positions");
  // Indices of cells are 32-bit. So are offsets into the CPU's packed copy of a head, which count
  // vectors of at least four numbers.
  if ((p.S + 8) * ((p.D + 3) / 4) > std::numeric_limits<int32_t>::max()) {
    throw std::invalid_argument(
        "value must have fewer than 2^31 vectors of four channels per batch element and head, "
        "got " +
        std::to_string(p.S) + " cells of " + std::to_string(p.D) + " channels");
  }
  p.value = v.array;
  check_dtype(s.array, p.value, "positions");
  p.positions = s.array;
  const ShapedArray w = to_array(scores, 4, "scores", true);
  check_sizes(w, {p.B, p.Q, p.M, p.P}, "scores");
  check_dtype(w.array, p.value, "scores");
  p.scores = w.array;
  if (!reference.is_none()) {
    const ShapedArray r = to_array(reference, 4, "reference_points");
    p.reference = r.array;
    p.boxes = r.size[3] == 2 * p.N;
    check_sizes(r, {p.B, p.Q, p.L, p.boxes ? 2 * p.N : p.N}, "reference_points");
    check_dtype(r.array, p.value, "reference_points");
  }
  return p;
}

// `grads`: of value, reference points, positions and scores. `is_per_head`: that of the reference
// points is [B, Q, M, L, N or 2N] instead of [B, Q, L, N or 2N].
void add_grads(Problem& p, const py::handle& grad_out, const py::tuple& grads, bool is_per_head) {
  if (grads.size() != 4) throw std::invalid_argument("a backward must have 4 gradients");
  const auto grad = [&](Py_ssize_t i) { return py::handle(PyTuple_GET_ITEM(grads.ptr(), i)); };
  p.grad_out = split_heads(grad_out, p, "grad_out");
  p.grad_value = optional_array(grad(0), 4, "grad_value");
  p.grad_reference = optional_array(grad(1), is_per_head ? 5 : 4, "grad_reference_points");
  p.grad_positions = optional_array(grad(2), 5, "grad_positions", true);
  p.grad_scores = optional_array(grad(3), 4, "grad_scores", true);
}

void cpu_forward(const std::string& isa, int num_threads, bool use_all_threads,
                 const py::tuple& inputs, const py::object& out) {
  Tables tables;
  Problem p = to_problem(inputs, tables);
  p.num_threads = num_threads;
  p.use_all_threads = use_all_threads;
  p.out = split_heads(out, p, "out");
  const Isa& chosen = choose_isa(isa);
  py::gil_scoped_release unlocked;
  chosen.forward(p);
}

void cpu_backward(const std::string& isa, int num_threads, bool use_all_threads,
                  const py::tuple& inputs, const py::object& grad_out, const py::tuple& grads) {
  Tables tables;
  Problem p = to_problem(inputs, tables);
  p.num_threads = num_threads;
  p.use_all_threads = use_all_threads;
  add_grads(p, grad_out, grads, false);
  const Isa& chosen = choose_isa(isa);
  py::gil_scoped_release unlocked;
  chosen.backward(p);
}

#ifdef STDEFORM_WITH_CUDA
cuda::Stream to_stream(int device, std::uintptr_t stream) {
  return {device, reinterpret_cast<void*>(stream)};
}

cuda::Tuning to_tuning(const py::dict& forced) {
  cuda::Tuning tuning;
  for (const auto& [name, to] : forced) {
    tuning[name.cast<std::string>()] = to.cast<int64_t>();
  }
  return tuning;
}

void cuda_forward(int device, std::uintptr_t stream, const py::dict& forced,
                  const py::tuple& inputs, const py::object& out) {
  Tables tables;
  Problem p = to_problem(inputs, tables);
  p.out = split_heads(out, p, "out");
  const cuda::Tuning tuning = to_tuning(forced);
  py::gil_scoped_release unlocked;
  cuda::enqueue_forward(p, to_stream(device, stream), tuning);
}

// The first half of a backward: what it needs is known, and nothing is done yet. The tensors must
// outlive it.
cuda::Backward cuda_backward(const py::dict& forced, bool deterministic, const py::tuple& inputs,
                             const py::object& grad_out, const py::tuple& grads) {
  Tables tables;
  Problem p = to_problem(inputs, tables);
  add_grads(p, grad_out, grads, true);
  p.deterministic = deterministic;
  return cuda::Backward(p, to_tuning(forced));
}

void cuda_enqueue(const cuda::Backward& backward, int device, std::uintptr_t stream,
                  std::uintptr_t workspace) {
  py::gil_scoped_release unlocked;
  backward.enqueue(to_stream(device, stream), reinterpret_cast<void*>(workspace));
}
#endif

}  // namespace
}  // namespace stdeform

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native core of stdeform: kernels on plain addresses.";
  stdeform::find_pytorch();
  m.def("usable_isas", &stdeform::usable_isas);
  m.def("openmp_runtime", &stdeform::openmp::file);
  m.def("cpu_forward", &stdeform::cpu_forward);
  m.def("cpu_backward", &stdeform::cpu_backward);
#ifdef STDEFORM_WITH_CUDA
  m.def("cuda_forward", &stdeform::cuda_forward);
  // Of this module alone: `benchmarks tune` loads several into one process.
  py::class_<stdeform::cuda::Backward>(m, "CudaBackward", py::module_local())
      .def(py::init(&stdeform::cuda_backward))
      .def_property_readonly("workspace_bytes", &stdeform::cuda::Backward::workspace_bytes)
      .def("enqueue", &stdeform::cuda_enqueue);
  m.def("cuda_devices", [] {
    const auto devices = stdeform::cuda::find_devices();
    return py::make_tuple(devices.count, devices.reason);
  });
#endif
}
