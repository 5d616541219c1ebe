#include "launch.cuh"

namespace stdeform::cuda {

template void forward<double>(const Call&, cudaStream_t);
template void backward<double>(const Call&, cudaStream_t);

}  // namespace stdeform::cuda
