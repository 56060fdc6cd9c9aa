// Patches that a block has chosen, and where they lie.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "patch_layout.cuh"

namespace sylvinit {

// Patches that are in shared memory at a time: two steps of the tensor cores.
constexpr int kChunk = 16;

// Tap offsets that a block holds at a time.
constexpr int kHeldTaps = kChunk * static_cast<int>(kMaxTapSlots);

// Patches that a block has chosen at once, and where they lie.
template <int Threads>
struct Round {
  PatchRow row[Threads];
  int tap[kHeldTaps];  // tap_slots of each patch
};

// Patches of a round: one for each thread as far as their offsets fit, in whole chunks. Choosing a
// patch takes hundreds of instructions that wait for each other, so many threads do it together.
template <int Threads>
__device__ int patches_of_round(int slots) {
  const int fitting = kHeldTaps / slots / kChunk * kChunk;
  return fitting < Threads ? fitting : Threads;
}

// Fills a round with `count` patches, patch(0), patch(1), ... All threads of the block call it,
// when none of them reads the round any more.
template <int Threads, class PatchOf>
__device__ void choose_round(const PatchGram& gram, int count, const PatchOf& patch,
                             Round<Threads>& round) {
  const int thread = static_cast<int>(threadIdx.x), slots = tap_slots(gram);
  if (thread < count) {
    const PatchRow row = row_of_patch(gram, patch(thread));
    if (row.label == kBadLabel) atomicOr(gram.status, kLabelOutOfRange);
    if (row.label == kBadPatch) atomicOr(gram.status, kPatchOutOfRange);
    round.row[thread] = row;
  }
  __syncthreads();
  // From one offset of a thread to its next, without a division for each.
  const int rows = Threads / slots, rest = Threads - rows * slots;
  int r = thread / slots, slot = thread - r * slots;
  while (r < count) {
    round.tap[r * slots + slot] = tap_offset(gram, round.row[r], slot);
    r += rows;
    slot += rest;
    if (slot >= slots) {
      slot -= slots;
      ++r;
    }
  }
  __syncthreads();
}

}  // namespace sylvinit
