// patch_gram and patch_mean on the host, one number after the other in float64.
#pragma once

#include <cstdint>
#include <vector>

#include "element.cuh"
#include "patch_gram.h"
#include "patch_layout.cuh"

namespace sylvinit {

// Column f >= 0 beside the patch: the constant, then the one-hot label, then the code.
inline double beside_patch(const PatchGram& gram, int label, std::int64_t p, std::int64_t f) {
  if (!has_patch(label)) return 0.0;
  if (f == 0) return 1.0;
  const std::int64_t code = f - 1 - gram.classes;
  return code < 0 ? f - 1 == label : gram.code[p * gram.code_stride + code];
}

// Row p of Z, without rounding the difference x - shift to float32.
inline std::vector<double> reference_row(const PatchGram& gram, int group, std::int64_t p) {
  const std::int64_t d = features_of(gram), columns = columns_of(gram);
  const PatchRow row = row_of_patch(gram, p);
  std::vector<int> taps(tap_slots(gram));
  for (int slot = 0; slot < tap_slots(gram); ++slot) taps[slot] = tap_offset(gram, row, slot);
  std::vector<double> z(columns);
  for (std::int64_t f = 0; f < columns; ++f) {
    if (f >= d) {
      z[f] = beside_patch(gram, row.label, p, f - d);
      continue;
    }
    const PatchColumn column = column_of_feature(gram, group, f);
    const std::int64_t offset = element_offset(row.offset, taps.data(), column);
    const double value = offset < 0 ? 0.0 : element_at(gram, offset);
    if (!has_patch(row.label)) continue;
    z[f] = value - (gram.shift == nullptr ? 0.0 : gram.shift[group * d + f]);
  }
  return z;
}

inline void patch_gram_reference(const PatchGram& gram, double* gram_out) {
  check_patch_gram(gram);
  const std::int64_t columns = columns_of(gram), rows = rows_of(gram);
  for (int group = 0; group < gram.groups; ++group) {
    double* out = gram_out + (group * rows - gram.first_row) * columns;
    for (std::int64_t p = 0; p < gram.n; ++p) {
      const int label = row_of_patch(gram, p).label;
      if (label == kBadLabel) *gram.status |= kLabelOutOfRange;
      if (label == kBadPatch) *gram.status |= kPatchOutOfRange;
      const std::vector<double> z = reference_row(gram, group, p);
      for (std::int64_t i = gram.first_row; i < gram.first_row + rows; ++i) {
        for (std::int64_t j = i; j < columns; ++j) out[i * columns + j] += z[i] * z[j];
      }
    }
  }
}

inline void patch_mean_reference(const PatchGram& gram, std::int64_t count, float* mean) {
  check_patch_gram(gram);
  const std::int64_t d = features_of(gram);
  PatchGram raw = gram;
  raw.shift = nullptr;
  for (int group = 0; group < gram.groups; ++group) {
    std::vector<double> total(d);
    for (std::int64_t p = 0; p < count; ++p) {
      const std::vector<double> z = reference_row(raw, group, p);
      for (std::int64_t f = 0; f < d; ++f) total[f] += z[f];
    }
    for (std::int64_t f = 0; f < d; ++f) {
      mean[group * d + f] = static_cast<float>(total[f] / static_cast<double>(count));
    }
  }
}

}  // namespace sylvinit
