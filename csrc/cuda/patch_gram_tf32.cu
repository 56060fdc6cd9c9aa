#include "patch_gram_tiles.cuh"

namespace sylvinit {

template TileKernel choose_tile_kernel<kTF32>(int, bool);

}  // namespace sylvinit
