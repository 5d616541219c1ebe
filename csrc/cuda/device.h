// Which CUDA devices can run this build's kernels: a number and, if it is zero, the reason.
#pragma once

#include <string>

namespace stdeform::cuda {

struct Devices {
  int count;           // visible devices that can run the kernels
  std::string reason;  // why there is none; empty if count > 0
};

// Asks the driver, once: it creates no context and takes no memory on a device. Never throws on a
// CUDA error.
Devices find_devices();

}  // namespace stdeform::cuda
