// Reads memory as fast as this machine can: streams through a buffer, or a given list of rows.
// One addition per vector read and nothing else. Compiled and called by ceiling.py.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kWidest = 64;
#elif defined(__AVX2__)
constexpr int kWidest = 32;
#else
constexpr int kWidest = 16;
#endif

template <int Bytes>
struct Vector {
  typedef int32_t type __attribute__((vector_size(Bytes), aligned(4), may_alias));
};

volatile int32_t sink;  // what is read ends here, so that reading it cannot be left out

int32_t Stream(const char* data, int64_t bytes, int64_t passes) {
  constexpr int kUnroll = 8;
  using V = Vector<kWidest>::type;
  V sums[kUnroll] = {};
  for (int64_t pass = 0; pass < passes; ++pass) {
    for (int64_t at = 0; at + kUnroll * kWidest <= bytes; at += kUnroll * kWidest) {
      for (int i = 0; i < kUnroll; ++i) {
        sums[i] += *reinterpret_cast<const V*>(data + at + i * kWidest);
      }
    }
    asm volatile("" ::: "memory");  // a pass may not be merged with the one before
  }
  for (int i = 1; i < kUnroll; ++i) sums[0] += sums[i];
  return sums[0][0];
}

template <int Bytes, int Vectors>
int32_t Rows(const char* table, const int32_t* rows, int64_t count) {
  constexpr int kSums = Vectors < 8 ? Vectors : 8;  // more would not stay in registers
  using V = typename Vector<Bytes>::type;
  V sums[kSums] = {};
  for (int64_t r = 0; r < count; ++r) {
    const char* row = table + static_cast<int64_t>(rows[r]) * (Bytes * Vectors);
#pragma GCC unroll 64
    for (int i = 0; i < Vectors; ++i) {
      sums[i % kSums] += *reinterpret_cast<const V*>(row + i * Bytes);
    }
  }
  for (int i = 1; i < kSums; ++i) sums[0] += sums[i];
  return sums[0][0];
}

using RowReader = int32_t (*)(const char*, const int32_t*, int64_t);

template <int Bytes, std::size_t... I>
RowReader Pick(std::size_t vectors, std::index_sequence<I...>) {
  constexpr RowReader readers[] = {Rows<Bytes, I + 1>...};
  return vectors - 1 < sizeof...(I) ? readers[vectors - 1] : nullptr;
}

template <int Bytes>
RowReader ReaderOf(int64_t vectors) {
  return Pick<Bytes>(vectors, std::make_index_sequence<64>());
}

RowReader ReaderOfRow(int64_t row_bytes) {
  if (kWidest >= 64 && row_bytes % 64 == 0) return ReaderOf<64>(row_bytes / 64);
  if (kWidest >= 32 && row_bytes % 32 == 0) return ReaderOf<32>(row_bytes / 32);
  if (row_bytes % 16 == 0) return ReaderOf<16>(row_bytes / 16);
  return nullptr;
}

// Seconds that `num_threads` threads need for `read` on a buffer of their own each, at best.
template <class Read>
double BestSeconds(int64_t bytes, int num_threads, int bursts, Read read) {
  using Clock = std::chrono::steady_clock;
  std::vector<char*> buffers(num_threads);
  for (char*& buffer : buffers) {
    buffer = static_cast<char*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096));
    std::memset(buffer, 1, bytes);
  }
  double best = 1e30;
  for (int burst = 0; burst < bursts; ++burst) {
    std::atomic<int> waiting{num_threads};
    std::vector<Clock::time_point> starts(num_threads), ends(num_threads);
    std::vector<std::thread> threads;
    for (int i = 0; i < num_threads; ++i) {
      threads.emplace_back([&, i] {
        sink = Stream(buffers[i], bytes, 1);  // brings the buffer into the cache
        --waiting;
        while (waiting.load() > 0) std::this_thread::yield();
        starts[i] = Clock::now();
        sink = read(buffers[i]);
        ends[i] = Clock::now();
      });
    }
    for (std::thread& thread : threads) thread.join();
    Clock::time_point start = starts[0], end = ends[0];
    for (int i = 1; i < num_threads; ++i) {
      if (starts[i] < start) start = starts[i];
      if (ends[i] > end) end = ends[i];
    }
    const double seconds = std::chrono::duration<double>(end - start).count();
    if (seconds < best) best = seconds;
  }
  for (char* buffer : buffers) std::free(buffer);
  return best;
}

}  // namespace

extern "C" {

int vector_bytes() { return kWidest; }

// Bytes per second of all threads together, each streaming through `bytes` of its own.
double stream_bandwidth(int64_t bytes, int num_threads, int64_t passes, int bursts) {
  const double seconds = BestSeconds(bytes, num_threads, bursts, [=](const char* buffer) {
    return Stream(buffer, bytes, passes);
  });
  return static_cast<double>(bytes) * passes * num_threads / seconds;
}

// Bytes per second of all threads together, each reading the listed rows of a table of its own;
// negative if a row is no whole number of vectors, or more than 64 of them.
double rows_bandwidth(const int32_t* rows, int64_t count, int64_t table_rows, int64_t row_bytes,
                      int num_threads, int bursts) {
  const RowReader read = ReaderOfRow(row_bytes);
  if (read == nullptr) return -1.0;
  const double seconds = BestSeconds(table_rows * row_bytes, num_threads, bursts,
                                     [=](const char* buffer) { return read(buffer, rows, count); });
  return static_cast<double>(count) * row_bytes * num_threads / seconds;
}

}  // extern "C"
