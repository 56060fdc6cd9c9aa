// The BLAS and LAPACK routines that the CPU solver calls, taken at run time from the library that
// SciPy ships (scipy.linalg.cython_blas and cython_lapack export them as capsules). Nothing is
// linked, so one build serves every SciPy.
#pragma once

#include <complex>
#include <cstdint>
#include <vector>

namespace sylvinit {

using Complex = std::complex<double>;

// Column-major, 32-bit indices, all arguments by address: the Fortran interface.
struct LapackTable {
  void (*dgemm)(const char*, const char*, const int*, const int*, const int*, const double*,
                const double*, const int*, const double*, const int*, const double*, double*,
                const int*);
  void (*zgemm)(const char*, const char*, const int*, const int*, const int*, const Complex*,
                const Complex*, const int*, const Complex*, const int*, const Complex*, Complex*,
                const int*);
  void (*dsytrd)(const char*, const int*, double*, const int*, double*, double*, double*, double*,
                 const int*, int*);
  void (*zhetrd)(const char*, const int*, Complex*, const int*, double*, double*, Complex*,
                 Complex*, const int*, int*);
  void (*dormtr)(const char*, const char*, const char*, const int*, const int*, const double*,
                 const int*, const double*, double*, const int*, double*, const int*, int*);
  void (*zunmtr)(const char*, const char*, const char*, const int*, const int*, const Complex*,
                 const int*, const Complex*, Complex*, const int*, Complex*, const int*, int*);
  void (*dsyevd)(const char*, const char*, const int*, double*, const int*, double*, double*,
                 const int*, int*, const int*, int*);
  void (*zheevd)(const char*, const char*, const int*, Complex*, const int*, double*, Complex*,
                 const int*, double*, const int*, int*, const int*, int*);
  void (*dstedc)(const char*, const int*, double*, double*, double*, const int*, double*,
                 const int*, int*, const int*, int*);
  void (*dstemr)(const char*, const char*, const int*, double*, double*, const double*,
                 const double*, const int*, const int*, int*, double*, double*, const int*,
                 const int*, int*, int*, double*, const int*, int*, const int*, int*);
  void (*dgtsv)(const int*, const int*, double*, double*, double*, double*, const int*, int*);
  void (*dgees)(const char*, const char*, void*, const int*, double*, const int*, int*, double*,
                double*, double*, const int*, double*, const int*, int*, int*);
  void (*zgees)(const char*, const char*, void*, const int*, Complex*, const int*, int*, Complex*,
                Complex*, const int*, Complex*, const int*, double*, int*, int*);
  void (*dtrsyl)(const char*, const char*, const int*, const int*, const int*, const double*,
                 const int*, const double*, const int*, double*, const int*, double*, int*);
  void (*ztrsyl)(const char*, const char*, const int*, const int*, const int*, const Complex*,
                 const int*, const Complex*, const int*, Complex*, const int*, double*, int*);
};

// Filled once, when the module is imported, and only read after that.
inline LapackTable lapack{};

// ---- one name for the real and the complex routine; workspace is asked for and allocated here

inline void gemm(char op_a, char op_b, int m, int n, int k, double alpha, const double* a, int lda,
                 const double* b, int ldb, double beta, double* c, int ldc) {
  if (m > 0 && n > 0)
    lapack.dgemm(&op_a, &op_b, &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);
}

inline void gemm(char op_a, char op_b, int m, int n, int k, Complex alpha, const Complex* a,
                 int lda, const Complex* b, int ldb, Complex beta, Complex* c, int ldc) {
  if (m > 0 && n > 0)
    lapack.zgemm(&op_a, &op_b, &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);
}

// A = H T H^H with T real tridiagonal; the lower triangle of a becomes the reflectors of H.
inline int reduce_to_tridiagonal(int n, double* a, double* diagonal, double* off, double* tau) {
  int info = 0, query = -1;
  double optimum = 1;
  lapack.dsytrd("L", &n, a, &n, diagonal, off, tau, &optimum, &query, &info);
  const int size = static_cast<int>(optimum);
  std::vector<double> work(size);
  lapack.dsytrd("L", &n, a, &n, diagonal, off, tau, work.data(), &size, &info);
  return info;
}

inline int reduce_to_tridiagonal(int n, Complex* a, double* diagonal, double* off, Complex* tau) {
  int info = 0, query = -1;
  Complex optimum = 1;
  lapack.zhetrd("L", &n, a, &n, diagonal, off, tau, &optimum, &query, &info);
  const int size = static_cast<int>(optimum.real());
  std::vector<Complex> work(size);
  lapack.zhetrd("L", &n, a, &n, diagonal, off, tau, work.data(), &size, &info);
  return info;
}

// ormtr's answer to a workspace query is too small for the blocked code of the ormqr it calls
// (LAPACK 3.12: the block of triangular factors is left out), which then falls back to level 2.
inline int reflector_workspace(int n) { return n * 64 + 65 * 64; }

// c (m x n) <- H c, or H^H c with adjoint.
inline int apply_reflectors(bool adjoint, int m, int n, const double* a, const double* tau,
                            double* c) {
  int info = 0;
  const char* op = adjoint ? "T" : "N";
  const int size = reflector_workspace(n);
  std::vector<double> work(size);
  lapack.dormtr("L", "L", op, &m, &n, a, &m, tau, c, &m, work.data(), &size, &info);
  return info;
}

inline int apply_reflectors(bool adjoint, int m, int n, const Complex* a, const Complex* tau,
                            Complex* c) {
  int info = 0;
  const char* op = adjoint ? "C" : "N";
  const int size = reflector_workspace(n);
  std::vector<Complex> work(size);
  lapack.zunmtr("L", "L", op, &m, &n, a, &m, tau, c, &m, work.data(), &size, &info);
  return info;
}

// a becomes its eigenvectors.
inline int eigen_decompose(int n, double* a, double* values) {
  int info = 0, query = -1, integers = 1;
  double optimum = 1;
  lapack.dsyevd("V", "L", &n, a, &n, values, &optimum, &query, &integers, &query, &info);
  const int size = static_cast<int>(optimum);
  std::vector<double> work(size);
  std::vector<int> iwork(integers);
  lapack.dsyevd("V", "L", &n, a, &n, values, work.data(), &size, iwork.data(), &integers, &info);
  return info;
}

inline int eigen_decompose(int n, Complex* a, double* values) {
  int info = 0, query = -1, integers = 1;
  Complex optimum = 1;
  double reals = 1;
  lapack.zheevd("V", "L", &n, a, &n, values, &optimum, &query, &reals, &query, &integers, &query,
                &info);
  const int size = static_cast<int>(optimum.real()), rsize = static_cast<int>(reals);
  std::vector<Complex> work(size);
  std::vector<double> rwork(rsize);
  std::vector<int> iwork(integers);
  lapack.zheevd("V", "L", &n, a, &n, values, work.data(), &size, rwork.data(), &rsize, iwork.data(),
                &integers, &info);
  return info;
}

// Eigenvalues over diagonal, eigenvectors of the real symmetric tridiagonal matrix into z.
inline int eigen_tridiagonal(int n, double* diagonal, double* off, double* z) {
  int info = 0, query = -1, integers = 1;
  double optimum = 1;
  lapack.dstedc("I", &n, diagonal, off, z, &n, &optimum, &query, &integers, &query, &info);
  const int size = static_cast<int>(optimum);
  std::vector<double> work(size);
  std::vector<int> iwork(integers);
  lapack.dstedc("I", &n, diagonal, off, z, &n, work.data(), &size, iwork.data(), &integers, &info);
  return info;
}

// a becomes the Schur form T, z the Schur vectors: A = Z T Z^H.
inline int schur_decompose(int n, double* a, double* z) {
  int info = 0, query = -1, dimension = 0;
  double optimum = 1;
  std::vector<double> re(n), im(n);
  lapack.dgees("V", "N", nullptr, &n, a, &n, &dimension, re.data(), im.data(), z, &n, &optimum,
               &query, nullptr, &info);
  const int size = static_cast<int>(optimum);
  std::vector<double> work(size);
  lapack.dgees("V", "N", nullptr, &n, a, &n, &dimension, re.data(), im.data(), z, &n, work.data(),
               &size, nullptr, &info);
  return info;
}

inline int schur_decompose(int n, Complex* a, Complex* z) {
  int info = 0, query = -1, dimension = 0;
  Complex optimum = 1;
  std::vector<Complex> values(n);
  std::vector<double> rwork(n);
  lapack.zgees("V", "N", nullptr, &n, a, &n, &dimension, values.data(), z, &n, &optimum, &query,
               rwork.data(), nullptr, &info);
  const int size = static_cast<int>(optimum.real());
  std::vector<Complex> work(size);
  lapack.zgees("V", "N", nullptr, &n, a, &n, &dimension, values.data(), z, &n, work.data(), &size,
               rwork.data(), nullptr, &info);
  return info;
}

// op(L) Y + Y op(R) = scale C for Schur forms L and R; C becomes Y.
inline int solve_triangular(bool adjoint, int m, int n, const double* left, int ldl,
                            const double* right, int ldr, double* c, int ldc, double* scale) {
  int info = 0;
  const int sign = 1;
  const char* op = adjoint ? "T" : "N";
  lapack.dtrsyl(op, op, &sign, &m, &n, left, &ldl, right, &ldr, c, &ldc, scale, &info);
  return info;
}

inline int solve_triangular(bool adjoint, int m, int n, const Complex* left, int ldl,
                            const Complex* right, int ldr, Complex* c, int ldc, double* scale) {
  int info = 0;
  const int sign = 1;
  const char* op = adjoint ? "C" : "N";
  lapack.ztrsyl(op, op, &sign, &m, &n, left, &ldl, right, &ldr, c, &ldc, scale, &info);
  return info;
}

}  // namespace sylvinit
