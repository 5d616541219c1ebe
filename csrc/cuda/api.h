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

// Forward and Backward::enqueue throw std::runtime_error if the work could not be handed over, and
// leave the caller's device current. What fails later on the device is reported by whoever waits
// for the stream.
void forward(const Problem&, const Stream&, const Tuning& = {});

// Gradients come in the compute type, for the caller to round or to add up:
//   grad_value      [B, S, M, D], from a multiple of 16 bytes on
//   grad_reference  [B, Q, M, L, N or 2N], a head's share each
//   grad_scores     [B, Q, M, L, K]
// and grad_positions in the dtype of the positions.
class Backward {
 public:
  // Throws std::invalid_argument if the kernels cannot do it.
  explicit Backward(const Problem&, const Tuning& = {});

  // Of memory on the device, for the caller to bring.
  int64_t workspace_bytes() const { return plan_.bytes(); }

  // `workspace`: from a multiple of 16 bytes on.
  void enqueue(const Stream&, void* workspace) const;

 private:
  KernelParams params_;
  BinPlan plan_;
  Tuning tuning_;
};

}  // namespace stdeform::cuda
