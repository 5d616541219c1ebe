#include "launch.cuh"

namespace stdeform::cuda {

template void forward<Half>(const Call&, cudaStream_t);
template void backward<Half>(const Call&, cudaStream_t);

}  // namespace stdeform::cuda
