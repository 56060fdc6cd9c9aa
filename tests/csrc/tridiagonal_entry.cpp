// csrc/solver/tridiagonal.h, exported over arrays for ctypes. Nothing here calls LAPACK.
#include <cstdint>

#include "tridiagonal.h"

using sylvinit::Tridiagonal;

extern "C" {

// below[i] = number of eigenvalues smaller than points[i], for a multiple of kPack points.
void count_below(int n, const double* diagonal, const double* off, std::int64_t count,
                 const double* points, int* below) {
  const Tridiagonal t(n, diagonal, off);
  for (std::int64_t i = 0; i < count; i += sylvinit::kPack)
    sylvinit::count_below(t, points + i, below + i);
}

void eigenvalues(int n, const double* diagonal, const double* off, double* values) {
  const Tridiagonal t(n, diagonal, off);
  for (int i = 0; i < n; ++i) values[i] = sylvinit::eigenvalue(t, i);
}

double spectral_radius(int n, const double* diagonal, const double* off) {
  return sylvinit::spectral_radius(Tridiagonal(n, diagonal, off));
}

// found: distance, eigenvalue; indices: shift, eigenvalue.
void nearest_to_zero(int n, const double* diagonal, const double* off, int count,
                     const double* shifts, double* found, int* indices) {
  const Tridiagonal t(n, diagonal, off);
  const sylvinit::Nearest nearest = sylvinit::nearest_to_zero(t, shifts, count);
  found[0] = nearest.distance;
  found[1] = nearest.value;
  indices[0] = nearest.shift;
  indices[1] = nearest.index;
}

// f: (count, n), or (count, n, 2) for pairs, becomes the solutions; returns the columns done.
int solve_definite(int n, const double* diagonal, const double* off, int count,
                   const double* shifts, int parts, double* f) {
  const Tridiagonal t(n, diagonal, off);
  int done = 0;
  if (parts == 1) {
    sylvinit::solve_definite<1>(t, shifts, count, f, n, &done);
  } else {
    sylvinit::solve_definite<2>(t, shifts, count, f, n, &done);
  }
  return done;
}

}  // extern "C"
