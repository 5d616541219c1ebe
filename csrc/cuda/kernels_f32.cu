#include "launch.cuh"

namespace stdeform::cuda {

template void forward<float>(const Call&, cudaStream_t);
template void backward<float>(const Call&, cudaStream_t);

}  // namespace stdeform::cuda
