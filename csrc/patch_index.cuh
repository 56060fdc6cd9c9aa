// Which input element does tap `tap` of the patch at output position `out` read?
//
// Convolutions are separable in their indices, so one function per spatial axis is enough: a
// patch element is a structural zero if it is one along any axis. Transposed convolutions count
// as the stride-1 convolution of the zero-stuffed input, with taps in the order of the stored
// kernel (the flip is part of the index).
#pragma once

#include <cstdint>

#include "host_device.h"

namespace sylvinit {

// Values of PatchAxis::mode, in the order of torch's padding_mode choices.
enum PaddingMode : int { kZeros = 0, kReflect = 1, kReplicate = 2, kCircular = 3 };

// One spatial axis of a convolution. Padding after the input only limits how many output
// positions there are, so it does not appear here.
struct PatchAxis {
  std::int64_t in_size;
  std::int64_t stride;
  std::int64_t dilation;
  std::int64_t pad_before;
  int mode;  // a PaddingMode; ignored if transposed
  bool transposed;
};

// Input coordinate in [0, in_size) for a coordinate outside it, or -1 for a zero.
SYLVINIT_HD std::int64_t padded_index(std::int64_t u, std::int64_t in_size, int mode) {
  switch (mode) {
    case kReflect: {  // the edge is not repeated: period 2 (in_size - 1)
      if (in_size == 1) return 0;
      const std::int64_t period = 2 * (in_size - 1);
      const std::int64_t r = ((u % period) + period) % period;
      return r < in_size ? r : period - r;
    }
    case kReplicate:
      return u < 0 ? 0 : in_size - 1;
    case kCircular:
      return ((u % in_size) + in_size) % in_size;
    default:
      return -1;
  }
}

// Input coordinate along one axis, or -1 for a structural zero.
SYLVINIT_HD std::int64_t patch_input_index(const PatchAxis& axis, std::int64_t out,
                                           std::int64_t tap) {
  if (axis.transposed) {
    const std::int64_t u = out + axis.pad_before - tap * axis.dilation;
    if (u < 0 || u % axis.stride != 0) return -1;
    const std::int64_t i = u / axis.stride;
    return i < axis.in_size ? i : -1;
  }
  const std::int64_t u = out * axis.stride - axis.pad_before + tap * axis.dilation;
  if (u >= 0 && u < axis.in_size) return u;
  return padded_index(u, axis.in_size, axis.mode);
}

}  // namespace sylvinit
