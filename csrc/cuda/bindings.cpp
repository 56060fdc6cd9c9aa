// The module sylvinit._cuda.
#include "bindings.h"

#include <cuda_runtime.h>

#ifndef SYLVINIT_CSRC_HASH
#error "SYLVINIT_CSRC_HASH and SYLVINIT_ARCHITECTURES are defined by the build script"
#endif

namespace sylvinit {

bool is_device_pointer(const void* pointer) {
  cudaPointerAttributes attributes{};
  if (cudaPointerGetAttributes(&attributes, pointer) != cudaSuccess) {
    cudaGetLastError();  // or the next launch would report it
    return false;
  }
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

}  // namespace sylvinit

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of sylvinit; used through sylvinit.backends.extension";
  m.attr("CSRC_HASH") = SYLVINIT_CSRC_HASH;
  m.attr("ARCHITECTURES") = SYLVINIT_ARCHITECTURES;
  m.attr("CUDA_VERSION") = CUDART_VERSION;
  sylvinit::bind_patch_gram(m);
  sylvinit::bind_spectral(m);
}
