// The kernel of patch_gram: one block adds up one tile of the Gram matrix over one part of the
// patches.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.h"
#include "patch_gram.h"
#include "patch_tile.cuh"
#include "tile_product.cuh"

namespace sylvinit {

// The tensor cores add with truncation, a bias that grows with the number of additions. In 3xTF32
// they sum this many patches, whose sums are added in float32, and those of kPatchesPerFlush in
// float64. In TF32 the factors themselves are worse than the bias, and plain float32 rounds to
// nearest: there the sums in between are left out.
constexpr int kPatchesPerSum = 64;

template <Arithmetic kArithmetic>
constexpr int kPatchesPerFlush = kArithmetic == kFFMA ? 1024 : 4096;

// Adds the product to the block's place in the workspace, or writes it the first time.
template <int Tile>
__device__ void flush(TileProduct<Tile>& product, double* place, bool first) {
  using Shape = TileShape<Tile>;
#pragma unroll
  for (int i = 0; i < Shape::kBlocksDown; ++i)
#pragma unroll
    for (int j = 0; j < Shape::kBlocksAcross; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        double& sum = place[TileProduct<Tile>::row(i, e) * Tile + TileProduct<Tile>::column(j, e)];
        const double value = product.value[i][j][e];
        sum = first ? value : sum + value;
      }
  product.clear();
}

// Grid: (pairs of tiles * groups, splits). workspace: (splits, groups, pairs, Tile, Tile).
// V: features that are read at a time.
template <int Tile, Arithmetic kArithmetic, int V>
__global__ void __launch_bounds__(TileShape<Tile>::kThreads, Tile == 64 ? 3 : 1)
    tile_kernel(PatchGram gram, PatchGramPlan plan, double* workspace) {
  using Shape = TileShape<Tile>;
  using Columns = TileColumns<Tile, Shape::kThreads, V>;
  alignas(16) __shared__ Slice<Tile> left[2];
  alignas(16) __shared__ Slice<Tile> right[2];
  __shared__ Round<Shape::kThreads> round;

  const int group = static_cast<int>(blockIdx.x / plan.pairs);
  const int tiles = static_cast<int>((columns_of(gram) + Tile - 1) / Tile);
  const TilePair pair = tile_pair(plan.first_pair + blockIdx.x % plan.pairs, tiles);
  const bool diagonal = pair.row == pair.column;
  const std::int64_t chunks = (gram.n + kChunk - 1) / kChunk;
  const int split = static_cast<int>(blockIdx.y);
  const std::int64_t begin = split_begin(chunks, plan.splits, split);
  const std::int64_t end = split_begin(chunks, plan.splits, split + 1);
  double* place =
      workspace + (static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * Tile * Tile;

  Columns down, across;
  down.start(gram, group, static_cast<std::int64_t>(pair.row) * Tile);
  across.start(gram, group, static_cast<std::int64_t>(pair.column) * Tile);

  // The way of a chunk, in steps between which the block meets: its numbers into registers and from
  // there into shared memory, the product. There are two slices, for the chunks of even and of odd
  // number. Where the numbers lie is found for many chunks at once, before the first of them.
  const int per_round = patches_of_round<Shape::kThreads>(tap_slots(gram));
  int at = per_round;  // of the next chunk to be taken, in the round
  auto is_ours = [&](std::int64_t chunk) { return chunk >= begin && chunk < end; };
  auto take = [&](std::int64_t chunk) {
    if (!is_ours(chunk)) return;
    const std::int64_t p = chunk * kChunk;
    if (at == per_round) {
      const std::int64_t left = end * kChunk - p;
      const int count = left < per_round ? static_cast<int>(left) : per_round;
      choose_round(gram, count, [&](int i) { return p + i; }, round);
      at = 0;
    }
    down.take(gram, round, at, p);
    if (!diagonal) across.take(gram, round, at, p);
    at += kChunk;
  };
  auto put = [&](std::int64_t chunk) {
    if (!is_ours(chunk)) return;
    down.put(gram, left[chunk & 1]);
    if (!diagonal) across.put(gram, right[chunk & 1]);
  };

  constexpr bool kSumsInBetween = kArithmetic == k3xTF32;
  TileProduct<Tile> sum, sum_in_between;
  TileProduct<Tile>& partial = kSumsInBetween ? sum_in_between : sum;
  sum.clear();
  sum_in_between.clear();
  bool first = true;
  // One turn before the first product.
  for (std::int64_t chunk = begin - 1; chunk < end; ++chunk) {
    take(chunk + 1);
    if (is_ours(chunk)) {
      const int side = static_cast<int>(chunk & 1);
      multiply<Tile, kArithmetic>(partial, left[side], diagonal ? left[side] : right[side]);
      const std::int64_t done = chunk + 1 - begin;
      if (kSumsInBetween && done % (kPatchesPerSum / kChunk) == 0) sum.take(partial);
      if (done % (kPatchesPerFlush<kArithmetic> / kChunk) == 0) {
        flush<Tile>(sum, place, first);
        first = false;
      }
    }
    put(chunk + 1);
    __syncthreads();
  }
  if (kSumsInBetween) sum.take(partial);
  flush<Tile>(sum, place, first);
}

template <int Tile, Arithmetic kArithmetic>
void launch_tile(const PatchGram& gram, const PatchGramPlan& plan, bool packed, double* workspace,
                 cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(plan.pairs * gram.groups),
                  static_cast<unsigned>(plan.splits));
  // The largest tile in float32 has no registers left for packs: it would spill.
  constexpr int kPack = Tile == 128 && kArithmetic == kFFMA ? 1 : 4;
  auto* kernel = packed ? tile_kernel<Tile, kArithmetic, kPack> : tile_kernel<Tile, kArithmetic, 1>;
  launch("patch_gram", kernel, grid, dim3(TileShape<Tile>::kThreads), stream, gram, plan,
         workspace);
}

template <Arithmetic kArithmetic>
void launch_tiles(const PatchGram& gram, const PatchGramPlan& plan, bool packed, double* workspace,
                  cudaStream_t stream) {
  switch (plan.tile) {
    case 32:
      return launch_tile<32, kArithmetic>(gram, plan, packed, workspace, stream);
    case 64:
      return launch_tile<64, kArithmetic>(gram, plan, packed, workspace, stream);
    default:
      return launch_tile<128, kArithmetic>(gram, plan, packed, workspace, stream);
  }
}

// One source file each, so that they compile side by side.
extern template void launch_tiles<k3xTF32>(const PatchGram&, const PatchGramPlan&, bool, double*,
                                           cudaStream_t);
extern template void launch_tiles<kTF32>(const PatchGram&, const PatchGramPlan&, bool, double*,
                                         cudaStream_t);
extern template void launch_tiles<kFFMA>(const PatchGram&, const PatchGramPlan&, bool, double*,
                                         cudaStream_t);

}  // namespace sylvinit
