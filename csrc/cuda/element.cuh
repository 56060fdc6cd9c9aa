// Reading float32, bf16 and fp16 as float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"
#include "patch_gram.h"

namespace sylvinit {

// V neighboring elements, read by one instruction.
template <class Element, int V>
struct alignas(V * sizeof(Element)) Pack {
  Element item[V];
};

SYLVINIT_HD float float_of_bits(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

SYLVINIT_HD std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

SYLVINIT_HD float float_of_half(std::uint16_t bits) {
#ifdef __CUDA_ARCH__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
  return result;
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1Fu, fraction = bits & 0x3FFu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float size = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -size : size;
  }
  const std::uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return float_of_bits(sign | (wide << 23) | (fraction << 13));
#endif
}

// A number from its bits, which for the 16-bit types are the lower half.
template <ElementType kType>
SYLVINIT_HD float float_of(std::uint32_t bits) {
  if constexpr (kType == kBFloat16) return float_of_bits(bits << 16);
  if constexpr (kType == kFloat16) return float_of_half(static_cast<std::uint16_t>(bits));
  return float_of_bits(bits);
}

SYLVINIT_HD float element_at(const PatchGram& gram, std::int64_t offset) {
  if (gram.element_type == kFloat32) return static_cast<const float*>(gram.x)[offset];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(gram.x)[offset];
  return gram.element_type == kBFloat16 ? float_of<kBFloat16>(bits) : float_of<kFloat16>(bits);
}

}  // namespace sylvinit
