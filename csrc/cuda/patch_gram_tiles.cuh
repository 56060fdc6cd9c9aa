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

// Adds the sums over a chunk to those of the columns of a tile, one for each of the first threads.
template <int Tile>
__device__ void add_columns(const Slice<Tile>& slice, double* column_sum) {
  const int column = static_cast<int>(threadIdx.x);
  if (column >= Tile) return;
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < kChunk; ++k) sum += slice[k][column];
  column_sum[column] += sum;
}

// Blocks that must fit on a multiprocessor: as many as leave enough registers not to spill.
template <int Tile, Arithmetic kArithmetic>
constexpr int kLeastResident = Tile != 64 ? 1 : (kArithmetic == kFFMA ? 2 : 3);

// Grid: (pairs of tiles * groups, splits). workspace: tiles (splits, groups, pairs, Tile, Tile),
// and from plan.column_sums on sums (splits, groups, tiles, Tile), by the tiles on the diagonal. V:
// features that are read at a time.
template <int Tile, Arithmetic kArithmetic, int V>
__global__ void __launch_bounds__(TileShape<Tile>::kThreads, kLeastResident<Tile, kArithmetic>)
    tile_kernel(PatchGram gram, PatchGramPlan plan, double* workspace) {
  using Shape = TileShape<Tile>;
  using Columns = TileColumns<Tile, Shape::kThreads, V>;
  alignas(16) __shared__ Slice<Tile> left[2];
  alignas(16) __shared__ Slice<Tile> right[2];
  __shared__ Round<Shape::kThreads> round;
  __shared__ double column_sum[Tile];  // each thread reads and writes its own
  __shared__ std::int64_t sums_place;  // not a register for each thread

  const int group = static_cast<int>(blockIdx.x / plan.pairs);
  const int tiles = static_cast<int>((products_of(gram) + Tile - 1) / Tile);
  const TilePair pair = tile_pair(plan.first_pair + blockIdx.x % plan.pairs, tiles);
  const bool diagonal = pair.row == pair.column;
  const std::int64_t chunks = (gram.n + kChunk - 1) / kChunk;
  const int split = static_cast<int>(blockIdx.y);
  const std::int64_t begin = split_begin(chunks, plan.splits, split), first_patch = begin * kChunk;
  const int ours = static_cast<int>(split_begin(chunks, plan.splits, split + 1) - begin);
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
  auto take = [&](int chunk) {
    const std::int64_t p = first_patch + static_cast<std::int64_t>(chunk) * kChunk;
    if (at == per_round) {
      const int chunks_left = ours - chunk, most = per_round / kChunk;
      const int count = (chunks_left < most ? chunks_left : most) * kChunk;
      choose_round(gram, count, [&](int i) { return p + i; }, round);
      at = 0;
    }
    down.take(gram, round, at, p);
    if (!diagonal) across.take(gram, round, at, p);
    at += kChunk;
  };
  auto put = [&](int chunk) {
    down.put(gram, left[chunk & 1]);
    if (!diagonal) across.put(gram, right[chunk & 1]);
  };

  constexpr bool kSumsInBetween = kArithmetic == k3xTF32;
  TileProduct<Tile> sum, sum_in_between;
  TileProduct<Tile>& partial = kSumsInBetween ? sum_in_between : sum;
  sum.clear();
  sum_in_between.clear();
  if (threadIdx.x < Tile) column_sum[threadIdx.x] = 0.0;
  if (threadIdx.x == 0) {  // read when the block has met once
    const std::int64_t of_split = static_cast<std::int64_t>(blockIdx.y) * gram.groups + group;
    sums_place = plan.column_sums + (of_split * tiles + pair.row) * Tile;
  }
  constexpr int kChunksPerFlush = kPatchesPerFlush<kArithmetic> / kChunk;
  // One turn before the first product.
  for (int chunk = -1; chunk < ours; ++chunk) {
    const bool more = chunk + 1 < ours;
    if (more) take(chunk + 1);
    const int side = chunk & 1;
    if (chunk >= 0) {
      multiply<Tile, kArithmetic>(partial, left[side], diagonal ? left[side] : right[side]);
      const int done = chunk + 1;
      if (kSumsInBetween && done % (kPatchesPerSum / kChunk) == 0) sum.take(partial);
      if (done % kChunksPerFlush == 0) {
        flush<Tile>(sum, place, done == kChunksPerFlush);
      }
    }
    if (more) put(chunk + 1);
    // Here, where the registers of `put` are free.
    if (diagonal && chunk >= 0) add_columns<Tile>(left[side], column_sum);
    __syncthreads();
  }
  if (kSumsInBetween) sum.take(partial);
  flush<Tile>(sum, place, ours < kChunksPerFlush);
  if (diagonal && threadIdx.x < Tile) {
    workspace[sums_place + threadIdx.x] = column_sum[threadIdx.x];
  }
}

template <int Tile, Arithmetic kArithmetic>
auto tile_kernel_for(bool packed) {
  // The largest tile in float32 has no registers left for packs: it would spill.
  constexpr int kPack = Tile == 128 && kArithmetic == kFFMA ? 1 : 4;
  return packed ? tile_kernel<Tile, kArithmetic, kPack> : tile_kernel<Tile, kArithmetic, 1>;
}

// A kernel of a tile, and how many threads a block of it has.
struct TileKernel {
  void (*kernel)(PatchGram, PatchGramPlan, double*);
  int threads;
};

template <Arithmetic kArithmetic>
TileKernel choose_tile_kernel(int tile, bool packed) {
  switch (tile) {
    case 32:
      return {tile_kernel_for<32, kArithmetic>(packed), TileShape<32>::kThreads};
    case 64:
      return {tile_kernel_for<64, kArithmetic>(packed), TileShape<64>::kThreads};
    default:
      return {tile_kernel_for<128, kArithmetic>(packed), TileShape<128>::kThreads};
  }
}

// One source file each, so that they compile side by side.
extern template TileKernel choose_tile_kernel<k3xTF32>(int, bool);
extern template TileKernel choose_tile_kernel<kTF32>(int, bool);
extern template TileKernel choose_tile_kernel<kFFMA>(int, bool);

}  // namespace sylvinit
