#include "cuda/launch.cuh"

namespace stdeform::cuda {

template void forward<float>(const Call&, const Device&, const Tuning&, cudaStream_t);
template void backward<float>(const Call&, const BinPlan&, void*, const Device&, const Tuning&,
                              cudaStream_t);

}  // namespace stdeform::cuda
