// A block's slice of Z on its way from the activation to shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "element.cuh"
#include "patch_layout.cuh"

namespace sylvinit {

// Patches that are in shared memory at a time: two steps of the tensor cores.
constexpr int kChunk = 16;
// Columns of padding after each patch, so that the 8 x 4 numbers of a fragment lie in 32 banks.
constexpr int kPadding = 8;

// Where the patches of a chunk lie.
struct ChunkPlaces {
  std::int64_t offset[kChunk];
  int label[kChunk];
  int taps[kChunk][kMaxTapSlots];
};

// Fills the places of a chunk from the rows of its patches.
__device__ inline void find_places(const PatchGram& gram, const PatchRow* rows,
                                   ChunkPlaces& places) {
  const int slots = tap_slots(gram), threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < kChunk * slots; i += threads) {
    const int r = i / slots, slot = i - r * slots;
    places.taps[r][slot] = tap_offset(gram, rows[r], slot);
    if (slot > 0) continue;
    places.offset[r] = rows[r].offset;
    places.label[r] = rows[r].label;
  }
}

// The columns [first, first + Tile) of Z that one thread carries: V neighbouring ones, of
// kChunk / kStride patches.
template <int Tile, int Threads, int V>
struct TileColumns {
  static constexpr int kAcross = Tile / V;           // threads along the columns
  static constexpr int kStride = Threads / kAcross;  // patches read at a time
  static constexpr int kRows = kChunk / kStride;     // patches of one thread

  int beside;  // columns from the first one beside the patch; negative: a feature of the patch
  PatchColumn column;
  float shift[V];

  __device__ void start(const PatchGram& gram, int group, std::int64_t first) {
    const std::int64_t d = features_of(gram);
    const std::int64_t feature = first + static_cast<int>(threadIdx.x) % kAcross * V;
    beside = static_cast<int>(feature - d);
    column = column_of_feature(gram, group, beside < 0 ? feature : 0);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const bool shifted = gram.shift != nullptr && beside + v < 0;
      shift[v] = shifted ? gram.shift[group * d + feature + v] : 0.0f;
    }
  }

  // Reads the numbers of one chunk; they are in flight until `put` needs them.
  __device__ void take(const PatchGram& gram, const ChunkPlaces& places, std::int64_t first,
                       float (&staged)[kRows * V]) const {
    if (beside >= 0) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int r = static_cast<int>(threadIdx.x) / kAcross + i * kStride;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          staged[i * V + v] = beside_patch(gram, places.label[r], first + r, beside + v);
        }
      }
    } else if (gram.element_type == kFloat32) {
      read<float>(gram.x, places, staged);
    } else if (gram.element_type == kBFloat16) {
      read<BFloat16>(gram.x, places, staged);
    } else {
      read<Float16>(gram.x, places, staged);
    }
  }

  // The threads of a warp write neighbouring columns.
  __device__ void put(float (*shared)[Tile + kPadding], const float (&staged)[kRows * V]) const {
    const int across = static_cast<int>(threadIdx.x) % kAcross * V;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = static_cast<int>(threadIdx.x) / kAcross + i * kStride;
      Pack<float, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) pack.item[v] = staged[i * V + v];
      *reinterpret_cast<Pack<float, V>*>(&shared[r][across]) = pack;
    }
  }

 private:
  template <class Element>
  __device__ void read(const void* x, const ChunkPlaces& places, float (&staged)[kRows * V]) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int r = static_cast<int>(threadIdx.x) / kAcross + i * kStride;
      const std::int64_t offset = element_offset(places.offset[r], places.taps[r], column);
      Pack<Element, V> pack = {};
      if (offset >= 0) {
        pack = *reinterpret_cast<const Pack<Element, V>*>(static_cast<const Element*>(x) + offset);
      }
      const bool here = has_patch(places.label[r]);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        staged[i * V + v] = here ? to_float(pack.item[v]) - shift[v] : 0.0f;
      }
    }
  }
};

}  // namespace sylvinit
