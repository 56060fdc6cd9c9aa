// SYLVINIT_HD marks an inline function that runs on the host and on the GPU.
#pragma once

#ifdef __CUDACC__
#define SYLVINIT_HD __host__ __device__ inline
#else
#define SYLVINIT_HD inline
#endif
