// The struct in a DLPack capsule named "dltensor", version 0 of its ABI
// (https://dmlc.github.io/dlpack/latest/c_api.html). We read the struct and do not rename the
// capsule, so the capsule keeps the ownership of the tensor.
#pragma once

#include <cstdint>

namespace stdeform::dlpack {

constexpr const char* kCapsule = "dltensor";
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

}  // namespace stdeform::dlpack
