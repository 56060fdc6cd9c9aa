// Fills the table of LAPACK routines from SciPy.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "lapack.h"

namespace sylvinit {

namespace py = pybind11;

// Address of a routine whose capsule is named by its C signature. `expected` has a letter for every
// argument: c for char *, i for int *, x for anything else (a scalar or a callback). SciPy built
// with 64-bit integers, say, would not match, and must not be called.
inline void* routine(const py::dict& capsules, const char* name, const std::string& expected) {
  if (!capsules.contains(name)) throw py::import_error(std::string("SciPy has no ") + name);
  const py::object capsule = capsules[name];
  const char* signature = PyCapsule_GetName(capsule.ptr());
  if (signature == nullptr) throw py::import_error(std::string(name) + " has no signature");
  std::string text(signature), found;
  text = text.substr(text.find('(') + 1);
  for (std::size_t start = 0; start < text.size();) {
    const std::size_t end = text.find_first_of(",)", start);
    std::string argument = text.substr(start, end - start);
    argument.erase(0, argument.find_first_not_of(' '));
    found += argument == "char *" ? 'c' : argument == "int *" ? 'i' : 'x';
    if (end == std::string::npos || text[end] == ')') break;
    start = end + 1;
  }
  if (found != expected) {
    throw py::import_error(std::string("SciPy's ") + name +
                           " has an unknown signature: " + signature);
  }
  void* address = PyCapsule_GetPointer(capsule.ptr(), signature);
  if (address == nullptr) throw py::error_already_set();
  return address;
}

template <class Pointer>
void fill(Pointer* pointer, const py::dict& capsules, const char* name,
          const std::string& expected) {
  *pointer = reinterpret_cast<Pointer>(routine(capsules, name, expected));
}

inline void load_lapack() {
  const py::dict blas = py::module_::import("scipy.linalg.cython_blas").attr("__pyx_capi__");
  const py::dict rest = py::module_::import("scipy.linalg.cython_lapack").attr("__pyx_capi__");
  fill(&lapack.dgemm, blas, "dgemm", "cciiixxixixxi");
  fill(&lapack.zgemm, blas, "zgemm", "cciiixxixixxi");
  fill(&lapack.dsytrd, rest, "dsytrd", "cixixxxxii");
  fill(&lapack.zhetrd, rest, "zhetrd", "cixixxxxii");
  fill(&lapack.dormtr, rest, "dormtr", "ccciixixxixii");
  fill(&lapack.zunmtr, rest, "zunmtr", "ccciixixxixii");
  fill(&lapack.dsyevd, rest, "dsyevd", "ccixixxiiii");
  fill(&lapack.zheevd, rest, "zheevd", "ccixixxixiiii");
  fill(&lapack.dstedc, rest, "dstedc", "cixxxixiiii");
  fill(&lapack.dstemr, rest, "dstemr", "ccixxxxiiixxiiiixiiii");
  fill(&lapack.dgtsv, rest, "dgtsv", "iixxxxii");
  fill(&lapack.dgees, rest, "dgees", "ccxixiixxxixiii");
  fill(&lapack.zgees, rest, "zgees", "ccxixiixxixixii");
  fill(&lapack.dtrsyl, rest, "dtrsyl", "cciiixixixixi");
  fill(&lapack.ztrsyl, rest, "ztrsyl", "cciiixixixixi");
}

}  // namespace sylvinit
