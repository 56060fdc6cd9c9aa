#include "patch_gram_tiles.cuh"

namespace sylvinit {

template void launch_tiles<kTF32>(const PatchGram&, const PatchGramPlan&, bool, double*,
                                  cudaStream_t);

}  // namespace sylvinit
