// C += A^T B for two slices of Z in shared memory, by tensor cores or by plain arithmetic.
#pragma once

#include <cuda_runtime.h>

#include "mma.cuh"
#include "patch_gram.h"
#include "patch_tile.cuh"
#include "tf32.cuh"

namespace sylvinit {

// The part of a Tile x Tile product that one thread holds, in the layout of mma_m16n8k8: the
// 16 x 8 blocks (i, j) of its warp's rectangle, four numbers of each.
template <int Tile>
struct TileShape {
  static constexpr int kWarpRows = Tile == 128 ? 64 : 32;
  static constexpr int kWarpColumns = 32;
  static constexpr int kAcross = Tile / kWarpColumns;
  static constexpr int kWarps = Tile / kWarpRows * kAcross;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBlocksDown = kWarpRows / 16;
  static constexpr int kBlocksAcross = kWarpColumns / 8;
};

template <int Tile>
struct TileProduct {
  using Shape = TileShape<Tile>;
  float value[Shape::kBlocksDown][Shape::kBlocksAcross][4];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < Shape::kBlocksDown; ++i)
#pragma unroll
      for (int j = 0; j < Shape::kBlocksAcross; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) value[i][j][e] = 0.0f;
  }

  // Adds another and clears it.
  __device__ void take(TileProduct& other) {
#pragma unroll
    for (int i = 0; i < Shape::kBlocksDown; ++i)
#pragma unroll
      for (int j = 0; j < Shape::kBlocksAcross; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) value[i][j][e] += other.value[i][j][e];
    other.clear();
  }

  // Row and column in the tile of value[i][j][e].
  static __device__ int row(int i, int e) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return warp / Shape::kAcross * Shape::kWarpRows + 16 * i + lane / 4 + e / 2 * 8;
  }
  static __device__ int column(int j, int e) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return warp % Shape::kAcross * Shape::kWarpColumns + 8 * j + lane % 4 * 2 + e % 2;
  }
};

template <int Tile>
using Slice = float[kChunk][Tile + kPadding];

// One chunk of patches, all products in float32.
template <int Tile>
__device__ void multiply_ffma(TileProduct<Tile>& c, const Slice<Tile>& a, const Slice<Tile>& b) {
  using Shape = TileShape<Tile>;
#pragma unroll 4
  for (int k = 0; k < kChunk; ++k) {
    float left[Shape::kBlocksDown][2], right[Shape::kBlocksAcross][2];
#pragma unroll
    for (int i = 0; i < Shape::kBlocksDown; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) left[i][h] = a[k][TileProduct<Tile>::row(i, 2 * h)];
#pragma unroll
    for (int j = 0; j < Shape::kBlocksAcross; ++j)
#pragma unroll
      for (int h = 0; h < 2; ++h) right[j][h] = b[k][TileProduct<Tile>::column(j, h)];
#pragma unroll
    for (int i = 0; i < Shape::kBlocksDown; ++i)
#pragma unroll
      for (int j = 0; j < Shape::kBlocksAcross; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) c.value[i][j][e] += left[i][e / 2] * right[j][e % 2];
  }
}

// The factors of a product on tensor cores: split in two, or (TF32) rounded.
template <bool kSplit>
__device__ __forceinline__ void factor(float x, float& high, float& low) {
  if constexpr (kSplit) {
    split_tf32(x, high, low);
  } else {
    high = round_to_tf32(x);
    low = 0.0f;
  }
}

// One chunk of patches on tensor cores; with kSplit (3xTF32) the factors are split in two, and
// the three larger of the four products are taken, the smallest first.
template <int Tile, bool kSplit>
__device__ void multiply_tf32(TileProduct<Tile>& c, const Slice<Tile>& a, const Slice<Tile>& b) {
  using Shape = TileShape<Tile>;
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int down = warp / Shape::kAcross * Shape::kWarpRows;
  const int across = warp % Shape::kAcross * Shape::kWarpColumns;
#pragma unroll
  for (int k = 0; k < kChunk; k += 8) {
    float right[Shape::kBlocksAcross][2], right_low[Shape::kBlocksAcross][2];
#pragma unroll
    for (int j = 0; j < Shape::kBlocksAcross; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        factor<kSplit>(b[k + t + 4 * e][across + 8 * j + g], right[j][e], right_low[j][e]);
      }
#pragma unroll
    for (int i = 0; i < Shape::kBlocksDown; ++i) {
      float left[4], left_low[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float value = a[k + t + e / 2 * 4][down + 16 * i + g + e % 2 * 8];
        factor<kSplit>(value, left[e], left_low[e]);
      }
      // All blocks of one kind before the next kind: neighboring instructions are independent.
      if constexpr (kSplit) {
#pragma unroll
        for (int j = 0; j < Shape::kBlocksAcross; ++j)
          mma_m16n8k8_tf32(c.value[i][j], left_low, right[j]);
#pragma unroll
        for (int j = 0; j < Shape::kBlocksAcross; ++j)
          mma_m16n8k8_tf32(c.value[i][j], left, right_low[j]);
      }
#pragma unroll
      for (int j = 0; j < Shape::kBlocksAcross; ++j)
        mma_m16n8k8_tf32(c.value[i][j], left, right[j]);
    }
  }
}

template <int Tile, Arithmetic kArithmetic>
__device__ void multiply(TileProduct<Tile>& c, const Slice<Tile>& a, const Slice<Tile>& b) {
  if constexpr (kArithmetic == kFFMA) {
    multiply_ffma<Tile>(c, a, b);
  } else {
    multiply_tf32<Tile, kArithmetic == k3xTF32>(c, a, b);
  }
}

}  // namespace sylvinit
