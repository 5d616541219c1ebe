#include "cuda/launch.cuh"

namespace stdeform::cuda {

template void launch_forward<BFloat16>(const KernelParams&, const DeviceProps&, const Tuning&,
                                       cudaStream_t);
template void launch_backward<BFloat16>(const KernelParams&, const BinPlan&, void*,
                                        const DeviceProps&, const Tuning&, cudaStream_t);

}  // namespace stdeform::cuda
