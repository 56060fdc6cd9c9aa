// Philox4x32-10, the counter-based random number generator of J. K. Salmon, M. A. Moraes,
// R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//
// A draw is a pure function of (key, counter). Whoever needs the position drawn for a sample
// computes it alone: no state, no order, the same on every device and for every batch size.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace sylvinit {

struct Philox4x32 {
  std::uint32_t word[4];
};

SYLVINIT_HD Philox4x32 philox4x32_10(Philox4x32 counter, std::uint32_t key0, std::uint32_t key1) {
  constexpr int kRounds = 10;
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53u;
  constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57u;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;  // golden ratio
  constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;  // sqrt(3) - 1

  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter.word[0];
    const std::uint64_t product1 = kMultiplier1 * counter.word[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<std::uint32_t>(product0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// Position of one draw among `positions` equally likely ones; 1 <= positions <= 2^32.
// Multiplying by the range instead of taking a remainder needs no division, and the product of
// a 32-bit word and 2^32 still fits in 64 bits.
SYLVINIT_HD std::uint64_t sample_position(std::uint32_t key0, std::uint32_t key1,
                                          std::uint64_t sample, std::uint32_t draw,
                                          std::uint64_t positions) {
  const Philox4x32 counter = {
      {static_cast<std::uint32_t>(sample), static_cast<std::uint32_t>(sample >> 32), draw, 0u}};
  const std::uint64_t word0 = philox4x32_10(counter, key0, key1).word[0];
  return (word0 * positions) >> 32;
}

}  // namespace sylvinit
