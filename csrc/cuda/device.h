// Which CUDA devices can run this build's kernels: a number and, if it is zero, the reason.
#pragma once

#include <string>

namespace stdeform::cuda {

struct Devices {
  int count;           // visible devices that can run the kernels
  std::string reason;  // why there is none; empty if count > 0
};

// Asks the driver, and runs an empty kernel on one device if there is one. For diagnosis and for
// choosing a backend once, not for the path of a call: it creates a context and waits for it.
// Without a driver it touches nothing. Never throws on a CUDA error.
Devices find_devices();

}  // namespace stdeform::cuda
