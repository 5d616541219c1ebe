// What DLPack puts into a capsule named "dltensor": the layout of a tensor for other libraries, as
// fixed by its version 0 (https://dmlc.github.io/dlpack/latest/c_api.html). Whoever only looks,
// and leaves the capsule's name alone, leaves the tensor to the capsule.
#pragma once

#include <cstdint>

namespace stdeform::dlpack {

constexpr const char* kCapsule = "dltensor";
constexpr uint8_t kFloat = 2, kBfloat = 4;  // codes

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
  const int64_t* strides;  // in elements; PyTorch always gives them
  uint64_t byte_offset;
};

}  // namespace stdeform::dlpack
