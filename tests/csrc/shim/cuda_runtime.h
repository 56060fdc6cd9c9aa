// The part of CUDA that csrc/cuda/*.cu use, on host threads: for tests, and for those alone.
//
// A block is a set of threads that run together, a thread per CUDA thread; blocks run one after
// the other, which is why a static variable can stand for shared memory. Races between the threads
// of a block are real ones, and so are bad addresses: sanitizers find both.
#pragma once

#include <pthread.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __restrict__ __restrict
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

namespace shim {

constexpr int kWarp = 32;

// std::barrier with futexes alone.
class Barrier {
 public:
  explicit Barrier(int threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  void arrive_and_wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

// What the threads of one block share.
struct Block {
  explicit Block(int threads) : all(threads) {
    for (int first = 0; first < threads; first += kWarp) {
      const int size = threads - first < kWarp ? threads - first : kWarp;
      warps.push_back(std::make_unique<Warp>(size));
    }
  }
  struct Warp {
    explicit Warp(int size) : together(size) {}
    Barrier together;
    std::uint32_t word[kWarp][16];  // what each lane shows the others
  };
  Barrier all;
  std::vector<std::unique_ptr<Warp>> warps;
};

inline thread_local Block* block = nullptr;

inline int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
inline Block::Warp& warp() { return *block->warps[threadIdx.x / kWarp]; }

// Runs kernel(arguments...) for every block of the grid; one-dimensional blocks only.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, cudaStream_t,
            const Arguments&... arguments) {
  Block shared(static_cast<int>(threads.x));
  std::vector<std::thread> team;
  for (unsigned t = 0; t < threads.x; ++t) {
    team.emplace_back([&, t] {
      block = &shared;
      threadIdx = dim3(t, 0, 0);
      blockDim = threads;
      gridDim = grid;
      for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
          for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y, z);
            kernel(arguments...);
            shared.all.arrive_and_wait();  // shared memory is free for the next block
          }
        }
      }
    });
  }
  for (std::thread& thread : team) thread.join();
}

// Blocks of a kernel on a multiprocessor: as many as fit registers of 256 for each thread.
template <class... Parameters>
int resident_blocks(void (*)(Parameters...), int threads) {
  return threads < 256 ? 256 / threads : 1;
}

// x rounded to 10 bits of fraction, nearest, ties away from zero.
inline float round_to_tf32(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7F800000u) == 0x7F800000u) return x;  // infinite or not a number
  bits = (bits + 0x1000u) & ~0x1FFFu;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

// A sum cut to float32 towards zero, as tensor cores do.
inline float truncated(double sum) {
  const float nearest = static_cast<float>(sum);
  return std::fabs(nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

// d += a b for the fragments of csrc/cuda/mma.cuh. Every lane shows its part of a and b to the
// warp and computes its part of d. Factors that are not TF32 are cut, as the hardware does.
inline void mma_m16n8k8_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  Block::Warp& team = warp();
  const int me = lane(), g = me / 4, t = me % 4;
  for (int e = 0; e < 4; ++e) std::memcpy(&team.word[me][e], &a[e], sizeof(float));
  for (int e = 0; e < 2; ++e) std::memcpy(&team.word[me][4 + e], &b[e], sizeof(float));
  team.together.arrive_and_wait();
  const auto shown = [&](int of, int e) {
    const std::uint32_t cut = team.word[of][e] & ~0x1FFFu;
    float value;
    std::memcpy(&value, &cut, sizeof value);
    return value;
  };
  for (int e = 0; e < 4; ++e) {
    const int row = g + e / 2 * 8, column = 2 * t + e % 2;
    double sum = d[e];
    for (int k = 0; k < 8; ++k) {
      const float left = shown(row % 8 * 4 + k % 4, row / 8 + k / 4 * 2);
      sum += static_cast<double>(left) * shown(column * 4 + k % 4, 4 + k / 4);
    }
    d[e] = truncated(sum);
  }
  team.together.arrive_and_wait();  // before anyone shows something else
}

}  // namespace shim

inline void __syncthreads() { shim::block->all.arrive_and_wait(); }
inline void __syncwarp() { shim::warp().together.arrive_and_wait(); }

inline int atomicOr(int* address, int value) {
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
inline int atomicMax(int* address, int value) {
  int seen = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (seen < value && !__atomic_compare_exchange_n(address, &seen, value, false,
                                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return seen;
}
