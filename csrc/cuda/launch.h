// One way to launch a kernel, so that the same .cu sources also compile as plain C++ against
// tests/csrc/shim, where a block is a group of host threads.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "errors.h"

namespace sylvinit {

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            cudaStream_t stream, const Arguments&... arguments) {
#ifdef __CUDACC__
  kernel<<<grid, block, 0, stream>>>(arguments...);
#else
  shim::launch(kernel, grid, block, stream, arguments...);
#endif
  check_cuda(cudaGetLastError(), name);
}

// Blocks of a kernel that run on a multiprocessor of the current device at a time.
template <class... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads) {
#ifdef __CUDACC__
  int blocks = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0),
             "the occupancy of a kernel");
  return blocks > 0 ? blocks : 1;
#else
  return shim::resident_blocks(kernel, threads);
#endif
}

}  // namespace sylvinit
