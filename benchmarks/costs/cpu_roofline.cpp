// Reads memory as fast as this machine can: streams through a buffer, or a given list of rows.
// One addition per vector read and nothing else. Compiled and called by cpu_roofline.py.

#include <algorithm>
#include <atomic>
#include <chrono>
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

volatile int32_t sink;  // the sums end here, so that reading cannot be left out

template <class V, int N>
int32_t total(const V (&sums)[N]) {
  V sum = sums[0];
  for (int i = 1; i < N; ++i) sum += sums[i];
  return sum[0];
}

int32_t stream(const char* data, int64_t bytes, int64_t passes) {
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
  return total(sums);
}

template <int Bytes, int Vectors>
int32_t read_rows(const char* table, const int32_t* rows, int64_t count) {
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
  return total(sums);
}

using RowReader = int32_t (*)(const char*, const int32_t*, int64_t);

// The reader of rows of up to 64 vectors, else null; with the widest vectors that fit.
template <int Bytes, int... I>
RowReader reader_of(int64_t row_bytes, std::integer_sequence<int, I...> all) {
  constexpr RowReader readers[] = {read_rows<Bytes, I + 1>...};
  if (row_bytes % Bytes == 0) {
    return row_bytes / Bytes <= int64_t(sizeof...(I)) ? readers[row_bytes / Bytes - 1] : nullptr;
  }
  if constexpr (Bytes > 16) return reader_of<Bytes / 2>(row_bytes, all);
  return nullptr;
}

// Seconds that `num_threads` threads need for `read` on a buffer of their own each, at best.
template <class Read>
double best_seconds(int64_t bytes, int num_threads, int bursts, Read read) {
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
        sink = stream(buffers[i], bytes, 1);  // brings the buffer into the cache
        --waiting;
        while (waiting.load() > 0) std::this_thread::yield();
        starts[i] = Clock::now();
        sink = read(buffers[i]);
        ends[i] = Clock::now();
      });
    }
    for (std::thread& thread : threads) thread.join();
    const auto start = *std::min_element(starts.begin(), starts.end());
    const auto end = *std::max_element(ends.begin(), ends.end());
    best = std::min(best, std::chrono::duration<double>(end - start).count());
  }
  for (char* buffer : buffers) std::free(buffer);
  return best;
}

}  // namespace

extern "C" {

int vector_bytes() { return kWidest; }

// Bytes per second of all threads together, each streaming through `bytes` of its own.
double stream_bandwidth(int64_t bytes, int num_threads, int64_t passes, int bursts) {
  const auto read = [=](const char* buffer) { return stream(buffer, bytes, passes); };
  const double seconds = best_seconds(bytes, num_threads, bursts, read);
  return static_cast<double>(bytes) * passes * num_threads / seconds;
}

// Bytes per second of all threads together, each reading the listed rows of a table of its own;
// negative if a row is no whole number of vectors, or more than 64 of them.
double rows_bandwidth(const int32_t* rows, int64_t count, int64_t table_rows, int64_t row_bytes,
                      int num_threads, int bursts) {
  const RowReader reader = reader_of<kWidest>(row_bytes, std::make_integer_sequence<int, 64>());
  if (reader == nullptr) return -1.0;
  const auto read = [=](const char* buffer) { return reader(buffer, rows, count); };
  const double seconds = best_seconds(table_rows * row_bytes, num_threads, bursts, read);
  return static_cast<double>(count) * row_bytes * num_threads / seconds;
}

}  // extern "C"
