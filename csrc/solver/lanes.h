// One number of each of several equations, side by side: what the kernel for batches of small
// equations (small_kernel.h) computes with. Every lane is an equation of its own.
#pragma once

#if defined(__GNUC__)
#define SYLVINIT_LANES 1

namespace sylvinit {

// Operators and ?: work lane by lane; a comparison gives a mask. Vectors wider than a register of
// the instruction set are compiled to slow code by GCC, so the width goes with the set.
template <int lanes>
struct PackOf {
  typedef double Pack __attribute__((vector_size(lanes * sizeof(double)), may_alias));
  typedef long long Mask __attribute__((vector_size(lanes * sizeof(double)), may_alias));
};

// One equation alone: the compiler then vectorizes the loops over rows.
template <>
struct PackOf<1> {
  typedef double Pack;
  typedef long long Mask;
};

}  // namespace sylvinit

#endif
