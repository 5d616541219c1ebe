#include "cuda/launch.cuh"

namespace stdeform::cuda {

template void launch_forward<float>(const KernelParams&, const DeviceProps&, const Tuning&,
                                    cudaStream_t);
template void launch_backward<float>(const KernelParams&, const BinPlan&, void*, const DeviceProps&,
                                     const Tuning&, cudaStream_t);

}  // namespace stdeform::cuda
