#include "cuda/launch.cuh"

namespace stdeform::cuda {

template void forward<BFloat16>(const Call&, const Device&, const Tuning&, cudaStream_t);
template void backward<BFloat16>(const Call&, const BinPlan&, void*, const Device&, const Tuning&,
                                 cudaStream_t);

}  // namespace stdeform::cuda
