// The functions of spectral.h for arrays on the host, in plain loops.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "spectral.h"

namespace sylvinit::reference {

inline void scale_to_unit(const UnitScale& p, cudaStream_t) {
  for (std::int64_t matrix = 0; matrix < p.batch; ++matrix) {
    const double* a = p.a + matrix * p.entries;
    double scale = 0;
    bool finite = true;
    for (std::int64_t e = 0; e < p.entries; ++e) {
      finite = finite && std::isfinite(a[e]);
      scale = std::fmax(scale, std::fabs(a[e]));
    }
    if (scale == 0) scale = 1;
    p.scale[matrix] = finite ? scale : std::numeric_limits<double>::quiet_NaN();
    for (std::int64_t e = 0; e < p.entries; ++e) {
      p.scaled[matrix * p.entries + e] = finite ? a[e] / scale : 0;
    }
  }
}

inline void divide_positive(const PositiveDivision& p, cudaStream_t) {
  for (std::int64_t matrix = 0; matrix < p.batch; ++matrix) {
    for (std::int64_t i = 0; i < p.k; ++i) {
      for (std::int64_t j = 0; j < p.d; ++j) {
        const std::int64_t at = (matrix * p.k + i) * p.d + j;
        const double a = p.a[matrix * p.k + i], b = p.b[matrix * p.d + j];
        const bool small = a <= p.threshold_a[matrix] && b <= p.threshold_b[matrix];
        p.keep[at] = !small;
        p.y[at] = small ? 0 : p.c[at] / ((a < 0 ? 0 : a) + (b < 0 ? 0 : b));
      }
    }
  }
}

}  // namespace sylvinit::reference
