// A float32 as the sum of two TF32 numbers.
#pragma once

#include <cstdint>

#include "element.cuh"
#include "host_device.h"

namespace sylvinit {

// x = high + low exactly. high is x rounded to the 11 significant bits of TF32, nearest, ties away
// from zero; low has 12 bits, of which the tensor cores drop one, up to 2^-23 |x|. In integers: the
// conversion compiles to more instructions, and low would need another.
//
// NaN and infinity: low is NaN, and so is every product with it. (The NaN of largest payload gives
// a high of zero, so high alone must not be used where NaN has to be seen.) |x| of at least
// 2^128 - 2^116 counts as infinite.
SYLVINIT_HD void split_tf32(float x, float& high, float& low) {
  high = float_of_bits((bits_of_float(x) + 0x1000u) & 0xFFFFE000u);
  low = x - high;
}

}  // namespace sylvinit
