// Marks the few loops that are worth several versions.
#pragma once

// GCC compiles these once for every instruction set and chooses at load time.
#include <cstdlib>  // says whether this is glibc, which the choice at load time needs

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define SYLVINIT_VECTORIZED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SYLVINIT_VECTORIZED
#endif
