// The operator on a CUDA device: forward and backward of one call. Host code, no CUDA headers.
#pragma once

#include "core/problem.h"
#include "cuda/binned/plan.h"
#include "cuda/params.h"

namespace stdeform::cuda {

// Where kernels are enqueued. Nothing waits for them, and nothing is allocated.
struct Stream {
  int device;    // the device of all arrays
  void* handle;  // a cudaStream_t of that device; null is its default stream
};

// enqueue_forward and Backward::enqueue throw std::runtime_error if a launch fails, and leave the
// current device as it was. What fails later on the device is reported when the caller waits for
// the stream.
void enqueue_forward(const Problem&, const Stream&, const Tuning& = {});

// Gradients have the compute type, for the caller to round or to add up:
//   grad_value      [B, S, M, D], aligned to 16 bytes
//   grad_reference  [B, Q, M, L, N or 2N], one per head
//   grad_scores     [B, Q, M, P]
// and grad_positions in the dtype of the positions.
class Backward {
 public:
  // Throws std::invalid_argument if the kernels do not support the problem.
  explicit Backward(const Problem&, const Tuning& = {});

  // Bytes of device memory that the caller must provide.
  int64_t workspace_bytes() const { return plan_.bytes(); }

  // `workspace` is aligned to 16 bytes.
  void enqueue(const Stream&, void* workspace) const;

 private:
  KernelParams params_;
  BinPlan plan_;
  Tuning tuning_;
};

}  // namespace stdeform::cuda
