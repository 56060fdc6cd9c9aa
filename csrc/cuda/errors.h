// CUDA errors as C++ exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace sylvinit {

// Throws std::runtime_error if a CUDA call failed; `what` names the call and its sizes.
inline void check_cuda(cudaError_t code, const std::string& what) {
  if (code != cudaSuccess) {
    throw std::runtime_error(what + ": " + cudaGetErrorString(code));
  }
}

}  // namespace sylvinit
