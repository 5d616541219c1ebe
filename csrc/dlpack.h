// The parts of DLPack's ABI (https://dmlc.github.io/dlpack/latest/c_api.html) that describe a
// tensor which stays its owner's: the struct itself, the capsule named "dltensor" that holds one,
// which we read and do not rename, and the table in which a library exports a function that fills
// one in.
#pragma once

#include <cstdint>

namespace stdeform::dlpack {

constexpr const char* kCapsule = "dltensor";
constexpr const char* kTableOfType = "__dlpack_c_exchange_api__";  // attribute of a tensor's type
constexpr const char* kTable = "dlpack_exchange_api";              // the capsule in it
constexpr uint32_t kTableVersion = 1;
constexpr uint8_t kFloat = 2, kBfloat = 4;  // type codes

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Device {
  int32_t type, index;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  const int64_t* shape;
  const int64_t* strides;  // in elements; PyTorch always sets them
  uint64_t byte_offset;
};

// Fills in a struct that points into a tensor, of type PyObject*, without a copy; 0, or -1 with a
// Python exception set.
using Describe = int (*)(void* tensor, Tensor* described);

struct Table {
  uint32_t major, minor;  // version
  Table* older;
  void* allocate;
  void* from_tensor;
  void* to_tensor;
  Describe describe;  // may be null
  void* current_stream;
};

}  // namespace stdeform::dlpack
