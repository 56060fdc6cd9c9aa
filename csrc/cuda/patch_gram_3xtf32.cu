#include "patch_gram_tiles.cuh"

namespace sylvinit {

template void launch_tiles<k3xTF32>(const PatchGram&, const PatchGramPlan&, bool, double*,
                                    cudaStream_t);

}  // namespace sylvinit
