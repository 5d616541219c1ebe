#include "cuda/launch.cuh"

namespace stdeform::cuda {

template void forward<double>(const KernelParams&, const DeviceProps&, const Tuning&, cudaStream_t);
template void backward<double>(const KernelParams&, const BinPlan&, void*, const DeviceProps&,
                               const Tuning&, cudaStream_t);

}  // namespace stdeform::cuda
