#include "patch_gram_tiles.cuh"

namespace sylvinit {

template TileKernel choose_tile_kernel<kFFMA>(int, bool);

}  // namespace sylvinit
