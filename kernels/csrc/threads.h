// Threads of the compiled kernels: OpenMP if the compiler supports it (on Linux, torch's pool), otherwise our own.

#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#else
#include <atomic>
#include <thread>
#include <vector>
#endif

namespace {

// Calls work(task, thread) for each task
template <class Work>
void parallel_for(int64_t threads, int64_t tasks, const Work &work) {
  if (threads > tasks) threads = tasks;
  if (threads <= 1) {
    for (int64_t i = 0; i < tasks; ++i) work(i, 0);
    return;
  }
#if defined(_OPENMP)
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)threads)
  for (int64_t i = 0; i < tasks; ++i) work(i, omp_get_thread_num());
#else
  std::atomic<int64_t> next{0};
  auto run = [&](int64_t thread) {
    for (int64_t i; (i = next.fetch_add(1)) < tasks;) work(i, thread);
  };
  std::vector<std::thread> pool;
  for (int64_t thread = 1; thread < threads; ++thread) pool.emplace_back(run, thread);
  run(0);
  for (auto &thread : pool) thread.join();
#endif
}

}  // namespace
