// Eigendecompositions of symmetric matrices by cuSOLVER, which is not linked but opened at run
// time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sylvinit {

enum class EigenRoutine {
  xsyevd,         // divide and conquer, one matrix after the other
  xsyev_batched,  // a batch at once; cuSOLVER 11.7.1 and later
  syevj_batched,  // Jacobi rotations, a batch at once
};

// Throws std::invalid_argument for a name that is not one of the above.
EigenRoutine eigen_routine(const std::string& name);

struct CusolverLibrary {
  std::string path;  // what was opened
  int major, minor, patch;
  bool xsyev_batched;  // whether it has that routine
};

// The name of the library whose declarations this was compiled with, such as "libcusolver.so.12".
std::string cusolver_soname();

// Opens cuSOLVER: what the process has loaded already, else the first candidate (a path, or a name
// for the dynamic linker) that can be loaded and has the right major version. Later calls return
// what the first one found. Throws std::runtime_error that says what was tried.
const CusolverLibrary& open_cusolver(const std::vector<std::string>& candidates);

// A_i = V_i diag(w_i) V_i^T for `batch` symmetric float64 matrices of size n.
struct SymmetricEigen {
  EigenRoutine routine;
  int device;
  cudaStream_t stream;
  std::int64_t n, batch;
  double* a;       // (batch, n, n): one triangle is read; becomes V_i^T in row-major order
  double* values;  // (batch, n), ascending
  int* info;       // (batch): 0, or the routine's code of failure
  void* workspace;
  std::size_t workspace_bytes;  // on the device
};

// Bytes of workspace on the device; of the fields before, none but the routine, the device, the
// stream and the sizes count. open_cusolver comes first.
std::size_t symmetric_eigen_workspace(const SymmetricEigen& problem);

// Queues the decomposition on the stream; parts of it may wait for the device. Makes the device
// current for the calling thread. Throws std::runtime_error with cuSOLVER's status.
void symmetric_eigen(const SymmetricEigen& problem);

}  // namespace sylvinit
