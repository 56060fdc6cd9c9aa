// What the bindings of the parts share.
#pragma once

#include <pybind11/pybind11.h>

namespace sylvinit {

// Whether a kernel may read this address.
bool is_device_pointer(const void* pointer);

void bind_patch_gram(pybind11::module_& m);
void bind_spectral(pybind11::module_& m);

}  // namespace sylvinit
