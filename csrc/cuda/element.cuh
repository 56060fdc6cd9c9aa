// Reading float32, bf16 and fp16 as float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"
#include "patch_gram.h"

namespace sylvinit {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

// V neighbouring elements, read by one instruction.
template <class Element, int V>
struct alignas(V * sizeof(Element)) Pack {
  Element item[V];
};

SYLVINIT_HD float float_of_bits(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

SYLVINIT_HD float to_float(float value) { return value; }

SYLVINIT_HD float to_float(BFloat16 value) {
  return float_of_bits(static_cast<std::uint32_t>(value.bits) << 16);
}

SYLVINIT_HD float to_float(Float16 value) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t exponent = (value.bits >> 10) & 0x1Fu, fraction = value.bits & 0x3FFu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float size = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -size : size;
  }
  const std::uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return float_of_bits(sign | (wide << 23) | (fraction << 13));
#endif
}

SYLVINIT_HD float element_at(const PatchGram& gram, std::int64_t offset) {
  if (gram.element_type == kBFloat16) {
    return to_float(static_cast<const BFloat16*>(gram.x)[offset]);
  }
  if (gram.element_type == kFloat16) return to_float(static_cast<const Float16*>(gram.x)[offset]);
  return static_cast<const float*>(gram.x)[offset];
}

}  // namespace sylvinit
