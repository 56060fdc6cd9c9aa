#include "patch_gram_tiles.cuh"

namespace sylvinit {

template TileKernel choose_tile_kernel<k3xTF32>(int, bool);

}  // namespace sylvinit
