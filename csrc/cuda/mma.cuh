// The tensor-core instruction of patch_gram, and rounding to what it reads.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sylvinit {

// x rounded to TF32 (10 bits of fraction), nearest, ties away from zero; as a float32.
__device__ __forceinline__ float round_to_tf32(float x) {
#ifdef __CUDACC__
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#else
  return shim::round_to_tf32(x);
#endif
}

// d += a b for a 16 x 8 and b 8 x 8 in TF32. With g = lane / 4 and t = lane % 4 a lane holds
// a (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b (t, g), (t + 4, g); and
// d (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const float (&a)[4],
                                                 const float (&b)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#else
  shim::mma_m16n8k8_tf32(d, a, b);
#endif
}

}  // namespace sylvinit
