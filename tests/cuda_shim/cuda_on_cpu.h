// Enough of CUDA for the adapter's kernels to run on a CPU. Threads run one after the other: this
// finds wrong arithmetic and wrong indices, and no races.
#pragma once
#include <math.h>
#include <ucontext.h>

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

struct Index {
  unsigned int x = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned __int128)a * b >> 64;
}
static inline unsigned int __float_as_uint(float x) {
  unsigned int bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
#define __shared__ static
static inline void __threadfence() {}
static inline int atomicAdd(int* place, int value) {
  const int before = *place;
  *place += value;
  return before;
}
static inline int __popc(unsigned int x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }

#include <cupy/carray.cuh>  // CuPy's own indexing

// --- Arguments: from what ctypes hands over to what a kernel declares ---------------------------

struct Argument {
  void* data;
  const ptrdiff_t *shape, *strides;
};

template <class T>
struct From {
  static T get(const Argument& a) { return *static_cast<T*>(a.data); }
};
template <class T>
struct From<T*> {
  static T* get(const Argument& a) { return static_cast<T*>(a.data); }
};
template <class T, int N, bool C, bool I>
struct From<CArray<T, N, C, I>> {
  static CArray<T, N, C, I> get(const Argument& a) {
    return CArray<T, N, C, I>(static_cast<T*>(a.data), a.shape, a.strides);
  }
};
template <int N, bool I>
struct From<CIndexer<N, I>> {
  static CIndexer<N, I> get(const Argument& a) { return CIndexer<N, I>(a.shape); }
};

template <class... P, size_t... I>
static void call(void (*kernel)(P...), const Argument* a, std::index_sequence<I...>) {
  kernel(From<P>::get(a[I])...);
}

// --- Threads ------------------------------------------------------------------------------------

// A block's threads as fibers that take turns where they exchange values.
namespace fibers {
static ucontext_t scheduler;
static std::vector<ucontext_t> contexts;
static std::vector<std::vector<char>> stacks;
static std::vector<char> finished;
static std::vector<uint64_t> slots;
static std::function<void()> body;

static void entry() {
  body();
  finished[threadIdx.x] = 1;
}

static void take_turns() {
  const unsigned int me = threadIdx.x;
  swapcontext(&contexts[me], &scheduler);
}

static void run_block() {
  const unsigned int n = blockDim.x;
  contexts.resize(n);
  stacks.resize(n, std::vector<char>(1 << 16));
  slots.resize(n);
  finished.assign(n, 0);
  for (unsigned int t = 0; t < n; ++t) {
    getcontext(&contexts[t]);
    contexts[t].uc_stack.ss_sp = stacks[t].data();
    contexts[t].uc_stack.ss_size = stacks[t].size();
    contexts[t].uc_link = &scheduler;
    makecontext(&contexts[t], entry, 0);
  }
  for (bool busy = true; busy;) {
    busy = false;
    for (unsigned int t = 0; t < n; ++t) {
      if (finished[t]) continue;
      threadIdx.x = t;
      swapcontext(&scheduler, &contexts[t]);
      busy |= !finished[t];
    }
  }
}
}  // namespace fibers

static void __syncthreads() { fibers::take_turns(); }

template <class T>
static T __shfl_xor_sync(unsigned int, T value, int mask) {
  const unsigned int me = threadIdx.x;
  memcpy(&fibers::slots[me], &value, sizeof value);
  fibers::take_turns();
  memcpy(&value, &fibers::slots[me ^ mask], sizeof value);
  fibers::take_turns();
  return value;
}

template <class... P>
static void launch(void (*kernel)(P...), const Argument* a, unsigned int blocks,
                   unsigned int threads, bool exchanging) {
  gridDim.x = blocks;
  blockDim.x = threads;
  const auto run = [&] { call(kernel, a, std::index_sequence_for<P...>{}); };
  fibers::body = run;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    if (exchanging) {
      fibers::run_block();
      continue;
    }
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) run();
  }
}
