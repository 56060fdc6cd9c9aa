// csrc/cuda/spectral.cu on host threads and its reference, for ctypes; and a program that runs both
// for the sanitizers.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

#include "spectral.h"
#include "spectral_reference.h"

using sylvinit::PositiveDivision;
using sylvinit::UnitScale;

extern "C" {

std::int64_t spectral_slices(std::int64_t entries) { return sylvinit::spectral_slices(entries); }

void scale_to_unit(bool reference, std::int64_t batch, std::int64_t entries, const double* a,
                   double* scaled, double* scale, double* partial) {
  const UnitScale p{batch, entries, a, scaled, scale, partial};
  if (reference) {
    sylvinit::reference::scale_to_unit(p, nullptr);
  } else {
    sylvinit::scale_to_unit(p, nullptr);
  }
}

void divide_positive(bool reference, std::int64_t batch, std::int64_t k, std::int64_t d,
                     const double* c, const double* a, const double* b, const double* threshold_a,
                     const double* threshold_b, double* y, std::uint8_t* keep) {
  const PositiveDivision p{batch, k, d, c, a, b, threshold_a, threshold_b, y, keep};
  if (reference) {
    sylvinit::reference::divide_positive(p, nullptr);
  } else {
    sylvinit::divide_positive(p, nullptr);
  }
}

}  // extern "C"

#ifdef SPECTRAL_MAIN
namespace {

// Numbers in [0, 1) that repeat from run to run.
std::vector<double> numbers(std::int64_t count) {
  std::vector<double> x(count);
  std::uint64_t state = 1;
  for (double& value : x) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<double>(state >> 11) / 9007199254740992.0;
  }
  return x;
}

bool same(const std::vector<double>& x, const std::vector<double>& y) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] != y[i] && !(std::isnan(x[i]) && std::isnan(y[i]))) return false;
  }
  return true;
}

bool scales(std::int64_t batch, std::int64_t entries) {
  std::vector<double> a = numbers(batch * entries);
  if (batch > 1) a[entries] = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> scaled(a.size()), scale(batch), expected(a.size()), expected_scale(batch);
  std::vector<double> partial(batch * sylvinit::spectral_slices(entries));
  scale_to_unit(false, batch, entries, a.data(), scaled.data(), scale.data(), partial.data());
  scale_to_unit(true, batch, entries, a.data(), expected.data(), expected_scale.data(), nullptr);
  return same(scaled, expected) && same(scale, expected_scale);
}

bool divides(std::int64_t batch, std::int64_t k, std::int64_t d) {
  const std::vector<double> c = numbers(batch * k * d), a = numbers(batch * k),
                            b = numbers(batch * d), threshold(batch, 0.5);
  std::vector<double> y(c.size()), expected(c.size());
  std::vector<std::uint8_t> keep(c.size()), expected_keep(c.size());
  divide_positive(false, batch, k, d, c.data(), a.data(), b.data(), threshold.data(),
                  threshold.data(), y.data(), keep.data());
  divide_positive(true, batch, k, d, c.data(), a.data(), b.data(), threshold.data(),
                  threshold.data(), expected.data(), expected_keep.data());
  return same(y, expected) && keep == expected_keep;
}

}  // namespace

int main() {
  const bool good = scales(1, 1) && scales(3, 127) && scales(3, 12000) && divides(1, 1, 1) &&
                    divides(2, 3, 200) && divides(3, 67, 129);
  std::puts(good ? "same" : "different");
  return good ? 0 : 1;
}
#endif
